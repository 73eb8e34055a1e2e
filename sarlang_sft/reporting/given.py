"""What a report is made of: runs with their answers, and files that were named on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.records import file_hash
from sarlang_sft.reporting.tables import right_answers
from sarlang_sft.scoring.baselines import MAJORITY, RANDOM
from sarlang_sft.scoring.prediction_lines import Problems
from sarlang_sft.scoring.predictions import (
    BREAKDOWNS,
    CAPTION_TASK,
    Row,
    absent,
    check_answered,
    join_everything,
    read_json,
    settings_beside,
)

PLAIN, BLIND, TEXT_ONLY = "plain", "blind", "text-only"
LONGEST_NAME = 24
RESERVED = (MAJORITY, RANDOM, "n")  # columns of tables and of summary.json beside the runs'


@dataclass(frozen=True)
class Run:
    """The answers of one model to one split; rows are the split's in its order, the same for every run.

    Attributes:
        kind: `plain`, or what the settings beside the predictions say of the images: `blind` (they were exchanged),
            `text-only` (there were none).
        questions, captions: Of the split, with the run's answers.
        right: Of every question, under the protocol `exact`.
        problems: Of the predictions file.
        settings: What the predictions were made with; None if no file says.
    """

    name: str
    path: Path
    kind: str
    questions: list[Row]
    captions: list[Row]
    right: list[bool]
    problems: Problems
    settings: dict[str, Any] | None

    @property
    def answered(self) -> int:
        """Questions with a prediction."""
        return sum(row.predict is not None for row in self.questions)

    @property
    def captioned(self) -> int:
        """Captions with a prediction."""
        return sum(row.predict is not None for row in self.captions)


def split_names(option: str, items: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH` items as paths by name.

    Raises:
        InputError: An item has no name or no path, or a name is too long or given twice.
    """
    found: dict[str, Path] = {}
    for name, path in named_paths(option, items):
        if name in found:
            raise InputError(f"{option} {name}={path}: the name {name} is given twice; names must differ")
        found[name] = path
    return found


def named_paths(option: str, items: Sequence[str]) -> list[tuple[str, Path]]:
    """`NAME=PATH` items in their order, where a name may stand before several paths.

    Raises:
        InputError: An item has no name or no path, or a name is too long.
    """
    found = []
    for item in items:
        name, equals, path = item.partition("=")
        if not (name.strip() and equals and path):
            raise InputError(f"{option} {item}: give a name and a path, as in {option} after=runs/predictions.jsonl")
        if len(name) > LONGEST_NAME:
            raise InputError(f"{option} {item}: the name is longer than {LONGEST_NAME} characters; shorten it")
        found.append((name, Path(path)))
    return found


def read_run(name: str, predictions: Path, data: Path, split: str) -> Run:
    """The answers of a predictions file to a split.

    Raises:
        InputError: There is no such file, data folder or split, or the file answers none of its questions.
    """
    if name in RESERVED:
        raise InputError(f"--runs {name}={predictions}: {name} is the name of another column; choose another")
    rows, problems = join_everything(predictions, data, split)
    questions = [row for row in rows if row.task != CAPTION_TASK]
    captions = [row for row in rows if row.task == CAPTION_TASK]
    asked = [kind for kind in (questions, captions) if any(row.predict is not None for row in kind)]
    check_answered(rows, "questions", problems, predictions, data, split)
    for reason, places in absent([row for kind in asked for row in kind]).items():
        problems.setdefault(reason, []).extend(places)
    beside = settings_beside(predictions)
    settings = read_json(beside) if beside.is_file() else None
    return Run(name, predictions, kind_of(settings), questions, captions, right_answers(questions), problems, settings)


def kind_of(settings: dict[str, Any] | None) -> str:
    """What the settings of eval/generate.py say of the images."""
    if settings is None:
        return PLAIN
    if settings.get("without_images"):
        return TEXT_ONLY
    return BLIND if settings.get("exchange_images") else PLAIN


def about(run: Run) -> str:
    """In a few words, what answered."""
    seen = {PLAIN: "", BLIND: "; images exchanged between questions", TEXT_ONLY: "; no images given"}[run.kind]
    if run.settings is None:
        return f"{run.path.name}, without settings beside it"
    model, adapter = run.settings.get("model"), run.settings.get("adapter")
    return f"{model}{f' + {adapter}' if adapter else ''}{seen}"


VQA_SCORES = {"protocol", "n", "overall", "by_type", *BREAKDOWNS, "made_from"}
CAPTION_SCORES = {"protocol", "n", "overall", "metrics", "scored", "by_style", "statistics", "facts", "made_from"}


def read_scores(option: str, paths: dict[str, Path], parts: set[str], data: Path, split: str) -> dict[str, Any]:
    """Result files of a scorer, by their names.

    Args:
        parts: What such a file holds: `VQA_SCORES` or `CAPTION_SCORES`.

    Raises:
        InputError: A file is missing, holds no such scores, or scores other questions than this split's.
    """
    questions = file_hash(data / f"{split}.parquet")
    found = {}
    for name, path in paths.items():
        result = read_json(path)
        if missing := sorted(parts - result.keys()):
            kind = "score_vqa" if parts is VQA_SCORES else "score_caption"
            raise InputError(f"{option} {name}={path}: has no {', '.join(missing)}; make it with eval/{kind}.py")
        if not isinstance(result["made_from"], dict) or result["made_from"].get("questions") != questions:
            raise InputError(
                f"{option} {name}={path}: scores other questions than {data}'s split {split}; score again"
            )
        found[name] = result
    return found


def read_merge(folder: str | None) -> dict[str, Any] | None:
    """What the check of a merged model measured; raises [`InputError`] if the folder has no `merge_report.json`."""
    return None if folder is None else read_json(Path(folder) / "merge_report.json")
