"""Answers to a fixed sample of the questions of the split `val` while a model trains, and their scores by task."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import Asked, TunedModel
from sarlang_sft.scoring.exact import exact_verdict
from sarlang_sft.scoring.ngrams import Caption, caption_metrics
from sarlang_sft.scoring.predictions import CAPTION_TASK
from sarlang_sft.shared_trunk import answer_together
from sarlang_sft.val_questions import ValQuestion, first_places, make_batches, prompts_by_image
from sarlang_sft.whole_output import whole_file


class Answer(NamedTuple):
    """A question of the sample, its stored answer `label` and the model's; `right` is None for captions."""

    id: str
    images: list[Path]
    task: str
    question: str
    label: str
    predict: str
    right: bool | None


class Share(NamedTuple):
    """Which part of the sample a rank answers; `in_step` if all of it, because the ranks hold the weights together."""

    rank: int
    ranks: int
    in_step: bool


Said = dict[int, tuple[str, float]]  # by its place in the sample: the text of an answer and its log-probability


def check_metric(metric: str, questions: Sequence[ValQuestion]) -> None:
    """Raise [`InputError`] if an evaluation with this sample does not give the metric `metric_for_best_model`."""
    given = ["loss", *score(questions, [])]
    if metric.removeprefix("eval_") not in given:
        raise InputError(
            f"metric_for_best_model {metric}: none of the {len(questions):,} val_questions is of that kind; ask more, "
            f"or choose one of {', '.join(given)}"
        )


def answer_sample(
    tuned: TunedModel,
    questions: Sequence[ValQuestion],
    share: Share,
    size: int,
    max_new_tokens: int,
    before_batch: Callable[[], None],
    progress: bool,
) -> Said:
    """Ask the whole sample, of all ranks together; every image is encoded once.

    Args:
        size: Questions answered at once.
        before_batch: Called equally often on every rank.
        progress: Show it.

    Returns:
        Without the questions whose images cannot be read; the same on every rank.
    """
    images = prompts_by_image(questions)
    step = 1 if share.in_step else share.ranks
    batches = make_batches(images[share.rank % step :: step], size)
    rounds = max(len(make_batches(images[rank::step], size)) for rank in range(step))
    said: Said = {}
    for number in tqdm(range(rounds), desc="val answers", unit=" batches", leave=False, disable=not progress):
        before_batch()
        asked = _with_pictures(tuned, questions, batches[number]) if number < len(batches) else {}
        if share.in_step:  # a file that one rank cannot read is left out by all
            readable = Counter(gather_object(list(asked)))
            asked = {place: item for place, item in asked.items() if readable[place] == share.ranks}
        if asked:
            answers = answer_together(tuned, list(asked.values()), max_new_tokens, share.in_step)
            said |= dict(zip(asked, answers, strict=True))
    if not share.in_step:
        said = dict(gather_object(list(said.items())))
    first = first_places(questions)
    same = {place: first[question.prompt] for place, question in enumerate(questions)}
    return {place: said[asked] for place, asked in same.items() if asked in said}


def _with_pictures(tuned: TunedModel, questions: Sequence[ValQuestion], places: list[int]) -> dict[int, Asked]:
    """What is asked at these places of the sample; nothing where an image cannot be read."""
    pictures: dict[tuple[Path | str, ...], list[Image.Image] | None] = {}
    asked = {}
    for place in places:
        question = questions[place]
        if question.about not in pictures:
            try:
                pictures[question.about] = [
                    load_picture(path_inside(question.image_root, image), tuned.image_ops) for image in question.images
                ]
            except InputError:
                pictures[question.about] = None
        found = pictures[question.about]
        if found is not None:
            asked[place] = Asked(found, question.turns)
    return asked


def judge(questions: Sequence[ValQuestion], said: Said) -> list[Answer]:
    """The questions that were answered, in the order of the sample, with the verdict of the protocol `exact`."""
    answers = []
    for place, (predict, _) in sorted(said.items()):
        question = questions[place]
        asked, label = question.turns[-1]["question"], question.turns[-1]["answer"]
        right = None if question.task == CAPTION_TASK else exact_verdict(label, predict, asked)
        answers.append(Answer(question.id, list(question.paths), question.task, asked, label, predict, right))
    return answers


def score(questions: Sequence[ValQuestion], answers: Sequence[Answer]) -> dict[str, float]:
    """`accuracy` and `accuracy_<task>` (0..1) of questions, `cider` (0..10) of captions: what the sample holds.

    NaN where none of a kind was answered. CIDEr weighs words by the captions of the sample alone: it compares
    evaluations of one run, not with scores of a whole split, and is 0 of a single caption.
    """
    tasks = sorted({question.task for question in questions})
    metrics = {}
    asked = [task for task in tasks if task != CAPTION_TASK]
    if asked:
        metrics["accuracy"] = _accuracy([answer for answer in answers if answer.task != CAPTION_TASK])
        metrics |= {f"accuracy_{task}": _accuracy([one for one in answers if one.task == task]) for task in asked}
    if CAPTION_TASK in tasks:
        told = [one for one in answers if one.task == CAPTION_TASK]
        captions = [Caption(tuple(map(str, one.images)), one.predict, [one.label]) for one in told]
        metrics["cider"] = caption_metrics(captions)["cider"] if captions else float("nan")
    return metrics


def _accuracy(answers: list[Answer]) -> float:
    return sum(answer.right is True for answer in answers) / len(answers) if answers else float("nan")


def write_answers(path: Path, questions: Sequence[ValQuestion], said: Said, answers: Sequence[Answer]) -> None:
    """One JSON line per answer: `id, images, subset, task, question, label, predict, logprob, right`."""
    with whole_file(path) as file:
        for (place, (_, logprob)), answer in zip(sorted(said.items()), answers, strict=True):
            row = {
                "id": answer.id,
                "images": [str(image) for image in answer.images],
                "subset": questions[place].subset,
                "task": answer.task,
                "question": answer.question,
                "label": answer.label,
                "predict": answer.predict,
                "logprob": round(logprob, 4),
                "right": answer.right,
            }
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
