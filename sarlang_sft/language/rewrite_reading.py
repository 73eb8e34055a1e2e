"""Captions read without their templates: their classes, numbers, places and relations, and what belongs to what.

Only words of the wording are known. A text is read if it can mean one thing alone by the rules here, which look at the
order of what is found and at what stands between; docs/rewriting.md tells them with examples.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple

from sarlang_sft.language.things import Thing, thing_named
from sarlang_sft.language.wording import ORDER_SLOTS, Template, Wording

LONGEST_NUMBER = 9  # digits
CONVERSE = {"below": "above", "right": "left"}
MANY, BARE = "many", "bare"  # a plural without a number; a singular without number and article

Kind = Enum(
    "Kind", ["THING", "NUMBER", "PLACE", "RELATION", "PLAIN", "JOINT", "BLURRED", "REFUSED", "UNKNOWN", "UNREAD"]
)
_HYPHEN = re.compile(r"(?<=[^\W_])[-_]+(?=[^\W_])")
_SAME = str.maketrans({"’": "'", "‐": "-", "‑": "-"})
_DIGITS = re.compile(r"[0-9]+")
_WORD = re.compile(r"[a-z0-9]+")
_LETTERS = re.compile(r"[^\W\d_]+")


class UnreadError(ValueError):
    """Why a text cannot be read for sure: a `reason` to be counted, and the place."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Form(NamedTuple):
    """A spelling of a class, and what it may mean alone: `1`, `MANY` or `BARE`, several joined by a stroke."""

    thing: str
    count: str


class Phrase(NamedTuple):
    text: str
    kind: Kind
    value: Any


class Piece(NamedTuple):
    """What is found at one place of a folded text."""

    kind: Kind
    value: Any
    start: int
    end: int


class Item(NamedTuple):
    """A group of objects (`G`), a place (`P`), a relation (`R`) or a joint (`J`) of a folded text."""

    letter: str
    value: Any
    start: int
    end: int


class Named(NamedTuple):
    """The value of a group: its class, with what it is a kind of where that is said, and its count, see [`Form`]."""

    things: tuple[str, ...]
    count: str


class Group(NamedTuple):
    """Objects of a class with their place, which may be empty."""

    named: Named
    place: str


class Facts(NamedTuple):
    """All that a caption states: groups in no order, and (relation, subject, object), above and left alone."""

    groups: tuple[Group, ...]
    relation: tuple[str, Group, Group] | None


class Order(NamedTuple):
    """Which of the items is what; the place is that of `owner`."""

    subject: int
    object: int
    relation: int
    place: int
    owner: int


@dataclass(frozen=True)
class Lexicon:
    """What is known of a wording's words, all folded.

    Attributes:
        phrases: By their first character, the longest first.
        counted: What may stand between a number and its class, and between a class and its number.
        articles: What stands in front of a number that refers back.
        namings: What may stand between a class and what it is a kind of.
        kinds: Class and what it is a kind of.
        orders: By the letters of the items; those that may mean two things are missing.
        close: What may stand between two neighbours, by their letters, where it must be a template's text: a group
            and its place, a relation and its object (`O`).
        comma: The joint of `parts.between`.
        known: Words that say nothing; if there are any, others are told.
    """

    phrases: Mapping[str, tuple[Phrase, ...]]
    counted: tuple[frozenset[str], frozenset[str]]
    articles: tuple[str, ...]
    namings: frozenset[str]
    kinds: frozenset[tuple[str, str]]
    orders: Mapping[str, Order]
    close: Mapping[str, frozenset[str]]
    comma: str
    known: frozenset[str]


def fold(text: str) -> str:
    """A text without what makes no difference: case, runs of white space, hyphens and underscores within words."""
    plain = unicodedata.normalize("NFC", text).translate(_SAME).casefold()
    return " ".join(_HYPHEN.sub(" ", plain).split())


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
    related, placed = wording.sets["captions.relative_region"], [*_placed_templates(wording)]
    close = {
        **dict(zip(("RO", "OR"), _gaps(related, "relation", ("the_group",)), strict=True)),
        **dict(zip(("GP", "PG"), _gaps(placed, "group", ("place",)), strict=True)),
    }
    return Lexicon(
        phrases=_by_first_character(_phrases(classes, wording, reading)),
        counted=(first | counters, second),
        articles=tuple({fold(parts[f"parts.{name}"].texts[0]) for name in ("the_one", "the_many")} - {""}),
        namings=named_by[0] | named_by[1] | {fold(text) for text in reading.get("namings", ())},
        kinds=frozenset((fold(thing.name), fold(thing.kind)) for thing in classes if thing.kind is not None),
        orders=_orders(related, reading.get("orders", ())),
        close=close,
        comma=fold(parts["parts.between"].fill({})),
        known=_known(wording, reading.get("known", ()), reading.get("namings", ())),
    )


def _known(wording: Wording, words: Sequence[str], namings: Sequence[str]) -> frozenset[str]:
    if not words:
        return frozenset()
    templates = [
        template
        for name, templates in wording.sets.items()
        if name.startswith(("captions.", "chips."))
        for template in templates
    ]
    # Of slots such as {is|are}, too.
    texts = [text for template in (*templates, *wording.parts.values()) for text in template.texts]
    texts += [slot for template in templates for slot in template.slots if "|" in slot]
    return frozenset(word for text in (*texts, *words, *namings) for word in _LETTERS.findall(fold(text)))


_CLASS = ("class", "classes", "a_class")
_CLASS_AND_KIND = (_CLASS, ("kind", "a_kind"))


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
        found.setdefault(_letters(slots), set()).add(_order(slots))
    for slots in (text.split() for text in more):
        if _letters(slots) not in found:  # a template knows better
            found[_letters(slots)] = {_order(slots)}
    return {letters: orders.pop() for letters, orders in found.items() if len(orders) == 1}


def _letters(slots: Iterable[str]) -> str:
    return "".join(ORDER_SLOTS[slot] for slot in slots)


def _order(slots: Sequence[str]) -> Order:
    place = next(slot for slot in slots if ORDER_SLOTS[slot] == "P")
    owner = place.removeprefix("place_of_")
    return Order(*(slots.index(slot) for slot in ("subject", "object", "relation", place, owner)))


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
        (Kind.PLAIN, reading.get("plain", ())),
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


def find_pieces(text: str, lexicon: Lexicon) -> list[Piece]:
    """What stands in a folded text, from the left, the longest phrase first; words begin and end at ASCII letters."""
    found = []
    at = 0
    while at < len(text):
        piece = _piece_at(text, at, lexicon)
        if piece is not None:
            found.append(piece)
            at = piece.end
            continue
        word = (_LETTERS if lexicon.known else _WORD).match(text, at)
        if word is not None and lexicon.known and word[0] not in lexicon.known:
            found.append(Piece(Kind.UNKNOWN, word[0], at, word.end()))
        at = word.end() if word is not None else at + 1
    return found


def _piece_at(text: str, at: int, lexicon: Lexicon) -> Piece | None:
    for phrase in lexicon.phrases.get(text[at], ()):
        end = at + len(phrase.text)
        if text.startswith(phrase.text, at) and not (_in_word(text[end - 1]) and _in_word(text[end : end + 1])):
            return Piece(phrase.kind, phrase.value, at, end)
    word = _WORD.match(text, at)
    if word is None:
        return Piece(Kind.UNREAD, text[at], at, at + 1) if text[at].isnumeric() else None
    if not _DIGITS.search(word[0]):
        return None
    if _DIGITS.fullmatch(word[0]) and len(word[0]) <= LONGEST_NUMBER:
        return Piece(Kind.NUMBER, int(word[0]), at, word.end())
    return Piece(Kind.UNREAD, word[0], at, word.end())


def _in_word(character: str) -> bool:
    return bool(_WORD.fullmatch(character))


def find_items(text: str, pieces: Sequence[Piece], lexicon: Lexicon) -> list[Item]:
    """The groups, places, relations and joints of a text, every number bound to its class.

    Raises:
        UnreadError: There is a number that belongs to no class or does not fit it, or one that is not understood.
    """
    telling = [piece for piece in pieces if piece.kind in _TELLING]
    items: list[Item] = []
    at = 0
    while at < len(telling):
        piece = telling[at]
        following = telling[at + 1] if at + 1 < len(telling) else None
        numbers = [one.value for one in (piece, following) if one is not None and one.kind == Kind.NUMBER]
        if following is not None and _counts(text, piece, following, lexicon):
            form = following.value if piece.kind == Kind.NUMBER else piece.value
            start = _with_article(text, piece.start, lexicon)
            items.append(Item("G", Named((form.thing,), _fitting(numbers[0], form)), start, following.end))
            at += 2
            continue
        if piece.kind in (Kind.NUMBER, Kind.UNREAD):
            reason = "a number without a class" if piece.kind == Kind.NUMBER else "a number that is not understood"
            raise UnreadError(reason, text[piece.start : piece.end])
        value = Named((piece.value.thing,), piece.value.count) if piece.kind == Kind.THING else piece.value
        items.append(Item(_TELLING[piece.kind], value, piece.start, piece.end))
        at += 1
    return _with_kinds(text, items, lexicon)


_TELLING = {
    Kind.THING: "G",
    Kind.PLACE: "P",
    Kind.RELATION: "R",
    Kind.JOINT: "J",
    Kind.NUMBER: "",
    Kind.UNREAD: "",
}


def _counts(text: str, one: Piece, other: Piece, lexicon: Lexicon) -> bool:
    order = (one.kind, other.kind)
    if order not in _NUMBER_AND_THING:
        return False
    return text[one.end : other.start].strip() in lexicon.counted[_NUMBER_AND_THING.index(order)]


_NUMBER_AND_THING = ((Kind.NUMBER, Kind.THING), (Kind.THING, Kind.NUMBER))


def _fitting(number: int, form: Form) -> str:
    if (BARE if number == 1 else MANY) not in form.count.split("/"):
        raise UnreadError("a number that does not fit its class", f"{number} {form.thing}")
    return str(number)


def _with_article(text: str, start: int, lexicon: Lexicon) -> int:
    end = start - (start > 0 and text[start - 1] == " ")
    for article in lexicon.articles:
        begin = end - len(article)
        in_word = _in_word(article[0]) and _in_word(text[max(begin - 1, 0) : begin])
        if begin >= 0 and text.startswith(article, begin) and not in_word:
            return begin
    return start


def _with_kinds(text: str, items: Sequence[Item], lexicon: Lexicon) -> list[Item]:
    """A class and what it is a kind of, one behind the other, are one group."""
    merged: list[Item] = []
    for item in items:
        at = len(merged) - 1
        while item.letter == "G" and at >= 0 and merged[at].letter == "J":  # a comma may be part of what names
            at -= 1
        one = merged[at] if at >= 0 and item.letter == merged[at].letter == "G" else None
        pair = (*one.value.things, *item.value.things) if one is not None else ()
        related = len(pair) == 2 and ({pair, pair[::-1]} & lexicon.kinds)
        if related and text[one.end : item.start].strip() in lexicon.namings:
            count = _common(one.value.count, item.value.count)
            merged[at:] = [Item("G", Named(tuple(sorted(pair)), count), one.start, item.end)]
        else:
            merged.append(item)
    return [_certain(item) for item in merged]


def _certain(item: Item) -> Item:
    """`Aircraft` alone are many: of one, captions say `an aircraft`."""
    if item.letter != "G" or MANY not in item.value.count:
        return item
    counts = [count for count in item.value.count.split("/") if count != BARE]
    return item._replace(value=item.value._replace(count="/".join(counts)))


def _common(one: str, other: str) -> str:
    """The count of a class that is named twice over: what either says, if the other does not say otherwise."""
    if one == other:
        return one
    for said, unsaid in ((one, other), (other, one)):
        if said.isdigit() and (BARE if said == "1" else MANY) in unsaid.split("/"):
            return said
    raise UnreadError("a class and its kind have different numbers", f"{one}, {other}")


def bind(text: str, items: Sequence[Item], lexicon: Lexicon) -> Facts:
    """What belongs to what.

    Raises:
        UnreadError: It may mean more than one thing.
    """
    places = [place for place, item in enumerate(items) if item.letter != "J"]
    main = [items[place] for place in places]
    letters = "".join(item.letter for item in main)
    gaps = [_gap(text, items[one : other + 1]) for one, other in pairwise(places)]
    if "G" not in letters:
        raise UnreadError("no class of the set")
    if "R" in letters:
        return _related(main, gaps, letters, lexicon)
    if "P" in letters:
        return _placed(main, gaps, letters, lexicon)
    for gap in gaps:
        if not gap.only_joints:
            raise UnreadError("classes that are not just listed", gap.text)
    return _facts(Group(item.value, "") for item in main)


class _Gap(NamedTuple):
    """What stands between two items, and whether joints are all of it, or touch its ends."""

    text: str
    joints: tuple[str, ...]
    only_joints: bool
    begins: bool
    ends: bool


def _gap(text: str, items: Sequence[Item]) -> _Gap:
    """Of the first of some items and the last, with joints between."""
    one, *joints, other = items
    edges = [one.end, *(edge for joint in joints for edge in (joint.start, joint.end)), other.start]
    blank = [not text[begin:end].strip() for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    return _Gap(
        text[one.end : other.start].strip(),
        tuple(joint.value for joint in joints),
        bool(joints) and all(blank),
        bool(joints) and blank[0],
        bool(joints) and blank[-1],
    )


def _facts(groups: Iterable[Group], relation: tuple[str, Group, Group] | None = None) -> Facts:
    return Facts(tuple(sorted(groups)), relation)


def _placed(main: Sequence[Item], gaps: Sequence[_Gap], letters: str, lexicon: Lexicon) -> Facts:
    pairs, left = divmod(len(main), 2)
    if left or letters not in ("GP" * pairs, "PG" * pairs):
        raise UnreadError("places whose classes are not sure", letters)
    group_first = letters[0] == "G"
    for gap in gaps[::2]:
        if {*gap.joints} - {lexicon.comma}:
            raise UnreadError("places whose classes are not sure", gap.text)
    for gap in gaps[1::2]:  # a joint beside the group tells that its pair begins or ends there
        if not (gap.ends if group_first else gap.begins):
            raise UnreadError("places whose classes are not sure", gap.text)
    ones, others = main[::2], main[1::2]
    groups, places = (ones, others) if group_first else (others, ones)
    return _facts(Group(group.value, place.value) for group, place in zip(groups, places, strict=True))


def _related(main: Sequence[Item], gaps: Sequence[_Gap], letters: str, lexicon: Lexicon) -> Facts:
    order = lexicon.orders.get(letters)
    if order is None:
        raise UnreadError("a relation whose sides are not sure", letters)
    roles = {order.relation: "R", order.object: "O"}
    for number, gap in enumerate(gaps):
        sides = "".join(roles.get(side, letters[side]) for side in (number, number + 1))
        bound = {number, number + 1} == {order.object, order.place} and order.owner == order.object
        near = lexicon.close.get(sides.replace("O", "G") if bound else sides) if bound or "O" in sides else None
        if near is not None and gap.text not in near:
            raise UnreadError("a relation whose sides are not sure", gap.text)
        if {number, number + 1} == {order.subject, order.object} and {*gap.joints} - {lexicon.comma}:
            raise UnreadError("a relation whose sides are not sure", gap.text)
    placed = {order.owner: main[order.place].value}
    subject, behind = (Group(main[side].value, placed.get(side, "")) for side in (order.subject, order.object))
    name = main[order.relation].value
    if name in CONVERSE:
        return _facts((subject, behind), (CONVERSE[name], behind, subject))
    return _facts((subject, behind), (name, subject, behind))
