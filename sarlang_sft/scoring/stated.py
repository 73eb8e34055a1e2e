"""What a caption states of countable things: which there are, how many, and which there are none of.

No grammar is known here, only what stands in front of a named thing within a phrase: a number, an article, a word for
several, `the` (which refers back), `no`. docs/scoring_captions.md states the rules with examples.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from sarlang_sft.scoring.reading import LONGEST_COUNT, read_tokens
from sarlang_sft.scoring.vocabulary import VOCABULARY, Phrase, Vocabulary


class Count(NamedTuple):
    """How many there are: at least `low`, at most `high` (None: no limit)."""

    low: int
    high: int | None

    @property
    def exact(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Form:
    """A spelling of a thing; `aircraft`, which may be one or many, is no plural."""

    thing: str
    plural: bool


@dataclass(frozen=True)
class Mention:
    """One place of a caption that names a thing.

    Attributes:
        count: None where nothing is said of it.
        back: Things named before are meant (`the ships`) if there are any.
        listed: Stands in a list of what was named before (`five ships, including two ...`).
    """

    form: Form
    count: Count | None
    back: bool
    listed: bool


NONE, ONE, SEVERAL, ANY = Count(0, 0), Count(1, 1), Count(2, None), Count(1, None)
GAP = 3  # words between a number and its thing: `two large grey cargo ships`

# What words do for the thing that follows; `|` stands between phrases.
Kind = Enum(
    "Kind", ["COUNT", "BOUND", "BACK", "DENIAL", "BREAK", "LIST", "AND", "OR", "END", "UNIT", "PLAIN", "THING"]
)
_KINDS: dict[tuple[Kind, Count | str | None], str] = {
    (Kind.COUNT, ONE): "a|an|single|lone|solitary|another",
    (Kind.COUNT, Count(2, 2)): "pair of|couple of",
    (Kind.COUNT, Count(3, 3)): "trio of",
    (Kind.COUNT, Count(6, 6)): "half a dozen|half dozen",
    (Kind.COUNT, Count(12, 12)): "dozen|a dozen",
    (Kind.COUNT, SEVERAL): (
        "several|many|multiple|numerous|some|various|few|countless|group of|groups of|number of|row of|rows of|line of"
        "|lines of|cluster of|clusters of|fleet of|collection of|series of|lot of|lots of|plenty of|variety of"
        "|array of|pairs of|tens of|dozens of|hundreds of|scores of"
    ),
    (Kind.BOUND, "at least"): "at least|no fewer than|no less than|minimum of",
    (Kind.BOUND, "more than"): "more than",
    (Kind.BOUND, "at most"): "at most|up to|no more than|maximum of",
    (Kind.BOUND, "fewer than"): "fewer than|less than",
    (Kind.BACK, None): "the|this|that|these|those|its|their|each|every|all|both",
    (Kind.DENIAL, None): (
        "no|not|without|neither|nor|never|none of|free of|devoid of|absence of|lack of|lacks|lacking|cannot|isnt|arent"
        "|wasnt|werent|doesnt|dont"
    ),
    # `One can see ships` states no number, nor does `no trees at the bridge` deny a bridge.
    (Kind.BREAK, None): (
        "of|in|on|at|by|near|with|beside|along|around|from|to|for|into|over|under|between|through|across|behind|beneath|"
        "inside|outside|within|toward|towards|as|is|are|was|were|be|being|been|has|have|having|can|could|may|might|shows|"
        "show|showing|see|sees|seen|depicts|contains|contain|containing|features|featuring|lie|lies|lying|stand|stands|"
        "only|just|which|who|where|while|there|it|but|however|though|although|image|scene|picture"
    ),
    (Kind.LIST, None): ":|including|includes|include|namely|consisting of|comprising|of which",
    (Kind.AND, None): ",|and|&",
    (Kind.OR, None): "or",
    (Kind.END, None): ".|!|?|;|\n",
    (Kind.UNIT, None): (
        "m|km|meter|meters|metre|metres|pixel|pixels|px|percent|degrees|lane|lanes|way|story|stories|storey|storeys|span"
        "|spans|engine|engined|thousand|million"
    ),
    # What looks like one of these, or like a thing, and is not.
    (Kind.PLAIN, None): (
        "not only|not all|not every|not many|no other|sign of|signs of|evidence of|trace of|traces of|car park|"
        "car parks|car parking|tank farm|tank farms|aircraft carrier|aircraft carriers|aircraft hangar|"
        "aircraft hangars|aircraft parking|ship yard|"
        "ship yards|port side|port of"
    ),
}
_WORDS: dict[Phrase, tuple[Kind, Count | str | None]] = {
    tuple(phrase.split(" ")): meaning for meaning, phrases in _KINDS.items() for phrase in phrases.split("|")
}
_BOUNDS: dict[str, Callable[[int], Count]] = {
    "at least": lambda number: Count(number, None),
    "more than": lambda number: Count(number + 1, None),
    "at most": lambda number: Count(1, max(number, 1)),
    "fewer than": lambda number: Count(1, max(number - 1, 1)),
}
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}),(?=\d{3}(?![\d,]))")
# Numbers become digits, but spellings stay: a plural says more than its thing.
_NUMBERS_ALONE = replace(VOCABULARY, phrases={}, longest={})


@lru_cache(maxsize=1024)
def class_of(label: str, vocabulary: Vocabulary = VOCABULARY) -> str:
    """The class that the label of a box names, in the vocabulary's words: `tank` of `Storage-Tank`."""
    return " ".join(read_tokens(label, vocabulary)) or label


@lru_cache(maxsize=64)
def forms_of(classes: frozenset[str], vocabulary: Vocabulary = VOCABULARY) -> Mapping[Phrase, Form]:
    """Every spelling of the classes, in the singular and the plural."""
    forms = {}
    for phrase, name in vocabulary.phrases.items():
        if len(name) == 1 and name[0] in classes & vocabulary.things:
            singular = (*phrase[:-1], phrase[-1].removesuffix("s"))
            forms[phrase] = Form(name[0], phrase != singular and vocabulary.phrases.get(singular) == name)
    for name in classes - vocabulary.things:
        words = tuple(name.split())
        forms |= {words: Form(name, False), (*words[:-1], words[-1] + "s"): Form(name, True)}
    return forms


def stated_facts(caption: str, forms: Mapping[Phrase, Form]) -> dict[str, Count]:
    """What a caption states of each thing that it names, `NONE` where it denies it.

    Counts of one thing add up (`a ship at the right, two ships at the left`) except where the caption refers back or
    lists what it has counted. A denial counts only where the thing is not stated elsewhere.
    """
    counted: dict[str, Count] = {}
    named: dict[str, Count] = {}
    denied: dict[str, Count] = {}
    before_list: set[str] = set()
    for mention in _mentions(caption, forms):
        thing = mention.form.thing
        if mention.count == NONE:
            denied[thing] = NONE
            continue
        if not mention.listed:
            before_list.add(thing)
        if mention.count is None:
            named.setdefault(thing, SEVERAL if mention.form.plural else ANY)
        elif thing not in counted:
            counted[thing] = mention.count
        elif not mention.back and not (mention.listed and thing in before_list):
            counted[thing] = _sum(counted[thing], mention.count)
    return denied | named | counted


def _sum(one: Count, other: Count) -> Count:
    return Count(one.low + other.low, None if None in (one.high, other.high) else one.high + other.high)


def _mentions(caption: str, forms: Mapping[Phrase, Form]) -> Iterator[Mention]:
    count: Count | None = None
    back = denied = listed = False
    gap, before = 0, Kind.END
    pieces = [*_pieces(read_tokens(_THOUSANDS.sub(r"\1", caption), _NUMBERS_ALONE), forms), (Kind.END, None)]
    for (kind, value), (following, _) in pairwise(pieces):
        if kind == Kind.THING and following == Kind.THING:
            kind = Kind.PLAIN  # the harbor of `harbor bridges`
        if kind in (Kind.COUNT, Kind.BACK) and denied and before == Kind.AND:
            denied = False  # `no ships and two cars`
        if kind == Kind.COUNT:
            count, gap = value, 0
        elif kind == Kind.BACK:
            count, back, gap = None, True, 0
        elif kind == Kind.THING:
            yield Mention(value, NONE if denied else _fitting(count, value), back, listed)
        elif kind in (Kind.PLAIN, Kind.UNIT):
            gap += 1
        denied = kind == Kind.DENIAL or (denied and kind not in (Kind.BREAK, Kind.LIST, Kind.END))
        listed = kind == Kind.LIST or (listed and kind != Kind.END)
        if kind not in (Kind.COUNT, Kind.BACK, Kind.PLAIN, Kind.UNIT) or gap > GAP:
            count, back = None, False
        before = kind


def _fitting(count: Count | None, form: Form) -> Count | None:
    # `a` in front of a plural belongs to something else.
    return None if count == ONE and form.plural else count


def _pieces(tokens: Sequence[str], forms: Mapping[Phrase, Form]) -> Iterator[tuple[Kind, Any]]:
    longest = max(map(len, [*_WORDS, *forms]))
    index = 0
    bound = None
    while index < len(tokens):
        if _is_number(tokens[index]):
            index, value = _number(tokens, index)
            kind = Kind.COUNT if value else Kind.PLAIN
        else:
            phrases = (tuple(tokens[index : index + length]) for length in range(longest, 0, -1))
            phrase = next((phrase for phrase in phrases if phrase in _WORDS or phrase in forms), (tokens[index],))
            thing_or_word = (Kind.THING, forms[phrase]) if phrase in forms else (Kind.PLAIN, None)
            kind, value = _WORDS.get(phrase) or thing_or_word
            index += len(phrase)
        if kind == Kind.COUNT and value.exact and bound:
            value = _BOUNDS[bound](value.low)
        if kind != Kind.BOUND:
            yield kind, value
        bound = value if kind == Kind.BOUND else None


def _is_number(token: str) -> bool:
    # Of other scripts only decimal digits have become ASCII: `int` knows no Ethiopic ones.
    return token.isascii() and token.isdigit() and len(token) <= LONGEST_COUNT


def _number(tokens: Sequence[str], index: int) -> tuple[int, Count | None]:
    """Where a number (`two dozen`) or a range (`2-3`) ends, and what it counts: nothing if it measures."""
    low = high = int(tokens[index])
    between = tokens[max(index - 1, 0) : index] == ("between",)
    index += 1
    if tokens[index : index + 1] == ("dozen",):
        return index + 1, Count(12 * low, 12 * low)
    if tokens[index : index + 2] == ("or", "more"):
        return index + 2, Count(low, None)
    joined = tokens[index : index + 1] in (("or",), ("to",)) or (between and tokens[index : index + 1] == ("and",))
    other = tokens[index + joined : index + joined + 1]
    if other and _is_number(other[0]) and low < int(other[0]):
        high = int(other[0])
        index += joined + 1
    measures = _WORDS.get(tuple(tokens[index : index + 1]), (None, None))[0] == Kind.UNIT
    return index, None if measures else Count(low, high)
