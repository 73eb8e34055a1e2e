"""A training planned before any weight is loaded."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from transformers.training_args import OptimizerNames

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.batch_size import accumulation_steps
from sarlang_sft.errors import InputError
from sarlang_sft.flops import PEAK_FLOPS, Work, count_flops
from sarlang_sft.planning.memory import Memory, plan_memory
from sarlang_sft.planning.model import Batch, Setup, build_planned
from sarlang_sft.planning.published import Architecture
from sarlang_sft.planning.rows import RowStatistics
from sarlang_sft.planning.sharding import FSDP2, Sharding, read_sharding
from sarlang_sft.planning.speed import ASSUMED_MFU, Speed, expect_speed, find_mfu
from sarlang_sft.trainable import ComponentCount, component_table, count_components
from sarlang_sft.tuning import COMPONENTS, TuningArguments

DOUBT = 0.15  # the limit of the tests: docs/planner.md


@dataclass
class PlanArguments:
    """The machine to plan for."""

    gpus: int = field(default=8, metadata={"help": "GPUs of all nodes together (with use_cpu: processes)."})
    gpu_memory: float = field(
        default=80.0, metadata={"help": "Memory of each, in GB (10^9 bytes: MiB of nvidia-smi x 0.001049)."}
    )
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
        if not 0 < self.gpu_memory < math.inf:
            raise InputError(f"gpu_memory {self.gpu_memory}: must be above 0 GB")
        if self.gpu not in PEAK_FLOPS:
            raise InputError(f"gpu `{self.gpu}`: choose one of {', '.join(PEAK_FLOPS)}")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise InputError(f"mfu {self.mfu}: must be above 0 and at most 1")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise InputError(f"price {self.price}: must be at least 0")


@dataclass
class PlannedTrainArguments(TrainArguments):
    """The training's options; what shards it is read here and not started, and this machine's devices do not matter.

    Attributes:
        on_cuda: The training that is planned runs on GPUs.
        deepspeed_file, fsdp_wanted: What shards it.
        step_rows: The option `global_batch_size`, to be shared out among the ranks that are planned for.
    """

    def __post_init__(self) -> None:
        self.on_cuda = not self.use_cpu
        self.deepspeed_file, self.deepspeed = self.deepspeed, None
        self.fsdp_wanted, self.fsdp = bool(self.fsdp), False
        self.step_rows, self.global_batch_size = self.global_batch_size, None
        if self.deepspeed_file and self.fsdp_wanted:
            raise InputError("deepspeed and fsdp: choose one of them")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if vars(self)[name] < 1:
                raise InputError(f"{name} {vars(self)[name]}: must be at least 1")
        if self.on_cuda and self.bf16 is None:
            self.bf16 = not self.fp16
        super().__post_init__()


@dataclass(frozen=True)
class TrainingPlan:
    """All that is known before a training.

    Attributes:
        table: Of the components, for the screen.
        speed: None on a CPU.
        limit: Bytes of a device.
    """

    setup: Setup
    counts: list[ComponentCount]
    rows: RowStatistics
    memory: Memory
    speed: Speed | None
    table: str
    limit: float

    @property
    def fits(self) -> bool:
        """Whether every rank has room for it."""
        return self.memory.needed <= self.limit

    @property
    def verdict(self) -> str:
        """`fits` only where it would also fit if the planner were wrong by as much as the tests allow."""
        if not self.fits:
            return "DOES NOT FIT"
        return "fits" if self.memory.needed * (1 + DOUBT) <= self.limit else f"MAY NOT FIT (doubt: {DOUBT:.0%})"


def make_plan(
    architecture: Architecture,
    rows: RowStatistics,
    model: ModelArguments,
    tuning: TuningArguments,
    data: DataArguments,
    training: PlannedTrainArguments,
    machine: PlanArguments,
) -> TrainingPlan:
    """Plan a training; see `TrainingPlan`."""
    mfu = find_mfu(machine.mfu, machine.measured)
    if training.step_rows is not None:
        per_device, given = training.per_device_train_batch_size, training.gradient_accumulation_steps
        training.gradient_accumulation_steps = accumulation_steps(training.step_rows, per_device, given, machine.gpus)
    setup = make_setup(rows, model, tuning, data, training, machine.gpus)
    planned = build_planned(setup, architecture)
    counts = count_components(planned.model, architecture.backbone, planned.trainable)
    flops = count_flops(planned.model, architecture.backbone)
    memory = plan_memory(setup, planned, architecture)
    speed = None
    if training.on_cuda:
        images, scored = round(rows.images_per_row * rows.image_tokens), round(rows.scored_per_row)
        work = Work(round(rows.tokens_per_row), images, scored)
        speed = expect_speed(flops(work), rows, training, machine.gpus, machine.gpu, mfu, machine.price)
    table = component_table(counts, planned.trainable, tuning)
    return TrainingPlan(setup, counts, rows, memory, speed, table, machine.gpu_memory * 1e9)


def make_setup(
    rows: RowStatistics,
    model: ModelArguments,
    tuning: TuningArguments,
    data: DataArguments,
    training: PlannedTrainArguments,
    ranks: int,
) -> Setup:
    """What decides on memory; rows of image trees count as full, others as long as the longest one."""
    if model.attn_implementation == "eager":
        raise InputError(
            "attn_implementation eager: keeps a score for every pair of tokens; the planner knows the others"
        )
    checkpointed: tuple[str, ...] = ()
    if training.gradient_checkpointing:
        checkpointed = COMPONENTS if training.checkpointed == "both" else (training.checkpointed,)
    tokens = data.max_tokens_per_row if data.image_trees else rows.longest
    count = training.per_device_train_batch_size
    filled = tokens / rows.tokens_per_row if data.image_trees else 1
    scored = math.ceil(filled * rows.scored_per_row) if training.on_cuda else tokens - 1  # TRL's head on a CPU
    images = math.ceil(count * filled * rows.images_per_row)
    sdpa = model.attn_implementation == "sdpa" or not training.on_cuda
    return Setup(
        dtype=model.dtype,
        tuning=tuning,
        autocast=bool(training.bf16 or training.fp16),
        checkpointed=checkpointed,
        batch=Batch(count, tokens, images, rows.width, rows.height, scored),
        trees=data.image_trees,
        dense_mask=data.image_trees and sdpa,
        accumulates=training.gradient_accumulation_steps > 1,
        optimiser=OptimizerNames(training.optim).value,
        sharding=_sharding(training, ranks),
        ranks=ranks,
        on_cuda=training.on_cuda,
    )


def _sharding(training: PlannedTrainArguments, ranks: int) -> Sharding:
    if training.fsdp_wanted:
        return FSDP2
    if not training.deepspeed_file:
        return Sharding()
    rows = training.per_device_train_batch_size
    per_step = rows * training.gradient_accumulation_steps * ranks
    return read_sharding(Path(training.deepspeed_file), per_step, rows)
