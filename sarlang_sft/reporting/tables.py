"""Accuracies by task, for the screen and for summary.json."""

from collections.abc import Sequence

import numpy as np

from sarlang_sft.scoring.predictions import Row
from sarlang_sft.scoring.vqa import verdicts


def right_answers(rows: Sequence[Row]) -> list[bool]:
    """Whether each prediction is right under the protocol `exact`; a missing one is wrong."""
    return [verdict is True for verdict in verdicts(rows, "exact")]


def accuracy_by_task(rows: Sequence[Row], columns: dict[str, list[bool]]) -> dict[str, dict[str, float]]:
    """Accuracy (0-1) of every column of verdicts, by task and over `all`, with `n` questions."""
    tasks = sorted({row.task for row in rows})
    groups = {task: [index for index, row in enumerate(rows) if row.task == task] for task in tasks}
    groups |= {"all": list(range(len(rows)))} if rows else {}
    return {
        task: {"n": len(group)} | {name: float(np.mean([flags[i] for i in group])) for name, flags in columns.items()}
        for task, group in groups.items()
    }


def accuracy_table(accuracies: dict[str, dict[str, float]]) -> str:
    """Accuracies in percent as a table for the screen."""
    names = [name for name in accuracies.get("all", {}) if name != "n"]
    wide = max([10, *map(len, names)]) + 1
    lines = [f"{'task':18}{'n':>7}" + "".join(f"{name:>{wide}}" for name in names)]
    for task, entry in accuracies.items():
        lines.append(f"{task:18}{entry['n']:7}" + "".join(f"{100 * entry[name]:{wide - 1}.1f}%" for name in names))
    return "\n".join(lines)


def bare_question(question: str) -> str:
    """A question without the words that the paper's prompt puts around it."""
    return question.removeprefix("Question: ").removesuffix(". Answer the question concisely.")
