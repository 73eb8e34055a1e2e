"""Is a dialogue true of the boxes? It is read back by its template, and its answer derived anew.

A text that several templates could have made must be true by each of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from sarlang_sft.boxes import PLACEHOLDER
from sarlang_sft.language.checking_captions import check_caption
from sarlang_sft.language.reading import Reader, Reading, one_of, readings
from sarlang_sft.language.truth import Picture
from sarlang_sft.records import Turn

ROUNDED = 0.0501  # pixels by which a box written with one decimal may differ

Check = Callable[[Reader, Picture, Reading, Sequence[Turn]], str | None]
"""Why the turns are not true by a reading of their first question, or None."""


def check_dialogue(
    reader: Reader, picture: Picture, subset: str, task: str, style: str | None, turns: Sequence[Turn]
) -> str | None:
    """Why a dialogue is not true of the boxes, or cannot be read; None if it is true.

    Args:
        subset: `boxes_vqa boxes_grounding boxes_caption`.
        style: The family of a caption.
    """
    if task == "description":
        return check_caption(reader, picture, style, turns)
    question = turns[0].question
    if subset == "boxes_vqa":
        before, after = reader.wording.parts["question_prompt"].texts
        if not (question.startswith(before) and question.endswith(after)):
            return "question without its prompt"
        question = question[len(before) : len(question) - len(after)]
    outcomes = {
        _outcome(reader, picture, reading, turns, turn_count, check)
        for key, (turn_count, check) in _CHECKS.get((subset, task), {}).items()
        for reading in readings(reader, reader.phrases[key], question)
    }
    if len(outcomes) > 1:
        outcomes.discard(_OF_ONE)  # one template may serve for one object and for many
    return next((outcome for outcome in outcomes if outcome), None) if outcomes else "question not understood"


def _outcome(
    reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn], turn_count: int, check: Check
) -> str | None:
    if len(turns) != turn_count:
        return f"{len(turns)} turns instead of {turn_count}"
    if reading.things is not None and len(reading.things) != 1:
        return f"may speak of {len(reading.things)} classes"
    return check(reader, picture, reading, turns)


def _expect(reader: Reader, part: str, values: dict[str, str], answer: str) -> str | None:
    expected = reader.wording.parts[part].fill(values)
    return None if answer == expected else f"answers {answer!r}, the boxes say {expected!r}"


def _expect_verdict(reader: Reader, verdict: bool, answer: str) -> str | None:
    return _expect(reader, "answers.yes" if verdict else "answers.no", {}, answer)


def _expect_boxes(reader: Reader, numbers: Sequence[int], answer: str) -> str | None:
    named = [int(number) for number in PLACEHOLDER.findall(answer)]
    joint = reader.wording.parts["parts.boxes"].fill({})
    written = reader.wording.parts["answers.boxes"].fill({"boxes": joint.join(f"<box:{one}>" for one in named)})
    if answer == written and sorted(named) == sorted(numbers):
        return None
    return f"answers {answer!r}, the boxes are {[*numbers]}"


def _numbers(picture: Picture, reading: Reading) -> Sequence[int]:
    """Boxes of the class that a question speaks of."""
    (thing,) = reading.things
    return picture.numbers_of(thing)


def _identification(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    if not _numbers(picture, reading) and not picture.unsure.isdisjoint({None, *reading.things}):
        return _NOT_KNOWN
    return _expect_verdict(reader, bool(_numbers(picture, reading)), turns[0].answer)


def _counting(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    return _expect(reader, "answers.count", {"n": str(len(_numbers(picture, reading)))}, turns[0].answer)


def _positioning(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    sides = [picture.side(number) for number in _numbers(picture, reading)]
    majority = [side for side in {*sides} - {None} if sides.count(side) > len(sides) / 2]
    if not majority:
        return "asks where most are, and no side has more than half"
    return _expect(reader, "answers.region", {"region": reader.wording.regions[majority[0]]}, turns[0].answer)


def _referring(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    try:
        asked = [float(number) for number in reading.values["area"][1:-1].split(",")]
    except ValueError:
        asked = []
    meant = [
        number
        for number in range(len(picture.boxes))
        if len(asked) == 4
        and all(abs(one - other) <= ROUNDED for one, other in zip(picture.area(number), asked, strict=True))
    ]
    if not meant or not all(map(picture.alone, meant)):
        return _NOT_ONE
    if reading.values["area"] != f"[{', '.join(f'{number:.1f}' for number in asked)}]":
        return "area is not written with one decimal"
    return _expect(reader, "answers.class", picture.things[meant[0]].forms(), turns[0].answer)


def _classification(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    if not picture.all_known():
        return _NOT_KNOWN
    names = [thing.name for thing in dict.fromkeys(picture.things)]
    answer = turns[0].answer
    before, after = reader.wording.parts["answers.classes"].texts
    inner = answer.removeprefix(before).removesuffix(after)
    if before + inner + after == answer and _listed(reader, names, inner) == Counter(names):
        return None
    return f"answers {answer!r}, the boxes say {sorted(names)}"


def _listed(reader: Reader, names: Sequence[str], text: str) -> Counter[str]:
    """How often a list names each; empty if something else stands in it."""
    joint = reader.wording.parts["parts.listed"].fill({})
    if not re.fullmatch(f"{one_of(names)}(?:{re.escape(joint)}{one_of(names)})*", text):
        return Counter()
    return Counter(re.findall(one_of(names), text))


def _located(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    numbers = _numbers(picture, reading)
    if not numbers or int(reading.values.get("n", len(numbers))) != len(numbers):
        return f"speaks of {reading.values.get('n', 'some')}, there are {len(numbers)}"
    return _expect_boxes(reader, numbers, turns[0].answer)


def _located_there(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    cell = reader.places[reading.values["place"]]
    there = [number for number in _numbers(picture, reading) if picture.ninth(number) == cell]
    if len(there) != 1:
        return f"speaks of one in this part, there are {len(there)}"
    return _expect_boxes(reader, there, turns[0].answer)


def _counted_and_located(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    if not any(readings(reader, reader.phrases["grounding.locate_them"], turns[1].question)):
        return "second question not understood"
    counted = _counting(reader, picture, reading, turns)
    return counted or _expect_boxes(reader, _numbers(picture, reading), turns[1].answer)


def _box_of(picture: Picture, reading: Reading) -> int | None:
    """The number of the box that a question names; None if there is none, or it does not tell what is meant."""
    number = int(PLACEHOLDER.fullmatch(reading.values["box"])[1])
    return number if number < len(picture.boxes) and picture.alone(number) else None


def _named_box(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    number = _box_of(picture, reading)
    if number is None:
        return _NOT_ONE
    return _expect(reader, "answers.class", picture.things[number].forms(), turns[0].answer)


def _verified_box(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
    number = _box_of(picture, reading)
    if number is None:
        return _NOT_ONE
    return _expect_verdict(reader, reading.things == (picture.things[number],), turns[0].answer)


_NOT_ONE = "asks about no box, or about one in whose place lies another class"
_NOT_KNOWN = "states what is not known for sure"
_OF_ONE = "speaks of one object, and there is not one"


def _of_one(check: Check) -> Check:
    """A question in the singular."""

    def checked(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
        return check(reader, picture, reading, turns) if len(_numbers(picture, reading)) == 1 else _OF_ONE

    return checked


def _of_known(check: Check) -> Check:
    """A question about all objects of a class."""

    def checked(reader: Reader, picture: Picture, reading: Reading, turns: Sequence[Turn]) -> str | None:
        return check(reader, picture, reading, turns) if picture.unsure.isdisjoint(reading.things) else _NOT_KNOWN

    return checked


# By subset and task: the template sets that may have made the first question, how many turns follow from each, and
# what checks them.
_CHECKS: dict[tuple[str, str], dict[str, tuple[int, Check]]] = {
    ("boxes_vqa", "identification"): {"questions.identification": (1, _identification)},
    ("boxes_vqa", "counting"): {"questions.counting": (1, _of_known(_counting))},
    ("boxes_vqa", "positioning"): {
        "questions.positioning_one": (1, _of_known(_of_one(_positioning))),
        "questions.positioning_many": (1, _of_known(_positioning)),
    },
    ("boxes_vqa", "referring"): {"questions.referring": (1, _referring)},
    ("boxes_vqa", "classification"): {"questions.classification": (1, _classification)},
    ("boxes_grounding", "grounding"): {
        "grounding.locate_one": (1, _of_known(_of_one(_located))),
        "grounding.locate_many": (1, _of_known(_located)),
        "grounding.locate_there": (1, _of_known(_located_there)),
        "grounding.count_first": (2, _of_known(_counted_and_located)),
    },
    ("boxes_grounding", "referring"): {"grounding.name_box": (1, _named_box)},
    ("boxes_grounding", "cross_identification"): {"grounding.verify_box": (1, _verified_box)},
}
