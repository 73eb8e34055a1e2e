"""Predictions joined with the data folder they answer, and the result file that every scorer writes."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.records import file_hash, read_records

CAPTION_TASK = "description"
FIELDS = ("id", "label", "predict")
NAMED_MISSING = 3


@dataclass(frozen=True)
class Row:
    """One question of the data folder with its prediction; `predict` is None where there is none.

    `id` is the dialogue's id and the turn, `<dialogue>#<turn>`, turns counted from 0; `label` is the stored answer.
    """

    id: str
    images: tuple[str, ...]
    subset: str
    task: str
    style: str | None
    source: str
    resolution_m: float | None
    question: str
    label: str
    predict: str | None


@dataclass(frozen=True)
class Prediction:
    """What one line of a predictions file says; lines count from 1."""

    line: int
    label: str
    predict: str


BREAKDOWNS: dict[str, Callable[[Row], str]] = {
    "by_task": lambda row: row.task,
    "by_subset": lambda row: row.subset,
    "by_source": lambda row: row.source,
    "by_resolution": lambda row: "unknown" if row.resolution_m is None else f"{row.resolution_m:g}",
}


def join_predictions(predictions: Path, data: Path, split: str, captions: bool) -> list[Row]:
    """Every question of a split with its prediction, in the data folder's order.

    The file may hold captions and answers together; all of it is checked, one kind is returned.

    Args:
        predictions: JSON lines with at least `id`, `label` and `predict`.
        captions: Return the captions (task `description`) if true, all other questions if false.

    Raises:
        InputError: A line is malformed, an id is unknown or repeated, or a label is not the data folder's answer; the
            split has no question of this kind, or none of them has a prediction.
    """
    given = _read_predictions(predictions)
    rows = []
    for row in _questions(data, split):
        answer = given.pop(row.id, None)
        if answer is None:
            rows.append(row)
            continue
        if answer.label != row.label:
            raise InputError(
                f"{predictions}: line {answer.line}: label {answer.label!r} of {row.id!r} is not the answer "
                f"{row.label!r} in {data}; score with the data folder that the predictions were made on"
            )
        rows.append(replace(row, predict=answer.predict))
    for name, answer in given.items():
        raise InputError(
            f"{predictions}: line {answer.line}: id {name!r} is not in split {split} of {data}; "
            "give the data folder and split that the predictions were made on"
        )
    rows = [row for row in rows if (row.task == CAPTION_TASK) == captions]
    kind = "captions" if captions else "VQA questions"
    if not rows:
        raise InputError(f"--data {data}: split {split} has no {kind} to score")
    if all(row.predict is None for row in rows):
        raise InputError(f"{predictions}: no prediction for any of the {len(rows)} {kind} in split {split} of {data}")
    return rows


def _questions(data: Path, split: str) -> Iterator[Row]:
    for record in read_records(data, split):
        for dialogue in record.dialogues:
            for index, turn in enumerate(dialogue.turns):
                yield Row(
                    id=f"{dialogue.id}#{index}",
                    images=tuple(record.images),
                    subset=dialogue.subset,
                    task=dialogue.task,
                    style=dialogue.style,
                    source=record.source,
                    resolution_m=record.resolution_m,
                    question=turn.question,
                    label=turn.answer,
                    predict=None,
                )


def _read_predictions(path: Path) -> dict[str, Prediction]:
    if not path.is_file():
        raise InputError(f"--predictions {path}: no such file; make it with eval/generate.py")
    found: dict[str, Prediction] = {}
    # Bytes, because text mode would also end lines at a lone carriage return.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}: line {number}: no valid JSON ({error}); mend or remove it") from error
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
                raise InputError(f"{path}: line {number}: must be an object with the texts {', '.join(FIELDS)}")
            if row["id"] in found:
                first = found[row["id"]].line
                raise InputError(f"{path}: line {number}: id {row['id']!r} was already answered in line {first}")
            found[row["id"]] = Prediction(line=number, label=row["label"], predict=row["predict"])
    return found


def break_down(rows: Sequence[Row], score: Callable[[list[int]], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`by_task`, `by_subset`, `by_source` and `by_resolution` (metres per pixel): name -> `n` and the group's score.

    Args:
        score: Maps positions in `rows` to `{value, low, high, ...}`.
    """
    result: dict[str, dict[str, Any]] = {}
    for breakdown, name_of in BREAKDOWNS.items():
        members: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(name_of(row), []).append(index)
        result[breakdown] = {name: {"n": len(group), **score(group)} for name, group in sorted(members.items())}
    return result


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises [`InputError`] if it is missing or none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return content


def settings_beside(predictions: Path) -> Path:
    """The file that says what a predictions file is made with."""
    return predictions.with_suffix(".settings.json")


def made_from(predictions: Path, data: Path, split: str, tasks: Sequence[str] = ()) -> dict[str, Any]:
    """What a score is made from, to be kept with it.

    Returns:
        `split`; `tasks`, empty for all; SHA-256 of the split's questions and of the predictions; `settings` that
        eval/generate.py wrote beside the predictions, None where they come from elsewhere.
    """
    beside = settings_beside(predictions)
    return {
        "split": split,
        "tasks": list(tasks),
        "questions": file_hash(data / f"{split}.parquet"),
        "predictions": file_hash(predictions),
        "settings": read_json(beside) if beside.is_file() else None,
    }


def write_result(out: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON; the file appears complete or not at all. Raises [`InputError`] if `out` is a folder."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give the name of a JSON file")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}")
    building.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    building.replace(out)


def summary(result: dict[str, Any], rows: Sequence[Row]) -> str:
    """A result as a small table, with a line on the questions that have no prediction."""
    lines = [f"protocol {result['protocol']}", f"{'':34}{'n':>8}{'value':>10}{'95% interval':>20}"]
    entries = [("overall", {"n": result["n"], **result["overall"]})]
    entries += [
        (f"{breakdown.removeprefix('by_'):12}{name}", entry)
        for breakdown in BREAKDOWNS
        for name, entry in result[breakdown].items()
    ]
    for name, entry in entries:
        interval = f"{entry['low']:.4f} - {entry['high']:.4f}"
        lines.append(f"{name:34}{entry['n']:8}{entry['value']:10.4f}{interval:>20}")
    missing = [row.id for row in rows if row.predict is None]
    if missing:
        names = ", ".join(missing[:NAMED_MISSING]) + (" ..." if len(missing) > NAMED_MISSING else "")
        lines.append(f"{len(missing)} of {len(rows)} have no prediction and count as wrong: {names}")
    return "\n".join(lines)
