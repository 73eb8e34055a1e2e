"""How long a training takes, from its operations and the share of a GPU's peak that it reaches (MFU)."""

import json
from dataclasses import dataclass
from pathlib import Path

from sarlang_sft.arguments import TrainArguments
from sarlang_sft.errors import InputError
from sarlang_sft.flops import PEAK_FLOPS
from sarlang_sft.planning.rows import RowStatistics

ASSUMED_MFU = 0.35


@dataclass(frozen=True)
class Speed:
    """FLOP of a row, question-answer pairs in a second, hours, cost, and where the MFU is from."""

    flop_per_row: float
    qa_per_s: float
    hours: float
    cost: float | None
    gpu: str
    mfu: float
    mfu_source: str


def find_mfu(given: float | None, measured: str | None) -> tuple[float, str]:
    """The share of the peak, and where it is from; raises [`InputError`] if the file does not have it."""
    if given is not None:
        return given, "given"
    if measured is not None:
        return _measured_mfu(Path(measured)), f"measured, {measured}"
    return ASSUMED_MFU, "assumed"


def expect_speed(
    flop_per_row: float,
    rows: RowStatistics,
    training: TrainArguments,
    gpus: int,
    gpu: str,
    mfu: tuple[float, str],
    price: float | None,
) -> Speed:
    """Hours of the whole training.

    Args:
        gpu: A key of `PEAK_FLOPS`.
        price: Of a GPU for an hour.
    """
    share, source = mfu
    rows_per_s = gpus * PEAK_FLOPS[gpu] * share / flop_per_row
    qa_per_s = rows_per_s * rows.dialogues_per_row
    answered = rows.dialogues * training.num_train_epochs
    if training.max_steps > 0:
        per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * gpus
        answered = training.max_steps * per_step * rows.dialogues_per_row
    hours = answered / qa_per_s / 3600
    return Speed(flop_per_row, qa_per_s, hours, None if price is None else price * hours * gpus, gpu, share, source)


def _measured_mfu(path: Path) -> float:
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        found = [run["mfu"] for run in runs if run["name"] == "trees" and run["mfu"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"measured {path}: no file of benchmarks/throughput.py: {error}") from error
    if not found:
        raise InputError(f"measured {path}: holds no mfu of image trees; it was not measured on a known GPU")
    return sum(found) / len(found)
