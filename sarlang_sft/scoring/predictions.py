"""Predictions joined with the data folder they answer, and the result file that every scorer writes."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sarlang_sft.errors import InputError
from sarlang_sft.records import SPLITS, Box, file_hash, read_dialogue_table, read_records
from sarlang_sft.scoring.prediction_lines import Boxes, Problems, read_predictions
from sarlang_sft.whole_output import whole_file

CAPTION_TASK = "description"
NAMED_EXAMPLES = 3
OTHER_LABEL = "answers another label than the data folder's"
ELSEWHERE = "is not in the split"


@dataclass(frozen=True)
class Row:
    """One question of the data folder with its prediction; `predict` is None where there is none.

    Attributes:
        id: The dialogue's id and the turn, `<dialogue>#<turn>`, turns counted from 0.
        label: The stored answer.
        boxes: Of the image, in pixels of the stored image; a text names them as `<box:i>`.
        logprob: Sum of the log-probabilities of the prediction's tokens, if it is known.
        predicted: Boxes of the prediction, in pixels of the stored image, one without numbers for each that cannot be
            used; None where the file says nothing of boxes.
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
    boxes: tuple[Box, ...] = ()
    logprob: float | None = None
    predicted: Boxes | None = None


class Joined(NamedTuple):
    """All questions of a split and of one kind, in the data folder's order, and what is wrong with their predictions.

    The rows are always those of the split: a prediction that cannot be used leaves its question without one.
    """

    rows: list[Row]
    problems: Problems


BREAKDOWNS: dict[str, Callable[[Row], str]] = {
    "by_task": lambda row: row.task,
    "by_subset": lambda row: row.subset,
    "by_source": lambda row: row.source,
    "by_resolution": lambda row: "unknown" if row.resolution_m is None else f"{row.resolution_m:g}",
}


def join_predictions(predictions: Path, data: Path, split: str, captions: bool) -> Joined:
    """Every question of a split with its prediction, of one kind.

    The file may hold captions and answers together; all of it is checked, one kind is returned. Lines that cannot be
    used are counted under `problems`: of several answers to one question the first counts.

    Args:
        predictions: JSON lines with at least `id` and `predict`.
        captions: Return the captions (task `description`) if true, all other questions if false.

    Raises:
        InputError: There is no such file, the split has no question of this kind, or none of them has a prediction.
    """
    rows, problems = join_everything(predictions, data, split)
    rows = [row for row in rows if (row.task == CAPTION_TASK) == captions]
    kind = "captions" if captions else "VQA questions"
    if not rows:
        raise InputError(f"--data {data}: split {split} has no {kind} to score")
    check_answered(rows, kind, problems, predictions, data, split)
    return Joined(rows, {**problems, **absent(rows)})


def join_everything(predictions: Path, data: Path, split: str) -> Joined:
    """Every question and caption of a split with its prediction; `problems` are those of lines alone.

    Raises:
        InputError: There is no such file, data folder or split.
    """
    given, problems = read_predictions(predictions)
    rows = []
    for row in _questions(data, split):
        answer = given.pop(row.id, None)
        if answer is not None and answer.label not in (None, row.label):
            problems[OTHER_LABEL].append(f"line {answer.line}")
        elif answer is not None:
            row = replace(row, predict=answer.predict, logprob=answer.logprob, predicted=answer.boxes)
        rows.append(row)
    elsewhere = _splits_of(given, data, split)
    for name, answer in given.items():
        reason = f"{ELSEWHERE} but in {elsewhere[name]}" if name in elsewhere else ELSEWHERE
        problems[reason].append(f"line {answer.line}")
    return Joined(rows, dict(problems))


def check_answered(
    rows: Sequence[Row], kind: str, problems: Problems, predictions: Path, data: Path, split: str
) -> None:
    """Raise [`InputError`] if none of the rows has a prediction; it names the split that the file is of, if one is."""
    if any(row.predict is not None for row in rows):
        return
    hint = "give the data folder and split that the predictions were made on"
    for other in SPLITS:
        if places := problems.get(f"{ELSEWHERE} but in {other}"):
            hint = f"{len(places)} of its answers are of the split {other}: --split {other}"
    raise InputError(
        f"{predictions}: no prediction for any of the {len(rows)} {kind} in split {split} of {data}; {hint}"
    )


def absent(rows: Sequence[Row]) -> Problems:
    """The questions without a prediction, and those with an empty one."""
    found = {
        "has no prediction": [row.id for row in rows if row.predict is None],
        "is answered with nothing": [row.id for row in rows if row.predict is not None and not row.predict.strip()],
    }
    return {reason: places for reason, places in found.items() if places}


def choose_tasks(rows: list[Row], tasks: Sequence[str]) -> list[Row]:
    """The rows of these applications, all if none is named; raises [`InputError`] if there is none."""
    chosen = [row for row in rows if not tasks or row.task in tasks]
    if not chosen:
        raise InputError(f"--tasks {' '.join(tasks)}: the split has no question of these applications")
    return chosen


def _splits_of(ids: Collection[str], data: Path, split: str) -> dict[str, str]:
    """The other split that holds a question, for those of `ids` that are in one."""
    found: dict[str, str] = {}
    # An id of JSON may hold a lone surrogate, which is no text to Arrow.
    dialogues = pa.array([name.rpartition("#")[0].encode(errors="replace").decode() for name in ids], pa.string())
    for other in SPLITS if ids else ():
        if other != split and (data / f"{other}.parquet").is_file():
            held = pc.is_in(dialogues, read_dialogue_table(data, other)["id"])
            found |= {name: other for name, here in zip(ids, held.to_pylist(), strict=True) if here}
    return found


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
                    boxes=tuple(record.boxes),
                )


def break_down(rows: Sequence[Row], score: Callable[[list[int]], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`by_task`, `by_subset`, `by_source` and `by_resolution` (metres per pixel): name -> `n` and the group's score.

    Args:
        score: Maps positions in `rows` to `{value, low, high, ...}`.
    """
    return {breakdown: group_by(rows, name_of, score) for breakdown, name_of in BREAKDOWNS.items()}


def group_by(
    rows: Sequence[Row], name_of: Callable[[Row], str], score: Callable[[list[int]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The score of every group of rows of one name, in order of the names, with its size `n`.

    Args:
        score: Maps positions in `rows` to figures.
    """
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(name_of(row), []).append(index)
    return {name: {"n": len(group), **score(group)} for name, group in sorted(members.items())}


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
    """Write a result as JSON; the file appears complete or not at all. Raises [`InputError`] if it cannot."""
    with whole_file(out) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


def count_problems(problems: Problems) -> dict[str, dict[str, Any]]:
    """For a result file: by reason its `count` and the first places, `examples`."""
    return {reason: {"count": len(places), "examples": places[:NAMED_EXAMPLES]} for reason, places in problems.items()}


def summary(result: dict[str, Any]) -> str:
    """A result as a small table, with a line on every problem of the predictions."""
    heads = "".join(f"{head:>{width}}" for head, width in (("n", 10), ("answered", 10), ("value", 10)))
    lines = [result.get("signature", f"protocol {result['protocol']}"), f"{'':34}{heads}{'95% interval':>20}"]
    entries = [("overall", result)]
    entries += [
        (f"{breakdown.removeprefix('by_'):12}{name}", entry)
        for breakdown in ("by_type", *BREAKDOWNS)
        for name, entry in result.get(breakdown, {}).items()
    ]
    for name, entry in entries:
        score = entry.get("overall", entry)
        interval = f"{score['low']:.4f} - {score['high']:.4f}"
        answered = entry.get("answered", "")
        lines.append(f"{name:34}{entry['n']:10}{answered:10}{score['value']:10.4f}{interval:>20}")
    lines.append(f"{result['answered']} of {result['n']} were answered; a question without an answer counts as wrong")
    if result.get("of_answered"):
        lines[-1] += f" (over the answered alone: {result['of_answered']['value']:.4f})"
    for reason, found in result["problems"].items():
        more = " ..." if found["count"] > len(found["examples"]) else ""
        lines.append(f"{found['count']} times: {reason}: {', '.join(found['examples'])}{more}")
    return "\n".join(lines)
