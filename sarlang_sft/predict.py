"""Answers to the questions of a data folder, written as predictions."""

import math
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from sarlang_sft.box_texts import write_question
from sarlang_sft.boxes import PLACEHOLDER, Frame
from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import Question, still_to_ask
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import Asked, TunedModel, answer_each
from sarlang_sft.prediction_files import (
    PredictionRow,
    answered_ids,
    append_rows,
    keep_settings,
    lock_predictions,
    make_row,
    merge_parts,
    part_of,
)
from sarlang_sft.ranks import Ranks
from sarlang_sft.scoring.predictions import CAPTION_TASK
from sarlang_sft.shared_trunk import answer_together
from sarlang_sft.val_questions import make_batches


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    Attributes:
        batch_size: Questions answered together.
        max_new_tokens: Longest answer.
        shared_trunk: Encode an image once for all its questions; False processes every prompt whole.
    """

    batch_size: int
    max_new_tokens: int
    shared_trunk: bool = True


def open_predictions(path: Path, settings: dict[str, Any], ranks: Ranks) -> BinaryIO:
    """Make a predictions file that of these ranks, made with these settings; keep what is returned until the end.

    Raises:
        InputError: Others write it, or it was begun with other settings.
    """

    def take() -> BinaryIO:
        lock = lock_predictions(path)
        keep_settings(path, settings)
        return lock

    return ranks.on_first(take) or lock_predictions(path, ranks.own)


def predict_to_file(
    tuned: TunedModel, questions: list[Question], image_root: Path, path: Path, asking: Asking, crew: Crew
) -> tuple[int, dict[str, str]]:
    """Write the answer of every question that `path` and its parts do not hold yet, one JSON line each.

    A prompt that several questions share is answered once, for all of them.
    Where the stored answer names a box, the line also has `boxes`: those of the answer, in pixels of the stored image.

    Args:
        path: Complete, and in the order of `questions`, when this returns on rank 0.

    Returns:
        How many prompts were answered, and what leaves questions unanswered: images that cannot be read, and questions
        whose boxes cannot be written, with the reason. Of all ranks.
    """
    ranks = crew.ranks
    done = ranks.from_first(ranks.on_first(lambda: answered_ids(path, questions)))
    batches = _batches(still_to_ask(questions, done), asking)
    part = part_of(path, ranks.own)
    written = 0
    unusable: dict[str, str] = {}
    starts = [0, *accumulate(map(len, batches))]
    with tqdm(total=starts[-1], desc=path.stem, unit=" answers", disable=not ranks.first) as progress:
        for number in crew.take(len(batches)):
            progress.update(starts[number] - progress.n)  # the other ranks took what is in between
            rows = _answer_batch(tuned, batches[number], image_root, asking, unusable)
            append_rows(part, rows)
            written += len(rows)
        counts, reasons = zip(*ranks.gather((written, unusable)), strict=True)
        progress.update(progress.total - progress.n)
    ranks.on_first(lambda: merge_parts(path, questions))
    return sum(counts), {name: why for some in reasons for name, why in some.items()}


def _answer_batch(
    tuned: TunedModel, batch: list[Question], image_root: Path, asking: Asking, unusable: dict[str, str]
) -> list[PredictionRow]:
    """The rows of what can be asked; what cannot is added to `unusable`."""
    pictures = {}
    for image in {image for question in batch for image in question.images} - unusable.keys():
        try:
            pictures[image] = load_picture(path_inside(image_root, image), tuned.image_ops)
        except InputError:
            unusable[image] = "cannot be read"
    asked: list[tuple[Question, Asked, Frame | None]] = []
    for question in batch:
        if unusable.keys() & set(question.images):
            continue
        try:
            frame, turns = _in_the_models_words(tuned, question)
        except ValueError as error:
            unusable[question.id] = str(error)
            continue
        asked.append((question, Asked([pictures[image] for image in question.images], turns), frame))
    if not asked:
        return []
    answer = answer_together if asking.shared_trunk else answer_each
    answers = answer(tuned, [item for _, item, _ in asked], asking.max_new_tokens)
    rows = []
    for (question, _, frame), (text, logprob) in zip(asked, answers, strict=True):
        names_box = frame and PLACEHOLDER.search(question.label)
        boxes = tuned.backbone.box_convention.read(text, frame) if names_box else None
        rows.append(make_row(question, text, logprob, boxes))
    return rows


def _in_the_models_words(tuned: TunedModel, question: Question) -> tuple[Frame | None, list[dict[str, str]]]:
    """The turns with their boxes written, and the picture that the model sees, if the texts name any."""
    if not question.boxes:
        return None, question.turns
    return write_question(
        question.turns, question.boxes, question.size, tuned.processor, tuned.backbone, tuned.image_ops
    )


def _batches(questions: list[Question], asking: Asking) -> list[list[Question]]:
    """Questions about one image together, large images first: padding is least, and memory runs out at once if ever.

    Without a shared trunk, those of about one length: captions hold short answers up.
    """
    size = asking.batch_size
    if not asking.shared_trunk:
        ordered = sorted(questions, key=lambda question: (question.task == CAPTION_TASK, question.subset))
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]
    by_image: dict[tuple[str, ...], list[int]] = {}
    for place, question in enumerate(questions):
        by_image.setdefault(tuple(question.images), []).append(place)
    images = sorted(by_image.values(), key=lambda places: math.prod(questions[places[0]].size), reverse=True)
    return [[questions[place] for place in batch] for batch in make_batches(images, size)]
