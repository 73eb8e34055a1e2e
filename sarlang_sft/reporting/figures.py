"""Figures beside the main scores, as tables of texts: near misses, facts in captions, what captions are like."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sarlang_sft.reporting.given import Run
from sarlang_sft.scoring.vqa import score_vqa

Result = dict[str, Any]  # a scorer's, or a part of it
Figure = tuple[str, Callable[[Result], str]]  # its name, and how it is read from a result


class Table(NamedTuple):
    """A table: the names of its columns, and of every row its name and its cells."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def _share(found: Result) -> str:
    """A share with its interval, of a scorer's result."""
    if found["value"] is None:
        return "–"
    return f"{100 * found['value']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


NEAR_MISSES: dict[str, list[Figure]] = {
    "counting": [
        ("counts: mean absolute error", lambda found: "–" if found["mae"] is None else f"{found['mae']:.2f}"),
        ("counts: at most one off", lambda found: _percent(found["within_one"])),
        ("counts: answers that give a number", lambda found: f"{found['with_number']:,} of {found['n']:,}"),
    ],
    "positions": [("positions: right, or finer or coarser than the truth", lambda found: _share(found["compatible"]))],
    "lists": [
        ("things named: precision", lambda found: _percent(found["precision"])),
        ("things named: recall", lambda found: _percent(found["recall"])),
        ("things named: F1", lambda found: _percent(found["f1"])),
    ],
    "boxes": [
        ("boxes: TP / (TP + FP + FN) at IoU 0.25", lambda found: _share(found["iou_0.25"])),
        ("boxes: TP / (TP + FP + FN) at IoU 0.5", lambda found: _share(found["iou_0.5"])),
    ],
}
FACTS: list[Figure] = [
    ("classes named that are there", lambda found: _share(found["class_precision"])),
    ("classes there that are named", lambda found: _share(found["class_recall"])),
    ("numbers said that are right", lambda found: _share(found["count_precision"])),
    ("classes there named with the right number", lambda found: _share(found["count_recall"])),
    ("classes made up", lambda found: f"{found['hallucinated']:,}"),
    ("classes missed", lambda found: f"{found['missed']:,}"),
    ("wrong numbers of classes that are there", lambda found: f"{found['wrong_numbers']:,}"),
    ("captions that state none of the classes", lambda found: f"{found['without_fact']:,} of {found['captions']:,}"),
]
OF_A_CLASS = ("there", "named", "hallucinated", "missed", "numbered", "right_number")
OF_TEXTS: list[Figure] = [
    ("words, mean", lambda found: f"{found['words']['mean']:.1f}"),
    ("words, median", lambda found: f"{found['words']['median']:g}"),
    ("words, 95% have at most", lambda found: f"{found['words']['p95']:.0f}"),
    ("repeat themselves", lambda found: _percent(found["loops"])),
    ("end in mid-sentence", lambda found: _percent(found["unfinished"])),
    ("distinct word pairs", lambda found: _percent(found["distinct"]["2"])),
]
OF_PREDICTIONS: list[Figure] = [
    ("missing", lambda found: f"{found['missing']:,} of {found['captions']:,}"),
    ("empty", lambda found: f"{found['empty']:,}"),
    ("different texts", lambda found: f"{found['different']:,}"),
    ("most frequent", lambda found: _most_frequent(found["most_frequent"])),
]


def _most_frequent(most: Result | None) -> str:
    return "–" if most is None else f"{most['captions']:,} times: {most['text']}"


def near_misses(runs: Sequence[Run]) -> Table | None:
    """How wrong wrong answers are, of every run; None if no question is of a kind that tells."""
    results = [score_vqa(run.questions, "exact") for run in runs]
    rows = [
        (name, [say(result[part]) for result in results])
        for part, figures in NEAR_MISSES.items()
        if part in results[0]
        for name, say in figures
    ]
    return Table("How wrong is wrong?", [run.name for run in runs], rows) if rows else None


def caption_tables(captions: dict[str, Result]) -> list[Table]:
    """Facts and what texts are like of every file of eval/score_caption.py."""
    told = {name: result["facts"] for name, result in captions.items() if result["facts"]}
    tables = []
    if told:
        rows = [(name, [say(facts) for facts in told.values()]) for name, say in FACTS]
        tables.append(Table("Facts, against the boxes of the images", list(told), rows))
    for run, facts in told.items():
        rows = [(name, [f"{of[one]:,}" for one in OF_A_CLASS]) for name, of in facts["by_class"].items()]
        columns = ["there", "named", "made up", "missed", "with a number", "the right one"]
        tables.append(Table(f"Captions of {run} by what they say of a class", columns, rows))
    statistics = {name: result["statistics"] for name, result in captions.items()}
    texts = {"references": next(iter(statistics.values()))["references"]} if statistics else {}
    texts |= {name: found["predictions"] for name, found in statistics.items()}
    rows = [(name, ["–" if found is None else say(found) for found in texts.values()]) for name, say in OF_TEXTS]
    rows += [(name, ["", *(say(found) for found in statistics.values())]) for name, say in OF_PREDICTIONS]
    return [*tables, Table("What captions are like", list(texts), rows)] if texts else tables
