"""What transformers' checkpoints forget of a run: the loss since the last log line, and an evaluation that is owed."""

import json
from pathlib import Path
from statistics import fmean
from typing import NamedTuple


class Progress(NamedTuple):
    """Where a rank is between two log lines.

    Attributes:
        loss_since_log: Sum of this rank's losses of the steps since then.
        last_logged: The step of that line.
        loss_logged: Sum of all ranks' mean losses up to it.
        owes_evaluation: The run was stopped where it would have evaluated.
    """

    loss_since_log: float
    last_logged: int
    loss_logged: float
    owes_evaluation: bool


def save_progress(folder: Path, progress: Progress, rank: int) -> None:
    """Write it into a checkpoint."""
    (folder / f"progress-{rank}.json").write_text(json.dumps(progress._asdict()) + "\n", encoding="utf-8")


def load_progress(folder: Path, rank: int, ranks: int) -> Progress:
    """Read it from a checkpoint; if that had other ranks, each takes the mean of their losses."""
    paths = sorted(folder.glob("progress-*.json"))
    found = [Progress(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    if len(paths) == ranks:
        return Progress(**json.loads((folder / f"progress-{rank}.json").read_text(encoding="utf-8")))
    return found[0]._replace(loss_since_log=fmean(one.loss_since_log for one in found))
