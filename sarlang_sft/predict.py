"""Answers to the questions of a data folder, written as predictions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sarlang_sft.box_texts import frame_of, write_turns
from sarlang_sft.boxes import PLACEHOLDER, Frame
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import Asked, TunedModel, answer_each
from sarlang_sft.records import read_dialogue_table
from sarlang_sft.scoring.predictions import settings_beside
from sarlang_sft.shared_trunk import answer_together


@dataclass(frozen=True)
class Question:
    """One question of a data folder, with the turns before it as context.

    Attributes:
        size: Width and height of its first image in pixels.
        boxes: Of its image, if a text names one as `<box:i>`; else empty.
    """

    id: str
    images: list[str]
    subset: str
    task: str
    turns: list[dict[str, str]]
    size: tuple[int, int]
    boxes: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The stored answer."""
        return self.turns[-1]["answer"]


def read_questions(data: Path, split: str, subsets: list[str], tasks: list[str], limit: int | None) -> list[Question]:
    """The questions of a split in stored order; an empty list of subsets or tasks means all of them."""
    questions = [
        Question(
            f"{row['id']}#{index}",
            row["images"],
            row["subset"],
            row["task"],
            row["turns"][: index + 1],
            (row["width"], row["height"]),
            row["boxes"] or [],
        )
        for row in read_dialogue_table(data, split).to_pylist()
        if (not subsets or row["subset"] in subsets) and (not tasks or row["task"] in tasks)
        for index in range(len(row["turns"]))
    ]
    if not questions:
        raise InputError(f"--data {data}: split {split} holds no question of {[*subsets, *tasks] or 'any kind'}")
    return questions[:limit]


def exchange_images(questions: list[Question]) -> list[Question]:
    """Every question about another scene: image i of n is replaced by image i + n // 2, in order of appearance.

    What a model still answers rightly then it knows without seeing (the blind baseline).
    """
    order = list(dict.fromkeys(tuple(question.images) for question in questions))
    shift = len(order) // 2
    other = {images: list(order[(index + shift) % len(order)]) for index, images in enumerate(order)}
    return [replace(question, images=other[tuple(question.images)]) for question in questions]


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write beside a predictions file what it is made with.

    Raises:
        InputError: The file was begun with other settings, or nothing says with which, so that continuing it could
            mix two models' answers and sign them as one's.
    """
    beside = settings_beside(path)
    if path.is_file() and path.stat().st_size:
        begun = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        for name, value in settings.items():
            if name not in begun:
                raise InputError(f"{path}: holds answers, and nothing says with which {name}; choose another --out")
            if begun[name] != value:
                raise InputError(f"{path}: was begun with {name} {begun[name]!r}, not {value!r}; choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


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
    done = _answered(path)
    left = [question for question in questions if question.id not in done]
    unknown = done - {question.id for question in questions}
    if unknown:
        raise InputError(
            f"{path}: holds answers to other questions (such as {min(unknown)}); remove it or choose another --out"
        )
    with open(path, "a", encoding="utf-8") as file, tqdm(total=len(left), desc=path.stem, unit=" answers") as progress:
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
            for (question, _, frame), (text, logprob) in zip(asked, answers, strict=True):
                row: dict[str, Any] = {
                    "id": question.id,
                    "image": question.images[0] if question.images else "",
                    "subset": question.subset,
                    "task": question.task,
                    "question": question.turns[-1]["question"],
                    "label": question.label,
                    "predict": text,
                    "logprob": round(logprob, 4),
                }
                if frame and PLACEHOLDER.search(question.label):
                    row["boxes"] = tuned.backbone.box_convention.read(text, frame)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            written += len(asked)
    return written, unusable


def _in_the_models_words(tuned: TunedModel, question: Question) -> tuple[Frame | None, list[dict[str, str]]]:
    """The turns with their boxes written, and the picture that the model sees, if the texts name any.

    The answer that is sought stays out: its box may be outside the picture.
    """
    if not question.boxes:
        return None, question.turns
    frame = frame_of(tuned.processor, tuned.backbone, tuned.image_ops, *question.size)
    *before, last = question.turns
    turns = write_turns([*before, {"question": last["question"]}], question.boxes, tuned.backbone, frame)
    return frame, [*turns[:-1], {**turns[-1], "answer": ""}]


def _answered(path: Path) -> set[str]:
    """Ids in a half-written file; a torn last line is cut off."""
    if not path.is_file():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    try:
        return {json.loads(line)["id"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no predictions file; remove it or choose another --out") from error


def _batches(questions: list[Question], size: int, shared_trunk: bool) -> Iterator[list[Question]]:
    """Questions about one image together, or else those of about one length: captions hold short answers up."""
    if shared_trunk:
        place = {images: number for number, images in enumerate(dict.fromkeys(tuple(q.images) for q in questions))}
        ordered = sorted(questions, key=lambda question: place[tuple(question.images)])
    else:
        ordered = sorted(questions, key=lambda question: (question.task == "description", question.subset))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
