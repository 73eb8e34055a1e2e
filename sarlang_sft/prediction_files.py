"""A predictions file while it is written: parts that outlive any kill, then one file in stored order.

Beside `predictions.jsonl` lie, until all is answered, its parts `predictions.part0.jsonl`, `predictions.part1.jsonl`,
one for each process that answers; `predictions.settings.json` says what the answers are made with. What counts as
answered is what any of these files holds, so that another number of processes can go on.
"""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import Question
from sarlang_sft.locks import HeldElsewhereError, sign_lock, take_lock
from sarlang_sft.scoring.predictions import read_json, settings_beside
from sarlang_sft.whole_output import CannotWriteError, whole_file

PredictionRow = dict[str, Any]


def make_row(
    question: Question, predict: str, logprob: float | None, boxes: list[list[float]] | None = None
) -> PredictionRow:
    """The line that is written for an answer.

    Args:
        predict: The text that the model answered.
        logprob: Sum of the natural log-probabilities of its tokens; None where that is not known.
        boxes: Those of the answer in pixels of the stored image, if the stored answer names any.
    """
    logprob = logprob if logprob is None else round(logprob, 4)
    row: PredictionRow = {**_own_fields(question), "predict": predict, "logprob": logprob}
    return row if boxes is None else {**row, "boxes": boxes}


def _own_fields(question: Question) -> PredictionRow:
    return {
        "id": question.id,
        "image": question.images[0] if question.images else "",
        "subset": question.subset,
        "task": question.task,
        "question": question.turns[-1]["question"],
        "label": question.label,
    }


def _line_of(row: PredictionRow) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace")


def lock_predictions(path: Path, number: int = 0) -> BinaryIO:
    """Make a part of a predictions file this process's own; keep what is returned until the end.

    Process 0 comes first and finds out that nobody writes any part.

    Raises:
        InputError: Another process writes it now, or its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(_lock_of(path, number))
        sign_lock(lock)
        if number == 0:  # a killed launcher may leave processes behind that finish what they are at
            for other in _locks_of_others(path):
                take_lock(other).close()
    except HeldElsewhereError as error:
        raise InputError(f"{path}: {error} writes it now; wait for it, or choose another --out or --name") from error
    except OSError as error:
        raise InputError(f"--out {path.parent}: cannot be written ({error})") from error
    return lock


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write beside a predictions file what it is made with.

    Raises:
        InputError: The file was begun with other settings, or nothing says with which, so that continuing it could
            mix two models' answers and sign them as one's.
    """
    beside = settings_beside(path)
    if any(file.stat().st_size for file in _files_of(path)):
        begun = read_json(beside) if beside.is_file() else {}
        for name, value in settings.items():
            if name not in begun:
                raise InputError(f"{path}: holds answers, and nothing says with which {name}; choose another --out")
            if begun[name] != value:
                raise InputError(f"{path}: was begun with {name} {begun[name]!r}, not {value!r}; choose another --out")
    with whole_file(beside) as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())


def part_of(path: Path, number: int) -> Path:
    """Where process `number` of those that answer together writes."""
    return path.with_name(f"{path.stem}.part{number}.jsonl")


def answered_ids(path: Path, questions: Sequence[Question]) -> set[str]:
    """Ids of the questions that have an answer in the file or its parts; torn last lines are cut off.

    Raises:
        InputError: A file holds something else, or answers to other questions.
    """
    answered = set()
    known = {question.id for question in questions}
    for file in _files_of(path):
        _cut_torn_line(file)
        ids = {identifier for identifier, _ in _read_lines(file)}
        if unknown := ids - known:
            raise InputError(
                f"{file}: holds answers to other questions (such as {min(unknown)}); remove it or choose another --out"
            )
        answered |= ids
    return answered


def append_rows(part: Path, rows: Sequence[PredictionRow]) -> None:
    """Add lines to a part in one write, so that a kill leaves at most its last line torn.

    Raises:
        CannotWriteError: The disk is full, or the file cannot be written.
    """
    lines = b"".join(map(_line_of, rows))
    try:
        with open(part, "ab", buffering=0) as file:
            if file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise CannotWriteError(f"{part}: cannot be written ({error}); start again when it can") from error


def merge_parts(path: Path, questions: Sequence[Question]) -> None:
    """Put the file and its parts together in the order of the questions, each answer once, and remove the parts.

    Questions of one prompt get the answer that was given to any of them. A kill in between loses nothing: the parts go
    when the whole file is there.

    Raises:
        CannotWriteError: The file cannot be written; the parts stay.
    """
    lines = {identifier: line for file in _files_of(path) for identifier, line in _read_lines(file)}
    said = {question.prompt: lines[question.id] for question in questions if question.id in lines}
    with whole_file(path) as whole:
        for question in questions:
            if question.id in lines:
                whole.write(lines[question.id])
            elif question.prompt in said:
                whole.write(_line_of(json.loads(said[question.prompt]) | _own_fields(question)))
        whole.flush()
        os.fsync(whole.fileno())
    for file in [*_files_of(path)[1:], *_locks_of_others(path)]:
        file.unlink()


def _lock_of(path: Path, number: int) -> Path:
    return path.with_name(f".{path.stem}.part{number}.lock")


def _locks_of_others(path: Path) -> list[Path]:
    own = _lock_of(path, 0)
    return [lock for lock in path.parent.glob(f".{escape(path.stem)}.part*.lock") if lock != own]


def _files_of(path: Path) -> list[Path]:
    """The file, if it is there, and its parts."""
    whole = [path] if path.is_file() else []
    return whole + sorted(path.parent.glob(f"{escape(path.stem)}.part[0-9]*.jsonl"))


def _cut_torn_line(file: Path) -> None:
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)


def _read_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Id and line of every answer in a file."""
    with open(file, "rb") as lines:
        try:
            for line in lines:
                yield json.loads(line)["id"], line
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: no predictions file; remove it or choose another --out") from error
