"""A training planned before any weight is loaded: parameters, memory, hours, cost, and what to change if it is too big."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import Backbone
from sarlang_sft.errors import InputError
from sarlang_sft.flops import PEAK_FLOPS, Work, count_flops
from sarlang_sft.planning_memory import Memory, Setup, Zero, build_planned, plan_memory, read_zero
from sarlang_sft.planning_rehearsal import Batch
from sarlang_sft.planning_rows import RowStatistics, row_statistics
from sarlang_sft.trainable import ComponentCount, component_table, count_components
from sarlang_sft.tuning import COMPONENTS, TuningArguments
from sarlang_sft.whole_output import whole_file

ASSUMED_MFU = 0.35


@dataclass
class PlanArguments:
    """The machine to plan for."""

    gpus: int = field(default=8, metadata={"help": "GPUs of all nodes together."})
    gpu_memory: float = field(default=80.0, metadata={"help": "Memory of each, in GB (10^9 bytes)."})
    gpu: str = field(default="A100", metadata={"help": f"Its kind, for its peak: {', '.join(PEAK_FLOPS)}."})
    mfu: float | None = field(
        default=None,
        metadata={
            "help": f"Share of the peak that a training reaches; default: that of --measured, else {ASSUMED_MFU} "
            "(assumed)."
        },
    )
    measured: str | None = field(
        default=None, metadata={"help": "A file of benchmarks/throughput.py with an mfu, which is then taken."}
    )
    price: float | None = field(default=None, metadata={"help": "Price of a GPU for an hour, in any currency."})
    out: str | None = field(default=None, metadata={"help": "Also write the plan to this JSON file."})

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise InputError(f"gpus {self.gpus}: must be at least 1")
        if self.gpu_memory <= 0:
            raise InputError(f"gpu_memory {self.gpu_memory}: must be above 0")
        if self.gpu not in PEAK_FLOPS:
            raise InputError(f"gpu `{self.gpu}`: choose one of {', '.join(PEAK_FLOPS)}")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise InputError(f"mfu {self.mfu}: must be above 0 and at most 1")


@dataclass
class PlannedTrainArguments(TrainArguments):
    """The training's options; its DeepSpeed configuration is read here, and DeepSpeed not started."""

    def __post_init__(self) -> None:
        self.zero_file, self.deepspeed = self.deepspeed, None
        super().__post_init__()


@dataclass(frozen=True)
class Change:
    """A change to a setup that may make it fit; `change` gives None where it is already so or impossible."""

    name: str
    change: Callable[[Setup], Setup | None]


def _checkpointing(setup: Setup) -> Setup | None:
    return None if setup.checkpointed == COMPONENTS else replace(setup, checkpointed=COMPONENTS)


def _zero(stage: int, offload: bool) -> Callable[[Setup], Setup | None]:
    def change(setup: Setup) -> Setup | None:
        cut = replace(setup.zero, stage=stage, offload_optimiser=offload, offload_weights=offload and stage == 3)
        possible = (setup.ranks > 1 or offload) and not (stage == 3 and setup.tuning.bits())
        return replace(setup, zero=cut) if possible and (setup.zero.stage or 0) <= stage else None

    return change


def _half_row(setup: Setup) -> Setup | None:
    batch = setup.batch
    if batch.rows > 1:
        return replace(setup, batch=_scaled(batch, (batch.rows + 1) // 2, batch.tokens))
    return replace(setup, batch=_scaled(batch, 1, batch.tokens // 2))


def _scaled(batch: Batch, rows: int, tokens: int) -> Batch:
    share = rows * tokens / (batch.rows * batch.tokens)
    images = max(min(batch.images, 1), math.ceil(batch.images * share))
    return batch._replace(rows=rows, tokens=tokens, images=images, scored=batch.scored * tokens // batch.tokens)


def _qlora(setup: Setup) -> Setup | None:
    if setup.tuning.language_model != "lora" or setup.tuning.bits() or setup.zero.stage == 3:
        return None
    if setup.tuning.init_lora_weights == "pissa":
        return None
    return replace(setup, tuning=replace(setup.tuning, load_in_4bit=True))


# In the order in which they cost least: nothing learned, then speed, then another way to tune.
CHANGES = (
    Change("--gradient_checkpointing true --checkpointed both", _checkpointing),
    Change("--deepspeed deepspeed_configs/zero2.json", _zero(2, False)),
    Change("--deepspeed deepspeed_configs/zero3.json", _zero(3, False)),
    Change("half as much in a batch (per_device_train_batch_size, then max_tokens_per_row)", _half_row),
    Change("--tuning qlora", _qlora),
    Change("--deepspeed deepspeed_configs/zero2_offload.json", _zero(2, True)),
    Change("--deepspeed deepspeed_configs/zero3_offload.json", _zero(3, True)),
)


@dataclass(frozen=True)
class Speed:
    """FLOP of a row, question-answer pairs in a second, hours, cost, and where the MFU is from."""

    flop_per_row: float
    qa_per_s: float
    hours: float
    cost: float | None
    mfu: float
    mfu_source: str


@dataclass(frozen=True)
class TrainingPlan:
    """All that is known before a training.

    Attributes:
        changes: Name of every possible change and the memory with it; empty if the training fits.
        table: Of the components, for the screen.
    """

    setup: Setup
    counts: list[ComponentCount]
    rows: RowStatistics
    memory: Memory
    speed: Speed
    changes: dict[str, Memory]
    table: str
    limit: float

    @property
    def fits(self) -> bool:
        """Whether every rank has room for it."""
        return self.memory.needed <= self.limit


def make_plan(
    model: ModelArguments,
    tuning: TuningArguments,
    data: DataArguments,
    training: PlannedTrainArguments,
    machine: PlanArguments,
    processor: ProcessorMixin,
    backbone: Backbone,
) -> TrainingPlan:
    """Plan a training; see `TrainingPlan`."""
    zero = read_zero(Path(training.zero_file) if training.zero_file else None)
    rows = row_statistics(data, processor, backbone, None)
    setup = make_setup(model, tuning, data, training, machine, rows, zero)
    planned = build_planned(setup, backbone)
    counts = count_components(planned.model, backbone, planned.trainable)
    flops = count_flops(planned.model, backbone)
    memory = plan_memory(setup, planned, processor, backbone)
    work = Work(
        round(rows.tokens_per_row), round(rows.images_per_row * rows.image_tokens), round(rows.scored_per_row)
    )
    limit = machine.gpu_memory * 1e9
    changes: dict[str, Memory] = {}
    if memory.needed > limit:
        changed = {change.name: change.change(setup) for change in CHANGES}
        changes = {
            name: plan_memory(other, build_planned(other, backbone), processor, backbone)
            for name, other in changed.items()
            if other
        }
    table = component_table(counts, planned.trainable, tuning)
    speed = _speed(flops(work), rows, training, machine)
    return TrainingPlan(setup, counts, rows, memory, speed, changes, table, limit)


def make_setup(
    model: ModelArguments,
    tuning: TuningArguments,
    data: DataArguments,
    training: TrainArguments,
    machine: PlanArguments,
    rows: RowStatistics,
    zero: Zero,
) -> Setup:
    """What decides on memory; rows count as full, as the longest ones are."""
    checkpointed: tuple[str, ...] = ()
    if training.gradient_checkpointing:
        components = {"both": COMPONENTS, "vision_tower": ("vision_tower",), "language_model": ("language_model",)}
        checkpointed = components[training.checkpointed]
    tokens = data.max_tokens_per_row if data.image_trees else math.ceil(rows.tokens_per_row)
    batch = Batch(1, math.ceil(rows.tokens_per_row), math.ceil(rows.images_per_row), rows.width, rows.height,
                  math.ceil(rows.scored_per_row))  # fmt: skip
    batch = _scaled(batch, training.per_device_train_batch_size, tokens)
    return Setup(
        model_name_or_path=model.model_name_or_path,
        dtype=model.dtype,
        tuning=tuning,
        autocast=bool(training.bf16),
        checkpointed=checkpointed,
        batch=batch,
        dense_mask=data.image_trees and model.attn_implementation == "sdpa",
        accumulates=training.gradient_accumulation_steps > 1,
        optimiser=getattr(training.optim, "value", training.optim),
        zero=zero,
        ranks=machine.gpus,
    )


def _speed(flop_per_row: float, rows: RowStatistics, training: TrainArguments, machine: PlanArguments) -> Speed:
    mfu, source = machine.mfu or ASSUMED_MFU, "given" if machine.mfu else "assumed"
    if machine.mfu is None and machine.measured:
        mfu, source = _measured_mfu(Path(machine.measured)), f"measured, {machine.measured}"
    rows_per_s = machine.gpus * PEAK_FLOPS[machine.gpu] * mfu / flop_per_row
    qa_per_s = rows_per_s * rows.dialogues_per_row
    answered = rows.dialogues * training.num_train_epochs
    if training.max_steps > 0:
        per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * machine.gpus
        answered = training.max_steps * per_step * rows.dialogues_per_row
    hours = answered / qa_per_s / 3600
    cost = None if machine.price is None else machine.price * hours * machine.gpus
    return Speed(flop_per_row, qa_per_s, hours, cost, mfu, source)


def _measured_mfu(path: Path) -> float:
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        found = [run["mfu"] for run in runs if run["name"] == "trees" and run["mfu"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"measured {path}: no file of benchmarks/throughput.py: {error}") from error
    if not found:
        raise InputError(f"measured {path}: holds no mfu of image trees; it was not measured on a known GPU")
    return sum(found) / len(found)


def describe(plan: TrainingPlan) -> str:
    """The plan as a table for the screen."""
    setup, rows, memory, speed = plan.setup, plan.rows, plan.memory, plan.speed
    batch = setup.batch
    lines = [
        plan.table,
        "",
        f"rows: {rows.source}",
        f"  {rows.image_tokens} tokens an image of {rows.width} x {rows.height}; {rows.dialogues_per_image:.1f} "
        f"dialogues an image; a row: {rows.tokens_per_row:,.0f} tokens, {rows.images_per_row:.1f} images, "
        f"{rows.dialogues_per_row:.1f} dialogues, {rows.scored_per_row:,.0f} scored tokens",
        "",
        f"memory of each of {setup.ranks} GPUs, {setup.zero}; checkpointed: {', '.join(setup.checkpointed) or 'nothing'}; "
        f"{batch.rows} x {batch.tokens:,} tokens with {batch.images} images at once",
    ]
    lines += [f"  {name:42} {size / 1e9:9.3f} GB" for name, size in memory.parts.items() if size]
    lines += [
        f"  {'peak of what torch allocates':42} {memory.allocated / 1e9:9.3f} GB",
        f"  {'with context, NCCL, fragmentation (assumed)':42} {memory.needed / 1e9:9.3f} GB of "
        f"{plan.limit / 1e9:g}: {'fits' if plan.fits else 'DOES NOT FIT'}",
    ]
    if memory.host:
        lines.append(f"  {'on the CPU, all ranks together':42} {memory.host / 1e9:9.3f} GB")
    lines += ["  " + line for line in _describe_step(memory)]
    if plan.changes:
        lines += ["", "what would change it (each alone, cheapest first):"]
        lines += [
            f"  {other.needed / 1e9:9.3f} GB {'fits' if other.needed <= plan.limit else 'too big':8} {name}"
            for name, other in plan.changes.items()
        ]
    lines += [
        "",
        f"speed at an MFU of {speed.mfu:.2f} ({speed.mfu_source}): {speed.qa_per_s:,.0f} QA/s, {speed.hours:,.1f} hours"
        + ("" if speed.cost is None else f", cost {speed.cost:,.0f}"),
    ]
    return "\n".join(lines)


def _describe_step(memory: Memory) -> list[str]:
    step = memory.step
    return [
        f"of a step: {step.vision / 1e9:.3f} GB kept by vision tower and projector, {step.language_model / 1e9:.3f} GB "
        f"by the language model, {step.transient / 1e9:.3f} GB for a moment (a recomputed layer, logits)"
    ]


def write_plan(plan: TrainingPlan, path: Path) -> None:
    """The plan as JSON: bytes, FLOP, seconds' shares as the table shows them."""

    def memory(of: Memory) -> dict[str, Any]:
        return {"parts": of.parts, "step": asdict(of.step), "allocated": of.allocated, "needed": of.needed, "host": of.host}

    content = {
        "setup": {**asdict(plan.setup), "batch": plan.setup.batch._asdict()},
        "components": [{**asdict(count), "state": count.state} for count in plan.counts],
        "rows": asdict(plan.rows),
        "memory": memory(plan.memory),
        "limit": plan.limit,
        "fits": plan.fits,
        "changes": {name: memory(other) for name, other in plan.changes.items()},
        "speed": asdict(plan.speed),
    }
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())
