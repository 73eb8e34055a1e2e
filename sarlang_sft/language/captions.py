"""Captions of an image from its boxes, in the four families of SARVLM-1M (arXiv 2510.22665).

General names the classes, Complex counts them, Absolute Region says which lie in which part of the image, and Relative
Region how some lie to others. Whatever a caption says is true; it need not say all.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from random import Random

from sarlang_sft.language.dialogues import Said
from sarlang_sft.language.facts import Facts, Group
from sarlang_sft.language.places import extent_of, relations_of
from sarlang_sft.language.things import Thing
from sarlang_sft.language.wording import CAPTION_FAMILIES, Template, Wording
from sarlang_sft.records import Turn

CAPTIONS = "boxes_caption"  # subset
PAIRS_TRIED = 50  # groups and others that may be related, of one image
LONGEST_LIST = 3  # groups with their places in one caption
FAMILY_PROMPTS = {family: f"prompts.{family}" for family in CAPTION_FAMILIES}
CHIP_PROMPTS = {"general": "prompts.general", "complex": "prompts.kind"}

Placed = tuple[Group, str]
"""A group's objects in one part of the image."""


def box_captions(facts: Facts, number: int, wording: Wording, rng: Random) -> Iterator[Said]:
    """Up to `number` different captions, of the families that the boxes allow in turn.

    General and Complex name every class, and are left out where one is not known for sure.
    """
    groups = [group for group in facts.groups if group.sure]
    if not groups:
        return
    texts = {}
    if facts.complete and len(groups) == len(facts.groups):
        texts = {"general": _general(groups, wording, rng), "complex": _complex(groups, wording, rng)}
    texts["absolute_region"] = _absolute(groups, wording, rng)
    texts["relative_region"] = _relative(facts, groups, wording, rng)
    yield from _in_turn(texts, FAMILY_PROMPTS, number, CAPTIONS, wording, rng)


def chip_captions(thing: Thing, number: int, subset: str, wording: Wording, rng: Random) -> Iterator[Said]:
    """Up to `number` different captions of a picture that shows one object: its class, and what that is a kind of."""
    texts: dict[str, Iterator[str]] = {"general": _chip("general", thing, wording, rng)}
    if thing.kind is not None:
        texts["complex"] = _chip("complex", thing, wording, rng)
    yield from _in_turn(texts, CHIP_PROMPTS, number, subset, wording, rng)


def _in_turn(
    texts: dict[str, Iterator[str]],
    prompts: dict[str, str],
    number: int,
    subset: str,
    wording: Wording,
    rng: Random,
) -> Iterator[Said]:
    """One text of each family after the other, none twice, until there are enough or none is left."""
    said: set[str] = set()
    left = list(texts)
    while left and len(said) < number:
        for family in list(left):
            text = next((text for text in texts[family] if text not in said), None)
            if text is None:
                left.remove(family)
            elif len(said) < number:
                said.add(text)
                question = rng.choice(wording.sets[prompts[family]]).fill({})
                yield Said(subset, "description", family, (Turn(question, text),))


def _shuffled(form: str, wording: Wording, rng: Random) -> list[Template]:
    templates = wording.sets[form]
    return rng.sample(templates, len(templates))


def _general(groups: Sequence[Group], wording: Wording, rng: Random) -> Iterator[str]:
    for template in _shuffled("captions.general", wording, rng):
        kinds = [
            wording.parts["parts.kind_one" if group.one else "parts.kind_many"].fill(group.thing.forms())
            for group in rng.sample(groups, len(groups))
        ]
        yield sentence(template, {"kinds": wording.listing(kinds)})


def _complex(groups: Sequence[Group], wording: Wording, rng: Random) -> Iterator[str]:
    for template in _shuffled("captions.complex", wording, rng):
        counted = [counted_form(group.thing, len(group.numbers), wording) for group in rng.sample(groups, len(groups))]
        yield sentence(template, {"groups": wording.listing(counted)})


def _absolute(groups: Sequence[Group], wording: Wording, rng: Random) -> Iterator[str]:
    placed = [(group, cell) for group in groups for cell in group.cells]
    if not placed:
        return
    for template in _shuffled("captions.absolute_region", wording, rng):
        if "placed" in template.slots:
            chosen = rng.sample(placed, min(len(placed), LONGEST_LIST))
            items = [wording.parts["parts.placed"].fill(_placed_values(one, wording)) for one in chosen]
            yield sentence(template, {"placed": wording.listing(items)})
        else:
            group, cell = rng.choice(placed)
            yield sentence(template, _placed_values((group, cell), wording), len(group.cells[cell]) == 1)


def _relative(facts: Facts, groups: Sequence[Group], wording: Wording, rng: Random) -> Iterator[str]:
    if len(groups) < 2:
        return
    placed = [(group, cell) for group in groups for cell in group.cells]
    pairs = [(one, other) for one in rng.sample(placed, len(placed)) for other in groups if other is not one[0]]
    templates = cycle(_shuffled("captions.relative_region", wording, rng))
    for ((group, cell), other), template in islice(zip(pairs, templates, strict=False), PAIRS_TRIED):
        one = extent_of(facts.boxes[number].points for number in group.cells[cell])
        held = relations_of(one, extent_of(facts.boxes[number].points for number in other.numbers))
        if held:
            values = _placed_values((group, cell), wording) | {
                "relation": wording.relations[rng.choice(held)][0],
                "the_group": counted_form(other.thing, len(other.numbers), wording, "the_"),
            }
            yield sentence(template, values, len(group.cells[cell]) == 1)


def _chip(family: str, thing: Thing, wording: Wording, rng: Random) -> Iterator[str]:
    for template in _shuffled(f"chips.{family}", wording, rng):
        if {"kind", "a_kind"}.isdisjoint(template.slots) or thing.kind is not None:
            yield sentence(template, thing.forms())


def _placed_values(placed: Placed, wording: Wording) -> dict[str, str]:
    group, cell = placed
    number = len(group.cells[cell])
    return {"group": counted_form(group.thing, number, wording), "place": wording.places[cell][0]}


def counted_form(thing: Thing, number: int, wording: Wording, article: str = "") -> str:
    """`1 ship`, `14 tanks`; with the article `the_`: `the ship`, `the 14 tanks`."""
    part = f"parts.{article}{'one' if number == 1 else 'many'}"
    return wording.parts[part].fill(thing.forms() | {"n": str(number)})


def sentence(template: Template, values: dict[str, str], one: bool = False) -> str:
    """A filled template that begins with a capital letter."""
    text = template.fill(values, one)
    first = text[:1].upper()
    return first + text[1:] if first.lower() == text[:1] else text
