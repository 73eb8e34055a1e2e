"""How each component of a model is tuned: the options, and the named ways that set several of them at once."""

from dataclasses import dataclass, field
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.quantisation import bits_of

COMPONENTS = ("vision_tower", "projector", "language_model")
MODES = ("frozen", "lora", "full")
INITS = ("default", "pissa", "eva")

PLAIN: dict[str, Any] = {
    "vision_tower": "frozen",
    "projector": "frozen",
    "language_model": "lora",
    "load_in_4bit": False,
    "load_in_8bit": False,
    "use_dora": False,
    "use_rslora": False,
    "init_lora_weights": "default",
    "loraplus_lr_ratio": 1.0,
}
# What each named way sets differently; docs/tuning.md says which one when.
TUNINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora_tower": {"vision_tower": "lora"},
    "lora_projector": {"projector": "full"},
    "language_model": {"language_model": "full"},
    "full": {"vision_tower": "full", "projector": "full", "language_model": "full"},
    "projector": {"projector": "full", "language_model": "frozen"},
    "qlora": {"load_in_4bit": True},
    "lora_int8": {"load_in_8bit": True},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "lora_plus": {"loraplus_lr_ratio": 16.0},
}


@dataclass
class TuningArguments:
    """How each component is tuned; what is left out is what `tuning` says."""

    tuning: str = field(default="lora", metadata={"help": f"A named way to tune: {', '.join(TUNINGS)}."})
    vision_tower: str | None = field(default=None, metadata={"help": "frozen, lora or full."})
    projector: str | None = field(default=None, metadata={"help": "frozen, lora or full."})
    language_model: str | None = field(default=None, metadata={"help": "frozen, lora or full."})
    vision_tower_lr: float | None = field(default=None, metadata={"help": "Learning rate; default: learning_rate."})
    projector_lr: float | None = field(default=None, metadata={"help": "Learning rate; default: learning_rate."})
    language_model_lr: float | None = field(default=None, metadata={"help": "Learning rate; default: learning_rate."})
    vision_tower_lora_r: int | None = field(default=None, metadata={"help": "Rank; default: lora_r."})
    projector_lora_r: int | None = field(default=None, metadata={"help": "Rank; default: lora_r."})
    language_model_lora_r: int | None = field(default=None, metadata={"help": "Rank; default: lora_r."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(
        default=16,
        metadata={
            "help": "Scale of the adapters: alpha / r (rsLoRA: alpha / sqrt(r)); a component's own rank keeps it."
        },
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression of the whole names of the linear layers that get an adapter, as in "
            r"`.*\.(q_proj|v_proj)`; default: all of the components in mode lora."
        },
    )
    modules_to_save: list[str] = field(
        default_factory=list,
        metadata={"help": "Modules trained in full and saved with the adapter, by the end of their names."},
    )
    use_dora: bool | None = field(default=None, metadata={"help": "Weight-decomposed adapters (DoRA)."})
    use_rslora: bool | None = field(default=None, metadata={"help": "Rank-stabilised scale: alpha / sqrt(r)."})
    init_lora_weights: str | None = field(
        default=None,
        metadata={
            "help": "default; pissa: from the weights' principal singular vectors; eva: from those of what the "
            "layers see in the first rows of the data."
        },
    )
    eva_rows: int = field(default=32, metadata={"help": "Rows of the data that eva looks at, at most."})
    loraplus_lr_ratio: float | None = field(
        default=None, metadata={"help": "Learning rate of the adapters' B over that of their A (LoRA+)."}
    )
    load_in_4bit: bool | None = field(
        default=None, metadata={"help": "Linear layers of the language model in NF4, doubly quantised (QLoRA)."}
    )
    load_in_8bit: bool | None = field(
        default=None, metadata={"help": "Linear layers of the language model in 8-bit integers (LLM.int8)."}
    )

    def __post_init__(self) -> None:
        if self.tuning not in TUNINGS:
            raise InputError(f"tuning `{self.tuning}`: choose one of {', '.join(TUNINGS)}")
        for name, value in {**PLAIN, **TUNINGS[self.tuning]}.items():
            if vars(self)[name] is None:
                setattr(self, name, value)
        self._check_modes()
        self._check_adapters()
        for name in ("vision_tower_lr", "projector_lr", "language_model_lr"):
            value = vars(self)[name]
            if value is not None and value <= 0:
                raise InputError(f"{name} {value}: must be above 0; freeze a component with `{name[:-3]}: frozen`")

    def modes(self) -> dict[str, str]:
        """Mode by component."""
        return {component: vars(self)[component] for component in COMPONENTS}

    def ranks(self) -> dict[str, int]:
        """Rank of the adapters by component."""
        own = {component: vars(self)[f"{component}_lora_r"] for component in COMPONENTS}
        return {component: self.lora_r if rank is None else rank for component, rank in own.items()}

    def rates(self, learning_rate: float) -> dict[str, float]:
        """Learning rate by component."""
        own = {component: vars(self)[f"{component}_lr"] for component in COMPONENTS}
        return {component: learning_rate if rate is None else rate for component, rate in own.items()}

    def adapts(self) -> bool:
        """Whether any component gets adapters."""
        return "lora" in self.modes().values()

    def bits(self) -> int:
        """In how many bits the language model's linear layers are loaded; 0: they are not quantised."""
        return bits_of(self.load_in_4bit, self.load_in_8bit)

    def _check_modes(self) -> None:
        modes = self.modes()
        for component, mode in modes.items():
            if mode not in MODES:
                raise InputError(f"{component}: `{mode}` is no mode; choose one of {', '.join(MODES)}")
            for option in (f"{component}_lora_r", f"{component}_lr"):
                needed = ("lora",) if option.endswith("_lora_r") else ("lora", "full")
                if vars(self)[option] is not None and mode not in needed:
                    raise InputError(f"{option}: {component} is {mode}; leave it out or set `{component}: lora`")
        if set(modes.values()) == {"frozen"}:
            raise InputError(
                "every component is frozen: set vision_tower, projector or language_model to lora or full"
            )
        if self.bits() and self.language_model == "full":
            raise InputError(
                "load_in_4bit and load_in_8bit: quantised weights cannot be trained in full; set "
                "`language_model: lora`, or leave the quantisation out"
            )
        if self.bits() and not self.adapts():
            raise InputError(
                "load_in_4bit and load_in_8bit: a quantised model trains adapters only; set `projector: lora` (or "
                "another component), or leave the quantisation out"
            )
        if self.language_model == "full" and self.adapts():
            raise InputError(
                "language_model: full beside lora: an adapter would have to hold a second language model; set "
                "`language_model: lora`, or train the others in full too, with a learning rate of their own"
            )

    def _check_adapters(self) -> None:
        for option in ("lora_r", *(f"{component}_lora_r" for component in COMPONENTS)):
            rank = vars(self)[option]
            if rank is not None and rank < 1:
                raise InputError(f"{option} {rank}: must be at least 1")
        if self.lora_alpha <= 0:
            raise InputError(f"lora_alpha {self.lora_alpha}: must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout {self.lora_dropout}: must be at least 0 and below 1")
        if self.init_lora_weights not in INITS:
            raise InputError(f"init_lora_weights `{self.init_lora_weights}`: choose one of {', '.join(INITS)}")
        if self.loraplus_lr_ratio < 1:
            raise InputError(f"loraplus_lr_ratio {self.loraplus_lr_ratio}: must be at least 1")
        if self.eva_rows < 1:
            raise InputError(f"eva_rows {self.eva_rows}: must be at least 1")
        of_adapters = ("use_dora", "use_rslora", "init_lora_weights", "loraplus_lr_ratio")
        given = [name for name in of_adapters if vars(self)[name] != PLAIN[name]]
        given += [name for name in ("lora_target_modules", "modules_to_save") if vars(self)[name]]
        if given and not self.adapts():
            raise InputError(f"{given[0]}: no component has adapters; set one to lora, or leave it out")
        if self.init_lora_weights == "pissa" and (self.bits() or self.use_dora):
            raise InputError(
                "init_lora_weights pissa: changes the weights it starts from, which quantisation and DoRA do not "
                "allow; leave one of them out"
            )
        if self.init_lora_weights == "pissa" and self.use_rslora and len(set(self.ranks().values())) > 1:
            raise InputError(
                "init_lora_weights pissa: with use_rslora all components need one rank; leave out the others"
            )
