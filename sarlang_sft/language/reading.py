"""Texts read back by the templates that made them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sarlang_sft.language.things import Thing
from sarlang_sft.language.wording import SETS, Template, Wording

_WHOLE = r"(?:0|[1-9]\d*)"
_CLASS_SLOTS = ("class", "classes", "a_class")


class Phrase(NamedTuple):
    """A template as a pattern, with a group for every slot; choices such as `{is|are}` by number.

    `begins_with_slot`: the first letter of a sentence may be that of a class, made a capital one.
    """

    pattern: re.Pattern[str]
    choices: tuple[tuple[str, str], ...]
    begins_with_slot: bool


class Reading(NamedTuple):
    """What a text says by one template.

    Attributes:
        values: By slot.
        things: The classes that it may speak of; None if its template names none.
        one: Whether its choices are made for one object; None if it has none or they contradict each other.
    """

    values: dict[str, str]
    things: tuple[Thing, ...] | None
    one: bool | None


@dataclass(frozen=True)
class Reader:
    """Patterns of all that a wording can say of a set's classes.

    Attributes:
        labels: The class of every label.
        forms: Classes by slot and spelling.
        phrases: By the names of `SETS`.
        parts: By the names of the parts that lists are made of.
        items: Patterns of what lists are made of, by the slot of the list.
        joints: What stands between them.
        places, relations: What the written words mean.
        known: What parts of lists were found to say.
    """

    wording: Wording
    labels: Mapping[str, Thing]
    forms: Mapping[str, Mapping[str, tuple[Thing, ...]]]
    phrases: Mapping[str, tuple[Phrase, ...]]
    parts: Mapping[str, Phrase]
    items: Mapping[str, re.Pattern[str]]
    joints: re.Pattern[str]
    places: Mapping[str, str]
    relations: Mapping[str, str]
    known: dict[tuple[tuple[str, ...], str], list[tuple[str, Reading]]]


def make_reader(wording: Wording, labels: Mapping[str, Thing]) -> Reader:
    """A reader for a set with these classes."""
    forms: dict[str, dict[str, tuple[Thing, ...]]] = {slot: {} for slot in _CLASS_SLOTS}
    for thing in dict.fromkeys(labels.values()):
        for slot in _CLASS_SLOTS:
            spelling = thing.forms()[slot]
            forms[slot][spelling] = (*forms[slot].get(spelling, ()), thing)
    places = {words[0]: cell for cell, words in wording.places.items()}
    relations = {words[0]: relation for relation, words in wording.relations.items()}
    spelt = {slot: one_of(spellings) for slot, spellings in forms.items()}
    spelt |= {"n": _WHOLE, "area": r"\[[-\d., ]+\]", "box": f"<box:{_WHOLE}>"}
    spelt |= {"place": one_of(places), "relation": one_of(relations)}
    counted = ("one", "many", "the_one", "the_many", "kind_one", "kind_many")
    parts = {name: _phrase(wording.parts[f"parts.{name}"], spelt) for name in counted}
    items = {"kinds": _either(parts, "kind_one", "kind_many"), "groups": _either(parts, "one", "many")}
    spelt |= {"group": items["groups"], "the_group": _either(parts, "the_one", "the_many")}
    parts["placed"] = _phrase(wording.parts["parts.placed"], spelt)
    items["placed"] = _nameless(parts["placed"])
    joints = one_of([wording.parts[f"parts.{name}"].fill({}) for name in ("between", "last")])
    spelt |= {slot: f"{item}(?:{joints}{item})*" for slot, item in items.items()}
    return Reader(
        wording=wording,
        labels=labels,
        forms=forms,
        phrases={
            key: tuple(_phrase(template, spelt) for template in wording.sets[key])
            for key in SETS
            if not key.startswith("chips.")
        },
        parts=parts,
        items={slot: re.compile(item) for slot, item in items.items()},
        joints=re.compile(joints),
        places=places,
        relations=relations,
        known={},
    )


def one_of(words: Sequence[str] | Mapping[str, object]) -> str:
    """A pattern of any of the words, the longest first."""
    return "(?:" + "|".join(map(re.escape, sorted({*words}, key=lambda word: (-len(word), word)))) + ")"


def _either(parts: Mapping[str, Phrase], one: str, many: str) -> str:
    return f"(?:{_nameless(parts[many])}|{_nameless(parts[one])})"


def _nameless(phrase: Phrase) -> str:
    return re.sub(r"\(\?P<\w+>", "(?:", phrase.pattern.pattern)


def _phrase(template: Template, spelt: Mapping[str, str]) -> Phrase:
    pieces, choices = [re.escape(template.texts[0])], []
    for slot, text in zip(template.slots, template.texts[1:], strict=True):
        one, bar, many = slot.partition("|")
        if bar:
            pieces.append(f"(?P<choice_{len(choices)}>{one_of([one, many])})")
            choices.append((one, many))
        else:
            pieces.append(f"(?P<{slot}>{spelt[slot]})")
        pieces.append(re.escape(text))
    return Phrase(re.compile("".join(pieces)), tuple(choices), not template.texts[0])


def readings(reader: Reader, phrases: Sequence[Phrase], text: str) -> Iterator[Reading]:
    """All that a text can say by some phrases."""
    for phrase in phrases:
        if match := phrase.pattern.fullmatch(text):
            values = match.groupdict()
            chosen = {values[f"choice_{number}"] == words[0] for number, words in enumerate(phrase.choices)}
            same = all(one == many for one, many in phrase.choices)
            yield Reading(values, _things(reader, values), chosen.pop() if len(chosen) == 1 and not same else None)


def sentence_readings(reader: Reader, phrases: Sequence[Phrase], text: str) -> Iterator[Reading]:
    """[`readings`] of a text whose first letter may have been made a capital one."""
    yield from readings(reader, phrases, text)
    spelling = text[:1].lower() + text[1:]
    if spelling != text:
        yield from readings(reader, [phrase for phrase in phrases if phrase.begins_with_slot], spelling)


def read_part(reader: Reader, names: tuple[str, ...], text: str) -> list[tuple[str, Reading]]:
    """All that a part of a list can say, with the name of the part that says so; the same few come again and again."""
    found = reader.known.get((names, text))
    if found is None:
        found = [(name, reading) for name in names for reading in readings(reader, [reader.parts[name]], text)]
        reader.known[names, text] = found
    return found


def split_list(reader: Reader, slot: str, text: str) -> list[str]:
    """The items of a list that fills `slot`; empty if it is none, or joined in another way than the wording's."""
    found, place = [], 0
    while item := reader.items[slot].match(text, place):
        found.append(item[0])
        joint = reader.joints.match(text, item.end())
        if item.end() == len(text):
            return found if reader.wording.listing(found) == text else []
        if not joint:
            return []
        place = joint.end()
    return []


def _things(reader: Reader, values: Mapping[str, str]) -> tuple[Thing, ...] | None:
    meant = [reader.forms[slot][values[slot]] for slot in _CLASS_SLOTS if slot in values]
    if len(meant) < 2:
        return meant[0] if meant else None
    return tuple(thing for thing in meant[0] if all(thing in other for other in meant))
