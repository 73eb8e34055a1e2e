"""The options of recipes/sarclip.py and recipes/sarcap.py, and those of every stage."""

import copy
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from transformers import SchedulerType

from sarlang_sft.arguments import TrainArguments
from sarlang_sft.configuration import ALSO_LISTS, fits, kinds, type_name
from sarlang_sft.contrastive.batches import DRAWS
from sarlang_sft.contrastive.losses import NEGATIVES
from sarlang_sft.contrastive.models import check_resize_mode
from sarlang_sft.contrastive.tuning import PairTuning
from sarlang_sft.errors import InputError, nearest
from sarlang_sft.imagery import parse_ops
from sarlang_sft.launch import this_launch

VAL_METRICS = ("mean_recall", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
OF_LANGUAGE_MODELS = {
    "neftune_noise_alpha": None,
    "loss_weighting": "token",
    "checkpointed": "both",
    "val_questions": 0,
}
BATCH_WAY_OUT = "a contrastive batch is one step; set micro_batch_size to the rows that fit into memory"


@dataclass
class PairModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(
        metadata={
            "help": "Folder written by sarclip.py or sarcap.py, hf-hub:OWNER/NAME, or an architecture of open_clip "
            "(ViT-B-32, ViT-L-14, RN50, coca_ViT-L-14 ...; sar-vit-tiny, sar-resnet-tiny, sar-coca-tiny)."
        }
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "Local file with weights of that architecture: safetensors, or tensors that PyTorch reads with "
            "weights_only (LAION, RemoteCLIP, GeoRSCLIP, SARVLM). Default: random weights."
        },
    )
    image_size: int | None = field(default=None, metadata={"help": "Side of the tower's input; default: the model's."})
    resize_mode: str | None = field(
        default=None,
        metadata={
            "help": "How pictures become square: longest (all of it, padded with black), shortest (the middle is cut "
            "out, open_clip's default) or squash. Default: the folder's own, of an architecture longest."
        },
    )

    def __post_init__(self) -> None:
        check_resize_mode(self.resize_mode)
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image_size {self.image_size}: must be at least 1")


@dataclass(frozen=True)
class PairSource:
    """One data folder, and what is taken of it.

    Attributes:
        subsets: Captions of these alone; empty: all.
        leave_out: Sources whose images are not taken.
        only: Sources whose images alone are taken; empty: all.
    """

    path: str
    subsets: list[str] = field(default_factory=list)
    leave_out: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    image_root: str | None = None

    @property
    def folder(self) -> Path:
        """The data folder."""
        return Path(self.path)


@dataclass
class PairDataArguments:
    """What to learn from."""

    data: str = field(
        metadata={
            "help": "Data folder with captions, written by data_prep/*.py; in YAML also a list of {path, subsets, "
            "leave_out, only, image_root}."
        }
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the data folder's."}
    )
    subsets: list[str] = field(
        default_factory=list, metadata={"help": "Captions of these subsets alone; default: all."}
    )
    leave_out: list[str] = field(
        default_factory=list,
        metadata={"help": "Sources whose images are not learned, for honest zero-shot figures on them (MSTAR ...)."},
    )
    only: list[str] = field(default_factory=list, metadata={"help": "Sources whose images alone are learned."})
    image_ops: list[str] | None = field(
        default=None,
        metadata={
            "help": "Image operations in order, e.g. fixed log crop:64 shift:4; saved with the result. Default: those "
            "of the model's folder, else `fixed`: 16-bit, float and dB files scaled alike (docs/sarclip.md)."
        },
    )
    captions: str = field(
        default="one", metadata={"help": "one: a caption of every image, drawn anew each epoch; all: every pair."}
    )
    max_bad_images: int = field(
        default=10,
        metadata={"help": "So many unreadable images are left out of a run, with a message; one more stops it."},
    )

    def __post_init__(self) -> None:
        parse_ops(self.image_ops or [])
        if self.captions not in DRAWS:
            raise InputError(f"captions `{self.captions}`: choose one of {', '.join(DRAWS)}")
        if self.max_bad_images < 0:
            raise InputError(f"max_bad_images {self.max_bad_images}: must be 0 (the first one stops the run) or more")
        self.sources()

    def sources(self) -> list[PairSource]:
        """The data folders."""
        of_all = {name: vars(self)[name] for name in ("image_root", "subsets", "leave_out", "only")}
        known = get_type_hints(PairSource)
        sources = []
        for entry in [{"path": self.data}] if isinstance(self.data, str) else self.data:
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise InputError(f"data: every entry of the list needs `path: FOLDER`, found {entry!r}")
            if unknown := set(entry) - known.keys():
                raise InputError(
                    f"data {entry['path']}: unknown key `{min(unknown)}`; known are {', '.join(sorted(known))}"
                )
            for key, value in entry.items():
                if not fits(value, known[key]) or (isinstance(value, str) and list in kinds(known[key])):
                    raise InputError(
                        f"data {entry['path']}: `{key}: {value}` is not of the type {type_name(known[key])}"
                    )
            sources.append(PairSource(**{**of_all, **entry}))
        if not sources:
            raise InputError("data: the list is empty")
        return sources


@dataclass
class PairTrainArguments(TrainArguments):
    """transformers' training arguments with SARVLM's defaults, and what a contrastive batch needs."""

    negatives: str = field(
        default="masked",
        metadata={
            "help": "Pairs of the same image, or whose caption is also one of the image's: masked (left out), "
            "multi_positive (positives, too) or plain (negatives, as published)."
        },
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows that go through the towers at a time; features are cached, so that gradients are those of "
            "the whole batch. Default: all."
        },
    )
    caption_loss_weight: float = field(default=0.0, metadata={"help": "Of the captioning loss (CoCa); 0: none."})
    contrastive_loss_weight: float = field(default=1.0, metadata={"help": "Of the contrastive loss."})
    stages: str | None = field(
        default=None,
        metadata={
            "help": "In YAML a list of stages {name, data, learning_rate, num_train_epochs ...}: each begins with the "
            "last one's result and has its folder in output_dir (docs/sarclip.md)."
        },
    )
    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Pairs of a rank in a step; global_batch_size sets it for any number of ranks."}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs of a step over all ranks; sets per_device_train_batch_size."}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "Highest learning rate."})
    weight_decay: float = field(
        default=0.01, metadata={"help": "Of matrices, embeddings among them; gains and biases have none."}
    )
    warmup_steps: float = field(default=1000, metadata={"help": "Steps, or below 1 the share of all steps."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Epochs; max_steps comes before it."})
    adam_beta2: float = field(default=0.98, metadata={"help": "open_clip's for ViTs; 0.999 for ResNets."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "open_clip's for ViTs; 1e-8 for ResNets."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": f"The checkpoint to keep: {', '.join(VAL_METRICS)}, all of val."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Compute activations twice, keep none."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Must stay on: batches are equally large."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Of DistributedDataParallel."})

    def __post_init__(self) -> None:
        self.check_options()
        if self.gradient_accumulation_steps != 1:
            raise InputError(f"gradient_accumulation_steps {self.gradient_accumulation_steps}: {BATCH_WAY_OUT}")
        if self.deepspeed or self.fsdp:
            raise InputError("deepspeed and fsdp: contrastive models fit a GPU and are trained with DDP; leave it out")
        for name, wanted in OF_LANGUAGE_MODELS.items():
            if vars(self)[name] != wanted:
                raise InputError(f"{name} {vars(self)[name]}: is for language models; leave it out")
        if not self.dataloader_drop_last:
            raise InputError("dataloader_drop_last: must stay on: the ranks' batches must be equally large")
        if self.stages is not None and not isinstance(self.stages, list):
            raise InputError("stages: is a list in a YAML file, one mapping for each stage")
        if self.global_batch_size is not None:
            ranks = this_launch().count
            if self.global_batch_size < 1 or self.global_batch_size % ranks:
                raise InputError(f"global_batch_size {self.global_batch_size}: is no multiple of the {ranks} ranks")
            self.per_device_train_batch_size = self.global_batch_size // ranks
        if self.load_best_model_at_end:
            self.metric_for_best_model = self.metric_for_best_model or VAL_METRICS[0]
        super().__post_init__()

    def check_options(self) -> None:
        """Raise [`InputError`] on values that stages may have of their own, and that cannot be."""
        if self.negatives not in NEGATIVES:
            raise InputError(f"negatives `{self.negatives}`: choose one of {', '.join(NEGATIVES)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise InputError(f"micro_batch_size {self.micro_batch_size}: must be at least 1")
        weights = (self.caption_loss_weight, self.contrastive_loss_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise InputError("caption_loss_weight and contrastive_loss_weight: 0 or more, and one of them above 0")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: must be 0 or more")
        kinds_of_schedule = [kind.value for kind in SchedulerType]
        if self.lr_scheduler_type not in kinds_of_schedule:
            way_out = nearest(
                self.lr_scheduler_type, kinds_of_schedule, f"choose one of {', '.join(kinds_of_schedule)}"
            )
            raise InputError(f"lr_scheduler_type `{self.lr_scheduler_type}`: {way_out}")

    def check_again(self) -> None:
        """Raise [`InputError`] as `__post_init__` does, of options that were changed since."""
        self.check_options()
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        metric = (self.metric_for_best_model or VAL_METRICS[0]).removeprefix("eval_")
        if metric not in VAL_METRICS:
            raise InputError(f"metric_for_best_model {metric}: choose one of {', '.join(VAL_METRICS)}, all of val")
        if self.metric_for_best_model:
            self.metric_for_best_model, self.greater_is_better = f"eval_{metric}", True
            if self.eval_strategy == "no":
                raise InputError(f"metric_for_best_model {metric}: nothing is evaluated; set --eval_strategy steps")
            self._check_saves_what_it_scores(metric)


OF_TRAINING = (
    "learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "weight_decay", "lr_scheduler_type", "negatives",
    "max_grad_norm", "caption_loss_weight", "contrastive_loss_weight", "seed", "save_steps", "eval_steps",
    "logging_steps",
)  # fmt: skip
OF_DATA = ("data", "image_root", "subsets", "leave_out", "only", "image_ops", "captions")
OF_TUNING = tuple(item.name for item in fields(PairTuning))


@dataclass
class Stage:
    """A training of its own: the options as they hold in it.

    Attributes:
        name: Of its folder in `output_dir`; empty if the run has no stages.
    """

    name: str
    model: PairModelArguments
    tuning: PairTuning
    data: PairDataArguments
    training: PairTrainArguments


def split_stages(
    model: PairModelArguments, tuning: PairTuning, data: PairDataArguments, training: PairTrainArguments
) -> list[Stage]:
    """The stages of a run in order; one if it names none. Every one but the first begins with the last one's result.

    Raises:
        InputError: A stage has no name, a name twice, or an option that stages cannot have of their own.
    """
    if training.stages is None:
        return [Stage("", model, tuning, data, training)]
    stages: list[Stage] = []
    for given in training.stages:
        name = given.get("name") if isinstance(given, dict) else None
        usable = isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name)
        if not usable or name in [stage.name for stage in stages]:
            raise InputError(f"stages: every stage needs a `name` of its own that can be a folder's, found {given!r}")
        own = {key: value for key, value in given.items() if key != "name"}
        known = (*OF_TRAINING, *OF_DATA, *OF_TUNING)
        if unknown := [key for key in own if key not in known]:
            raise InputError(
                f"stages: {name}: no option `{unknown[0]}`; {nearest(unknown[0], known, 'see docs/sarclip.md')}"
            )
        begin = model
        if stages:
            begin = replace(model, model_name_or_path=stages[-1].training.output_dir, weights=None, image_size=None)
        options = copy.copy(training)
        options.output_dir, options.run_name, options.stages = str(Path(training.output_dir) / name), None, None
        try:
            for key in OF_TRAINING:
                if key in own:
                    setattr(options, key, _typed(PairTrainArguments, key, own[key]))
            options.check_again()
            own_tuning = {key: _typed(PairTuning, key, own[key]) for key in OF_TUNING if key in own}
            own_data = {key: _typed(PairDataArguments, key, own[key]) for key in OF_DATA if key in own}
            stages.append(Stage(name, begin, replace(tuning, **own_tuning), replace(data, **own_data), options))
        except InputError as error:
            raise InputError(f"stages: {name}: {error}") from error
    if not stages:
        raise InputError("stages: the list is empty")
    return stages


def _typed(arguments: type, key: str, value: Any) -> Any:
    """A value of YAML, in which 1e-4 is text, as the option's type."""
    hint = get_type_hints(arguments)[key]
    number = float if float in kinds(hint) else int if int in kinds(hint) else None
    if number and isinstance(value, str):
        try:
            return number(value)
        except ValueError:
            pass
    listed = key in ALSO_LISTS and isinstance(value, list)
    fitting = listed or (fits(value, hint) and not (isinstance(value, str) and str not in kinds(hint)))
    if not fitting:
        raise InputError(f"`{key}: {value}` is not of the type {type_name(hint)}")
    return value
