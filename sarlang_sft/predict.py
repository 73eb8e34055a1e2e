"""Answers to the questions of a data folder, written as predictions."""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from sarlang_sft.box_texts import write_question
from sarlang_sft.boxes import PLACEHOLDER, Frame
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import Question
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import Asked, TunedModel, answer_each
from sarlang_sft.prediction_files import answered_ids, append_rows, make_row, merge_parts, part_of
from sarlang_sft.shared_trunk import answer_together


def predict_to_file(
    tuned: TunedModel,
    questions: list[Question],
    image_root: Path,
    path: Path,
    batch_size: int,
    max_new_tokens: int,
    shared_trunk: bool = True,
) -> tuple[int, dict[str, str]]:
    """Append the answer of every question that `path` does not hold yet, one JSON line each.

    Where the stored answer names a box, the line also has `boxes`: those of the answer, in pixels of the stored image.

    Args:
        batch_size: Questions answered together.
        shared_trunk: Encode an image once for all its questions; False processes every prompt whole.

    Returns:
        How many were written, and what leaves questions unanswered: images that cannot be read, and questions whose
        boxes cannot be written, with the reason.
    """
    answer = answer_together if shared_trunk else answer_each
    done = answered_ids(path, questions)
    left = [question for question in questions if question.id not in done]
    with tqdm(total=len(left), desc=path.stem, unit=" answers") as progress:
        unusable: dict[str, str] = {}
        written = 0
        for batch in _batches(left, batch_size, shared_trunk):
            pictures = {}
            for image in {image for question in batch for image in question.images} - unusable.keys():
                try:
                    pictures[image] = load_picture(path_inside(image_root, image), tuned.image_ops)
                except InputError:
                    unusable[image] = "cannot be read"
            progress.update(len(batch))
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
                continue
            answers = answer(tuned, [item for _, item, _ in asked], max_new_tokens)
            rows = []
            for (question, _, frame), (text, logprob) in zip(asked, answers, strict=True):
                names_box = frame and PLACEHOLDER.search(question.label)
                boxes = tuned.backbone.box_convention.read(text, frame) if names_box else None
                rows.append(make_row(question, text, logprob, boxes))
            append_rows(part_of(path, 0), rows)
            written += len(asked)
    merge_parts(path, questions)
    return written, unusable


def _in_the_models_words(tuned: TunedModel, question: Question) -> tuple[Frame | None, list[dict[str, str]]]:
    """The turns with their boxes written, and the picture that the model sees, if the texts name any."""
    if not question.boxes:
        return None, question.turns
    return write_question(
        question.turns, question.boxes, question.size, tuned.processor, tuned.backbone, tuned.image_ops
    )


def _batches(questions: list[Question], size: int, shared_trunk: bool) -> Iterator[list[Question]]:
    """Questions about one image together, or else those of about one length: captions hold short answers up."""
    if shared_trunk:
        place = {images: number for number, images in enumerate(dict.fromkeys(tuple(q.images) for q in questions))}
        ordered = sorted(questions, key=lambda question: place[tuple(question.images)])
    else:
        ordered = sorted(questions, key=lambda question: (question.task == "description", question.subset))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
