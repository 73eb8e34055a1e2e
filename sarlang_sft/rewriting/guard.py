"""The guard of rewritten captions: what loses, changes, adds or blurs a fact, or is not read for sure, is refused.

It compares what `reading` reads in the caption and in the rewrite. Where the wording lists the words that it
knows (`reading.known`) and what they may be put together to (`reading.around`), all else is refused; elsewhere only
the words of `reading.refused` are, and a thing that is no class of the set and not among them passes unseen.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sarlang_sft.rewriting.folding import fold
from sarlang_sft.rewriting.reading import (
    Facts,
    Item,
    Piece,
    UnreadError,
    bind,
    find_items,
    find_pieces,
    strange_stretch,
)
from sarlang_sft.rewriting.words import Kind, Lexicon
from sarlang_sft.text_checks import SPECIAL_TOKENS

TIMES_LONGER, WORDS_MORE, CHARACTERS_MORE = 3, 10, 80
_BOX = re.compile(r"<box", re.IGNORECASE)


class Fault(NamedTuple):
    """Why a rewrite is refused: a `reason` to be counted, and what it lies in."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class ReadCaption:
    """A caption with what it states, and how often it has words that a rewrite must not add."""

    text: str
    items: tuple[Item, ...]
    facts: Facts
    kept: Counter[tuple[Kind, str]]


def read_caption(text: str, lexicon: Lexicon) -> ReadCaption:
    """What rewrites of a caption are held against.

    Raises:
        UnreadError: It cannot be read for sure, so no rewrite can be judged.
    """
    folded = fold(text)
    pieces = find_pieces(folded, lexicon)
    items = find_items(folded, pieces, lexicon)
    return ReadCaption(text, tuple(items), bind(folded, items, lexicon), _counted(pieces))


def fault_of(rewrite: str, caption: ReadCaption, lexicon: Lexicon) -> Fault | None:
    """Why a rewrite does not say what its caption says, in plain words; None if it does."""
    fault = _form_fault(rewrite, caption.text)
    if fault is not None:
        return fault
    folded = fold(rewrite)
    pieces = find_pieces(folded, lexicon)
    for (kind, word), _ in (_counted(pieces) - caption.kept).items():
        return Fault(_ADDED[kind], word)
    try:
        items = find_items(folded, pieces, lexicon)
        fault = _stated_fault(items, caption.items) or _bound_fault(bind(folded, items, lexicon), caption.facts)
    except UnreadError as error:
        return Fault(error.reason, error.detail)
    if fault is not None:
        return fault
    taken = {word for kind, word in caption.kept if kind == Kind.UNKNOWN}
    strange = strange_stretch(folded, items, lexicon, taken)
    return Fault("words that are not known to stand so", strange) if strange is not None else None


_ADDED = {
    Kind.REFUSED: "a word that is refused",
    Kind.UNKNOWN: "a word that is not known",
    Kind.BLURRED: "a place is blurred",
}


def _counted(pieces: Iterable[Piece]) -> Counter[tuple[Kind, str]]:
    return Counter((piece.kind, piece.value) for piece in pieces if piece.kind in _ADDED)


def _form_fault(rewrite: str, caption: str) -> Fault | None:
    if not any(map(str.isalnum, rewrite)):
        return Fault("no words")
    if len(rewrite.splitlines()) > 1:
        return Fault("more than one line")
    if (
        len(rewrite.split()) > TIMES_LONGER * len(caption.split()) + WORDS_MORE
        or len(rewrite) > TIMES_LONGER * len(caption) + CHARACTERS_MORE
    ):
        return Fault("too long", f"{len(rewrite)} characters")
    found = SPECIAL_TOKENS.search(rewrite) or _BOX.search(rewrite)
    if found:
        return Fault("a special token", found[0])
    hidden = {character for character in rewrite if unicodedata.category(character).startswith("C")} - {*caption}
    if hidden:
        return Fault("a control character", ", ".join(f"U+{ord(character):04X}" for character in sorted(hidden)))
    if fold(rewrite) == fold(caption):
        return Fault("the same as the caption")
    if not caption[-1].isalnum() and rewrite[-1] != caption[-1]:
        return Fault("it does not end as the caption does", rewrite[-10:])
    return None


def _stated_fault(items: Sequence[Item], caption: Sequence[Item]) -> Fault | None:
    """What the rewrite loses, adds or changes, whatever belongs to what."""
    for name, fault in (
        ("class", _change(_things(items), _things(caption))),
        ("number", _number_change(items, caption)),
        ("place", _change(_values(items, "P"), _values(caption, "P"))),
    ):
        if fault is not None:
            how, detail = fault
            return Fault(_HOW[how].format(name), detail)
    relations, wanted = _values(items, "R").total(), _values(caption, "R").total()
    if relations != wanted:
        return Fault(_HOW["lost" if relations < wanted else "added"].format("relation"))
    return None


_HOW = {"lost": "a {} is lost", "added": "a {} is added", "changed": "another {}", "moved": "a {} of another class"}


def _change(found: Counter[str], wanted: Counter[str]) -> tuple[str, str] | None:
    lost, added = wanted - found, found - wanted
    if not lost and not added:
        return None
    how = "changed" if lost and added else "lost" if lost else "added"
    return how, ", ".join(sorted((added or lost).elements()))


def _things(items: Iterable[Item]) -> Counter[str]:
    return Counter(thing for item in items if item.letter == "G" for thing in item.value.things)


def _values(items: Iterable[Item], letter: str) -> Counter[str]:
    return Counter(item.value for item in items if item.letter == letter)


def _number_change(items: Iterable[Item], caption: Iterable[Item]) -> tuple[str, str] | None:
    found, wanted = (Counter(item.value for item in these if item.letter == "G") for these in (items, caption))
    lost, added = wanted - found, found - wanted
    if not lost and not added:
        return None
    if Counter(named.count for named in added.elements()) == Counter(named.count for named in lost.elements()):
        how = "moved"
    else:
        numbers = [any(named.count.isdigit() for named in these) for these in (lost, added)]
        how = "changed" if numbers[0] == numbers[1] else "lost" if numbers[0] else "added"
    return how, ", ".join(f"{named.count} {' '.join(named.things)}" for named in added)


def _bound_fault(facts: Facts, caption: Facts) -> Fault | None:
    if facts.groups != caption.groups:
        return Fault("a place of another class")
    if facts.relation != caption.relation:
        return Fault("another relation")
    return None
