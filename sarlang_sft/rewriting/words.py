"""The words by which captions are read without their templates: all that a wording and the classes of a set give.

Nothing is known of a language here but what its wording lists; `reading` reads with it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

from sarlang_sft.language.things import Thing, thing_named
from sarlang_sft.language.wording import ORDER_SLOTS, Template, Wording
from sarlang_sft.rewriting.folding import fold
from sarlang_sft.rewriting.stretches import Stretches, make_stretches, words_of

MANY, BARE = "many", "bare"  # a plural without a number; a singular without number and article

Kind = Enum(
    "Kind", ["THING", "NUMBER", "PLACE", "RELATION", "PLAIN", "JOINT", "BLURRED", "REFUSED", "UNKNOWN", "UNREAD"]
)
LETTERS = re.compile(r"[^\W\d_]+")
_CLASS = ("class", "classes", "a_class")
_CLASS_AND_KIND = (_CLASS, ("kind", "a_kind"))


class Form(NamedTuple):
    """A spelling of a class, and what it may mean alone: `1`, `MANY` or `BARE`, several joined by a stroke."""

    thing: str
    count: str


class Phrase(NamedTuple):
    """A folded text that means something."""

    text: str
    kind: Kind
    value: Any


Order = tuple[str, ...]
"""What each item of a caption of two groups is, by the names of `ORDER_SLOTS`."""


@dataclass(frozen=True)
class Lexicon:
    """What is known of a wording's words, all folded.

    Attributes:
        phrases: By their first character, the longest first.
        counted: What may stand between a number and its class, and between a class and its number.
        articles: What stands in front of a number and belongs to it.
        namings: What may stand between a class and what it is a kind of.
        kinds: Class and what it is a kind of.
        orders: By the letters of the items; those that may mean two things are missing.
        close: What may stand between two neighbours, by what they are, where it must be a template's text: the
            object and its place, a relation and its object.
        comma: The joint of `parts.between`.
        known: Words that say nothing; if there are any, others are told.
        anywhere: Those of them that may stand anywhere.
        stretches: What may stand around and between.
    """

    phrases: Mapping[str, tuple[Phrase, ...]]
    counted: tuple[frozenset[str], frozenset[str]]
    articles: tuple[str, ...]
    namings: frozenset[str]
    kinds: frozenset[tuple[str, str]]
    orders: Mapping[str, Order]
    close: Mapping[tuple[str, str], frozenset[str]]
    comma: str
    known: frozenset[str]
    anywhere: frozenset[str]
    stretches: Stretches


def make_lexicon(things: Iterable[Thing], wording: Wording) -> Lexicon:
    """What is needed to read captions of a set.

    Args:
        things: All classes of the set, see `name_things`.
    """
    classes = list({fold(thing.name): thing for thing in things}.values())
    reading = wording.content.get("reading", {})
    parts = wording.parts
    first, second = _gaps((parts[f"parts.{name}"] for name in ("one", "many", "the_one", "the_many")), "n", _CLASS)
    counters = {fold(text) for text in reading.get("counters", ())}
    named_by = _gaps(wording.sets["chips.complex"], *_CLASS_AND_KIND)
    related = wording.sets["captions.relative_region"]
    behind_relation, before_relation = _gaps(related, "relation", ("the_group",))
    behind_group, before_group = _gaps(_placed_templates(wording), "group", ("place",))
    leads = {fold(text) for text in reading.get("leads", ())}
    return Lexicon(
        phrases=_by_first_character(_phrases(classes, wording, reading)),
        counted=(first | counters, second),
        articles=tuple(({fold(parts[f"parts.{name}"].texts[0]) for name in ("the_one", "the_many")} | leads) - {""}),
        namings=named_by[0] | named_by[1] | {fold(text) for text in reading.get("namings", ())},
        kinds=frozenset((fold(thing.name), fold(thing.kind)) for thing in classes if thing.kind is not None),
        orders=_orders(related, reading.get("orders", ())),
        close={
            ("relation", "object"): behind_relation,
            ("object", "relation"): before_relation,
            ("object", "place_of_object"): behind_group,
            ("place_of_object", "object"): before_group,
        },
        comma=fold(parts["parts.between"].fill({})),
        known=_known(wording, reading.get("known", ()), reading.get("namings", ())),
        anywhere=frozenset(map(fold, reading.get("known", ()))),
        stretches=make_stretches(wording) if reading.get("known") else {},
    )


def _known(wording: Wording, words: Sequence[str], namings: Sequence[str]) -> frozenset[str]:
    if not words:
        return frozenset()
    templates = [
        template
        for name, templates in (*wording.sets.items(), *((name, (part,)) for name, part in wording.parts.items()))
        if name.startswith(("captions.", "chips.", "parts."))
        for template in templates
    ]
    texts = [text for template in templates for text in template.texts]
    texts += [slot for template in templates for slot in template.slots if "|" in slot]  # {is|are}
    listed = (*words, *namings, *words_of(wording))
    return frozenset(word for text in (*texts, *listed) for word in LETTERS.findall(fold(text)))


def _placed_templates(wording: Wording) -> Iterator[Template]:
    yield wording.parts["parts.placed"]
    for family in ("absolute_region", "relative_region"):
        yield from wording.sets[f"captions.{family}"]


def _gaps(
    templates: Iterable[Template], one: str | tuple[str, ...], other: tuple[str, ...]
) -> tuple[frozenset[str], frozenset[str]]:
    """The texts between two slots that follow each other, by which of them is the first."""
    found: tuple[set[str], set[str]] = set(), set()
    for template in templates:
        for number, (slot, following) in enumerate(pairwise(template.slots)):
            for which, (before, behind) in enumerate(((one, other), (other, one))):
                if slot in _many(before) and following in _many(behind):
                    found[which].add(fold(template.texts[number + 1]))
    return frozenset(found[0]), frozenset(found[1])


def _many(slots: str | tuple[str, ...]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else slots


def _orders(templates: Iterable[Template], more: Iterable[str]) -> dict[str, Order]:
    names = {"group": "subject", "place": "place_of_subject", "relation": "relation", "the_group": "object"}
    written = [[names[slot] for slot in template.slots if slot in names] for template in templates]
    found: dict[str, set[Order]] = {}
    for slots in written:
        found.setdefault(_letters(slots), set()).add(tuple(slots))
    for slots in (text.split() for text in more):
        if _letters(slots) not in found:  # a template knows better
            found[_letters(slots)] = {tuple(slots)}
    return {letters: orders.pop() for letters, orders in found.items() if len(orders) == 1}


def _letters(slots: Iterable[str]) -> str:
    return "".join(ORDER_SLOTS[slot] for slot in slots)


def _phrases(things: Sequence[Thing], wording: Wording, reading: Mapping[str, Any]) -> Iterator[Phrase]:
    """What comes first wins over another meaning of the same text."""
    forms, unclear = _forms(things, wording)
    for text, form in forms.items():
        yield Phrase(text, Kind.THING, form)
    yield from (Phrase(text, Kind.REFUSED, text) for text in unclear)
    yield from (Phrase(fold(str(text)), Kind.NUMBER, value) for text, value in reading.get("numbers", {}).items())
    for kind, spellings in ((Kind.PLACE, wording.places), (Kind.RELATION, wording.relations)):
        for name, texts in spellings.items():
            yield from (Phrase(fold(text), kind, name) for text in texts)
    joints = (
        wording.parts["parts.between"].fill({}),
        wording.parts["parts.last"].fill({}),
        *reading.get("joints", ()),
    )
    # A side alone is no place: it may be any of three.
    for kind, words in (
        (Kind.PLAIN, (*reading.get("plain", ()), *reading.get("leads", ()))),
        (Kind.JOINT, joints),
        (Kind.BLURRED, wording.regions.values()),
        (Kind.REFUSED, reading.get("refused", ())),
    ):
        yield from (Phrase(fold(text), kind, fold(text)) for text in words)


def _forms(things: Sequence[Thing], wording: Wording) -> tuple[dict[str, Form], set[str]]:
    """Every spelling of the classes and of what they are kinds of; and those that may mean two of them."""
    counts: dict[str, dict[str, set[str]]] = {}
    for thing in things:
        _add_forms(counts, fold(thing.name), thing, wording)
    names = set(counts)
    for thing in things:
        others = [(fold(thing.name), name) for name in thing.also]
        others += [(fold(thing.kind), thing.kind)] if thing.kind is not None else []
        for meant, name in others:
            _add_forms(counts, meant, thing_named(name, wording), wording, names)
    clear = {text: meant for text, meant in counts.items() if len(meant) == 1}
    forms = {
        text: Form(thing, "/".join(sorted(means))) for text, meant in clear.items() for thing, means in meant.items()
    }
    return forms, set(counts) - set(clear)


def _add_forms(
    counts: dict[str, dict[str, set[str]]], meant: str, thing: Thing, wording: Wording, taken: Iterable[str] = ()
) -> None:
    spelt = [(thing.name, BARE), (thing.many, MANY), (thing.a, "1")]
    spelt.append((wording.parts["parts.kind_many"].fill(thing.forms()), MANY))
    for name in ("one", "the_one", "kind_one"):
        part = wording.parts[f"parts.{name}"]
        if "n" not in part.slots:
            spelt.append((part.fill(thing.forms()), "1"))
    for text, count in spelt:
        if fold(text) not in taken:
            counts.setdefault(fold(text), {}).setdefault(meant, set()).add(count)


def _by_first_character(phrases: Iterable[Phrase]) -> dict[str, tuple[Phrase, ...]]:
    first: dict[str, Phrase] = {}
    for phrase in phrases:
        if phrase.text:
            first.setdefault(phrase.text, phrase)
    found: dict[str, list[Phrase]] = {}
    for phrase in sorted(first.values(), key=lambda phrase: -len(phrase.text)):
        found.setdefault(phrase.text[0], []).append(phrase)
    return {character: tuple(listed) for character, listed in found.items()}
