"""Captions read without their templates: their classes, numbers, places and relations, and what belongs to what.

Only words of the wording are known. A text is read if it can mean one thing alone by the rules here, which look at the
order of what is found and at what stands between; docs/rewriting.md tells them with examples.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from sarlang_sft.rewriting.stretches import without_end
from sarlang_sft.rewriting.words import BARE, LETTERS, MANY, Form, Kind, Lexicon

LONGEST_NUMBER = 9  # digits
CONVERSE = {"below": "above", "right": "left"}

_DIGITS = re.compile(r"[0-9]+")
_WORD = re.compile(r"[a-z0-9]+")


class UnreadError(ValueError):
    """Why a text cannot be read for sure: a `reason` to be counted, and the place."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


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
        word = (LETTERS if lexicon.known else _WORD).match(text, at)
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


def strange_stretch(text: str, items: Sequence[Item], lexicon: Lexicon, more: Iterable[str]) -> str | None:
    """The first stretch around or between the items of a text that was bound, if the wording has none like it.

    Args:
        more: Words that may stand anywhere, beside `reading.known`.
    """
    if not lexicon.stretches:
        return None
    anywhere = lexicon.anywhere | {*more}
    main = [item for item in items if item.letter != "J"]
    names = [f"before_{_CALLED[main[0].letter]}", *_between(main, lexicon), f"behind_{_CALLED[main[-1].letter]}"]
    edges = [0, *(edge for item in main for edge in (item.start, item.end)), len(text)]
    for name, begin, end in zip(names, edges[::2], edges[1::2], strict=True):
        stretch = LETTERS.sub(lambda word: "" if word[0] in anywhere else word[0], text[begin:end])
        stretch = " ".join((without_end(stretch) if end == len(text) else stretch).split())
        if name is not None and not lexicon.stretches[name].fullmatch(stretch):
            return stretch
    return None


_CALLED = {"G": "group", "P": "place", "R": "relation"}


def _between(main: Sequence[Item], lexicon: Lexicon) -> list[str | None]:
    """The names of what stands between; None for what `bind` looks at."""
    letters = "".join(item.letter for item in main)
    if "R" in letters:
        return [_IN_ORDER.get(neighbours) for neighbours in pairwise(lexicon.orders[letters])]
    if "P" not in letters:
        return [None] * (len(main) - 1)
    within = "group_place" if letters[0] == "G" else "place_group"
    return [within if number % 2 == 0 else "next_pair" for number in range(len(main) - 1)]


_IN_ORDER = {
    ("subject", "place_of_subject"): "group_place",
    ("object", "place_of_object"): "group_place",
    ("place_of_subject", "subject"): "place_group",
    ("place_of_object", "object"): "place_group",
    ("object", "subject"): "to_subject",
    ("place_of_object", "subject"): "to_subject",
    ("object", "place_of_subject"): "group_place",
    **{(role, "relation"): "to_relation" for role in ("subject", "place_of_subject", "place_of_object")},
}


def _related(main: Sequence[Item], gaps: Sequence[_Gap], letters: str, lexicon: Lexicon) -> Facts:
    order = lexicon.orders.get(letters)
    if order is None:
        raise UnreadError("a relation whose sides are not sure", letters)
    for neighbours, gap in zip(pairwise(order), gaps, strict=True):
        near = lexicon.close.get(neighbours)
        joined = {*neighbours} == {"subject", "object"} and {*gap.joints} - {lexicon.comma}
        if joined or (near is not None and gap.text not in near):
            raise UnreadError("a relation whose sides are not sure", gap.text)
    said = {role: item.value for role, item in zip(order, main, strict=True)}
    subject, behind = (Group(said[side], said.get(f"place_of_{side}", "")) for side in ("subject", "object"))
    name = said["relation"]
    if name in CONVERSE:
        return _facts((subject, behind), (CONVERSE[name], behind, subject))
    return _facts((subject, behind), (name, subject, behind))
