"""Two runs on the same questions: which answers changed, and is the difference more than chance?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.intervals import mean_with_interval
from sarlang_sft.scoring.prediction_lines import Problems
from sarlang_sft.scoring.predictions import ELSEWHERE, OTHER_LABEL, Row, group_by


def check_comparable(predictions: Path, problems: Problems) -> None:
    """Raise [`InputError`] if a run answered questions that are not those of the data folder's split."""
    for reason, places in problems.items():
        if reason == OTHER_LABEL or reason.startswith(ELSEWHERE):
            raise InputError(
                f"{predictions}: {places[0]} {reason}, and {len(places) - 1} more; "
                "only runs on the same data and split can be compared"
            )


def compare_verdicts(
    rows: Sequence[Row], ours: Sequence[bool | None], theirs: Sequence[bool | None]
) -> dict[str, Any]:
    """How a run differs from another one, over all and by task.

    Args:
        rows: The questions; at least one.
        ours: Whether this run's answers are right, one for each row; what is undecided counts as wrong.
        theirs: The other run's.

    Returns:
        `n`; answers `to_right` (wrong in the other run) and `to_wrong`; `difference` of the shares of right answers,
        ours less theirs, with its 95% bootstrap interval over images; `p`, of McNemar's exact test that both runs are
        right equally often; and `by_task` the same for each.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; exact by
        the binomial distribution.
    """
    changes = [(our is True) - (their is True) for our, their in zip(ours, theirs, strict=True)]

    def compare(group: Sequence[int]) -> dict[str, Any]:
        chosen = [changes[index] for index in group]
        to_right, to_wrong = chosen.count(1), chosen.count(-1)
        changed = to_right + to_wrong
        return {
            "to_right": to_right,
            "to_wrong": to_wrong,
            "difference": mean_with_interval(chosen, [rows[index].images for index in group]),
            "p": float(binomtest(to_right, changed).pvalue) if changed else 1.0,
        }

    by_task = group_by(rows, lambda row: row.task, compare)
    return {"n": len(rows), **compare(range(len(rows))), "by_task": by_task}


def comparison_summary(comparison: dict[str, Any]) -> str:
    """A comparison as a small table."""
    lines = [f"{'':20}{'n':>8}{'to right':>10}{'to wrong':>10}{'difference':>12}{'95% interval':>20}{'p':>10}"]
    for name, entry in (("all", comparison), *comparison["by_task"].items()):
        change = entry["difference"]
        interval = f"{change['low']:+.4f} - {change['high']:+.4f}"
        counts = f"{entry['n']:8}{entry['to_right']:10}{entry['to_wrong']:10}"
        lines.append(f"{name:20}{counts}{change['value']:+12.4f}{interval:>20}{entry['p']:10.2g}")
    return "\n".join(lines)
