"""A training planned before any weight is loaded: parameters, memory, hours, cost, and what to change."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, ProcessorMixin
from transformers.training_args import OptimizerNames

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import Backbone
from sarlang_sft.errors import InputError
from sarlang_sft.flops import PEAK_FLOPS, Work, count_flops
from sarlang_sft.planning_changes import CHANGES, add_up
from sarlang_sft.planning_memory import Memory, Setup, Zero, build_planned, plan_memory, read_zero
from sarlang_sft.planning_rehearsal import Batch
from sarlang_sft.planning_rows import RowStatistics, row_statistics
from sarlang_sft.trainable import ComponentCount, component_table, count_components
from sarlang_sft.tuning import COMPONENTS, TuningArguments

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
    context = AutoConfig.from_pretrained(model.model_name_or_path).get_text_config().max_position_embeddings
    rows = row_statistics(data, processor, backbone, context)
    setup = make_setup(model, tuning, data, training, machine, rows, zero)
    planned = build_planned(setup, backbone)
    counts = count_components(planned.model, backbone, planned.trainable)
    flops = count_flops(planned.model, backbone)
    memory = plan_memory(setup, planned, processor, backbone)
    work = Work(round(rows.tokens_per_row), round(rows.images_per_row * rows.image_tokens), round(rows.scored_per_row))
    limit = machine.gpu_memory * 1e9
    changes: dict[str, Memory] = {}
    if memory.needed > limit:

        def memory_of(other: Setup) -> Memory:
            return plan_memory(other, build_planned(other, backbone), processor, backbone)

        changed = {change.name: change.change(setup) for change in CHANGES}
        changes = {name: memory_of(other) for name, other in changed.items() if other}
        if all(other.needed > limit for other in changes.values()):
            changes |= add_up(setup, memory_of, limit)
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
    count = training.per_device_train_batch_size
    filled = tokens / rows.tokens_per_row
    images, scored = math.ceil(count * filled * rows.images_per_row), math.ceil(filled * rows.scored_per_row)
    batch = Batch(count, tokens, images, rows.width, rows.height, scored)
    return Setup(
        model_name_or_path=model.model_name_or_path,
        dtype=model.dtype,
        tuning=tuning,
        autocast=bool(training.bf16),
        checkpointed=checkpointed,
        batch=batch,
        dense_mask=data.image_trees and model.attn_implementation == "sdpa",
        accumulates=training.gradient_accumulation_steps > 1,
        optimiser=OptimizerNames(training.optim).value,
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
