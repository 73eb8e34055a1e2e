"""Questions and answers about the boxes of an image: SARLANG-1M's five applications, and dialogues that name boxes."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

from sarlang_sft.boxes import upright
from sarlang_sft.language.facts import Facts, Group
from sarlang_sft.language.things import Thing
from sarlang_sft.language.wording import Wording
from sarlang_sft.records import Turn

VQA, GROUNDING = "boxes_vqa", "boxes_grounding"  # subsets
MOST_LOCATED = 20  # boxes of one answer


class Said(NamedTuple):
    """A dialogue without its id."""

    subset: str
    task: str
    style: str | None
    turns: tuple[Turn, ...]


class YesNo(NamedTuple):
    """A question whose answer is yes or no, chosen so that over the set both come equally often with every class."""

    thing: Thing
    yes: bool


def vqa(facts: Facts, checks: Sequence[YesNo], most_boxes: int, wording: Wording, rng: Random) -> Iterator[Said]:
    """SARVQA1's applications in the forms of `questions`.

    Args:
        checks: Whether there are objects of a class, to be asked here.
        most_boxes: Boxes whose class is asked for, drawn if there are more.
    """
    for thing, yes in checks:
        yield _asked(
            VQA, "identification", _ask("questions.identification", thing, wording, rng), _verdict(yes, wording)
        )
    for group in facts.groups:
        if group.sure:
            question = _ask("questions.counting", group.thing, wording, rng)
            yield _asked(VQA, "counting", question, _count(group, wording))
        if group.sure and group.region is not None:
            form = "questions.positioning_one" if group.one else "questions.positioning_many"
            answer = wording.parts["answers.region"].fill({"region": wording.regions[group.region]})
            yield _asked(VQA, "positioning", _ask(form, group.thing, wording, rng), answer)
    for number in _drawn(facts, most_boxes, rng):
        asked = area(facts.boxes[number].points, facts.width, facts.height)
        question = _fill("questions.referring", {"area": asked}, wording, rng)
        yield _asked(VQA, "referring", wording.ask(question), _class(facts.things[number], wording))
    if facts.groups and facts.complete:
        names = wording.parts["parts.listed"].fill({}).join(group.thing.name for group in facts.groups)
        answer = wording.parts["answers.classes"].fill({"listed": names})
        question = wording.ask(_fill("questions.classification", {}, wording, rng))
        yield _asked(VQA, "classification", question, answer)


def grounding(
    facts: Facts, named: int | None, checks: Sequence[YesNo], most_boxes: int, wording: Wording, rng: Random
) -> Iterator[Said]:
    """Dialogues that name boxes as `<box:i>`: where objects are, what a box marks, whether it marks that class.

    Args:
        named: Number of the box that is asked about, if there is one; it is plain.
        checks: Whether that box marks an object of a class, to be asked here.
        most_boxes: Classes whose objects are to be located, drawn if there are more.
    """
    located = [group for group in facts.groups if group.sure and len(group.numbers) <= MOST_LOCATED]
    for group in located if len(located) <= most_boxes else rng.sample(located, most_boxes):
        yield _located(facts, group, wording, rng)
    alone = [
        (group, cell) for group in located if not group.one for cell in group.cells if len(group.cells[cell]) == 1
    ]
    if alone:
        group, cell = rng.choice(alone)
        values = group.thing.forms() | {"place": wording.places[cell][0]}
        question = _fill("grounding.locate_there", values, wording, rng)
        yield _asked(GROUNDING, "grounding", question, _boxes(facts, group.cells[cell], wording))
    if named is not None:
        question = _fill("grounding.name_box", {"box": f"<box:{named}>"}, wording, rng)
        yield _asked(GROUNDING, "referring", question, _class(facts.things[named], wording))
    for thing, yes in checks:
        question = _fill("grounding.verify_box", thing.forms() | {"box": f"<box:{named}>"}, wording, rng)
        yield _asked(GROUNDING, "cross_identification", question, _verdict(yes, wording))


def area(points: Sequence[float], width: int, height: int) -> str:
    """What of the image is in the upright rectangle around a box, as SARLANG-1M writes it: `[x, y, w, h]` in pixels
    with one decimal.
    """
    left, top, right, bottom = upright(points)
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    return f"[{left:.1f}, {top:.1f}, {right - left:.1f}, {bottom - top:.1f}]"


def _located(facts: Facts, group: Group, wording: Wording, rng: Random) -> Said:
    """All objects of a class in one turn, or how many there are and then where."""
    values = group.thing.forms() | {"n": str(len(group.numbers))}
    boxes = _boxes(facts, group.numbers, wording)
    if group.one:
        return _asked(GROUNDING, "grounding", _fill("grounding.locate_one", values, wording, rng), boxes)
    if rng.random() < 0.5:
        return _asked(GROUNDING, "grounding", _fill("grounding.locate_many", values, wording, rng), boxes)
    first = Turn(_fill("grounding.count_first", values, wording, rng), _count(group, wording))
    return Said(GROUNDING, "grounding", None, (first, Turn(_fill("grounding.locate_them", {}, wording, rng), boxes)))


def _drawn(facts: Facts, most_boxes: int, rng: Random) -> Sequence[int]:
    """Numbers of plain boxes, in their order."""
    return facts.plain if len(facts.plain) <= most_boxes else sorted(rng.sample(facts.plain, most_boxes))


def _asked(subset: str, task: str, question: str, answer: str) -> Said:
    return Said(subset, task, None, (Turn(question, answer),))


def _ask(form: str, thing: Thing, wording: Wording, rng: Random) -> str:
    return wording.ask(_fill(form, thing.forms(), wording, rng))


def _fill(form: str, values: dict[str, str], wording: Wording, rng: Random) -> str:
    return rng.choice(wording.sets[form]).fill(values)


def _verdict(yes: bool, wording: Wording) -> str:
    return wording.parts["answers.yes" if yes else "answers.no"].fill({})


def _count(group: Group, wording: Wording) -> str:
    return wording.parts["answers.count"].fill({"n": str(len(group.numbers))})


def _class(thing: Thing, wording: Wording) -> str:
    return wording.parts["answers.class"].fill(thing.forms())


def _boxes(facts: Facts, numbers: Sequence[int], wording: Wording) -> str:
    """Boxes from the top down, and from left to right: in one order, whatever that of the annotations."""
    joint = wording.parts["parts.boxes"].fill({})
    ordered = sorted(numbers, key=lambda number: upright(facts.boxes[number].points)[1::-1])
    return wording.parts["answers.boxes"].fill({"boxes": joint.join(f"<box:{number}>" for number in ordered)})
