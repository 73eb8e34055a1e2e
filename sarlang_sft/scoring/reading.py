"""What a text says, for the protocol `exact`: its words evened out, its number, its yes or no, the things it names.

Every function takes time in proportion to the text: no pattern can go back over what it has read.
"""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import dropwhile, pairwise

from sarlang_sft.scoring.vocabulary import Vocabulary

Tokens = tuple[str, ...]
"""Words, numbers and punctuation marks of a text, in lower case and evened out."""

LONGEST_COUNT = 9  # digits: what has more counts nothing in an image
REMEMBERED = 16_384  # texts; most answers of a split are the same few

_MARKUP = re.compile(r"<[/|]?[a-z][^<>]*+>|\\[a-z]++|['’]")
_OR_MORE = re.compile(r"(?<=\d)\+(?!\s*+\d)")
_COMPARED = re.compile(r"(?<![-=])[<>≤≥]=?+(?=\s*+\d)")
_TOKEN = re.compile(
    r"(?P<number>(?:(?<!\w)-)?(?:\d++(?:\.\d++)?+|\.\d++)(?![^\W_]))"
    r"|(?P<word>[^\W_]++)"
    r"|(?P<mark>[,;&\n.!?:])"
)
_BREAKS = {",", ";", "&", "\n", "and"}
YES, NO = "yes", "no"
_BE, _BE_NOT, _OF_ONE = {"is", "are"}, {"isnt", "arent"}, {"a", "an", "any"}


@lru_cache(maxsize=REMEMBERED)
def read_tokens(text: str, vocabulary: Vocabulary) -> Tokens:
    """A text without markup, in ASCII digits, with one spelling for every number and every known thing.

    Of a model that thinks aloud, what it says after `</think>`.
    """
    folded = unicodedata.normalize("NFKC", text).lower().rpartition("</think>")[2]
    if not folded.isascii():
        folded = "".join(str(unicodedata.decimal(character, character)) for character in folded)
    plain = _MARKUP.sub(lambda match: "" if match[0] in "'’" else " ", folded)
    plain = _COMPARED.sub(" more or less than ", _OR_MORE.sub(" or more", plain))
    found = [
        # Interned, because of the many texts that are remembered most words are the same.
        sys.intern(_even_digits(match[0]) if match.lastgroup == "number" else match[0])
        for match in _TOKEN.finditer(plain.strip())
    ]
    return _from_first_word(tuple(_even_phrases(_even_numbers(found, vocabulary), vocabulary)))


def _from_first_word(tokens: Tokens) -> Tokens:
    return tuple(dropwhile(lambda token: not token[-1].isalnum(), tokens))


def _even_digits(number: str) -> str:
    whole, _, fraction = number.lstrip("-").partition(".")
    value = whole.lstrip("0") or "0"
    if fraction := fraction.rstrip("0"):
        value += f".{fraction}"
    return f"-{value}" if number.startswith("-") and value != "0" else value


def _even_numbers(tokens: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """`twenty one` as 21, `one hundred and five` as 105."""
    found: list[str] = []
    index = 0
    while index < len(tokens):
        start, value = index, 0
        index, small = _below_hundred(tokens, index, vocabulary)
        value += small
        if index < len(tokens) and tokens[index] == "hundred":
            value = max(value, 1) * 100
            after, small = _below_hundred(tokens, index + 1 + (tokens[index + 1 : index + 2] == ["and"]), vocabulary)
            index = after if small else index + 1
            value += small
        if index == start:
            found.append(tokens[index])
            index += 1
        else:
            found.append(str(value))
    return found


def _below_hundred(tokens: Sequence[str], index: int, vocabulary: Vocabulary) -> tuple[int, int]:
    """Where a number word below hundred ends, and its value; nothing and 0 if there is none."""
    value = vocabulary.numbers.get(tokens[index], 100) if index < len(tokens) else 100
    if value >= 100:
        return index, 0
    unit = vocabulary.numbers.get(tokens[index + 1], 0) if index + 1 < len(tokens) else 0
    return (index + 2, value + unit) if value >= 20 and 0 < unit < 10 else (index + 1, value)


def _even_phrases(tokens: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    found: list[str] = []
    index = 0
    while index < len(tokens):
        for length in range(vocabulary.longest.get(tokens[index], 0), 0, -1):
            phrase = vocabulary.phrases.get(tuple(tokens[index : index + length]))
            if phrase is not None:
                found += phrase
                index += length
                break
        else:
            found.append(tokens[index])
            index += 1
    return found


def words_of(tokens: Tokens, vocabulary: Vocabulary) -> Tokens:
    """The words and numbers alone, without articles unless there is nothing else."""
    words = tuple(token for token in tokens if token[-1].isalnum())
    return tuple(word for word in words if word not in vocabulary.words["articles"]) or words


def is_number(token: str) -> bool:
    """Whether a token of `read_tokens` is a number."""
    return token[-1].isdigit() and not token.strip("-0123456789.")


def statement(tokens: Tokens, vocabulary: Vocabulary) -> Tokens:
    """What a whole sentence says: the tokens behind its colon or first verb, such as `3 ship` of `There are 3 ships.`

    Empty where there is none, where a word in front denies or doubts it, or where another sentence follows.
    """
    start = tokens.index(":") + 1 if ":" in tokens else 0
    verbs = (index for index in range(start, len(tokens)) if tokens[index] in vocabulary.words["verbs"])
    start = next(verbs, start - 1) + 1
    said = _from_first_word(tokens[start:])
    sentences_end = any(mark in ".!?\n" and token[-1].isalnum() for mark, token in pairwise(said))
    denied = not vocabulary.words["denials"].isdisjoint(tokens[:start])
    return () if start == 0 or denied or sentences_end else said


def things_said(tokens: Tokens, vocabulary: Vocabulary) -> frozenset[str]:
    """What tokens name: list items as a set, a position as the set of its words; empty if there is no word."""
    words = set(words_of(tokens, vocabulary)) - vocabulary.words["position_fillers"]
    if words and words <= vocabulary.words["positions"]:
        return frozenset(words)
    items: list[list[str]] = [[]]
    for index, token in enumerate(tokens):
        # A comma before a number is no break: the numbers of a box are an ordered list, not a set.
        before_number = index + 1 < len(tokens) and is_number(tokens[index + 1])
        if token in _BREAKS and (token == "and" or not before_number):
            items.append([])
        else:
            items[-1].append(token)
    return frozenset(" ".join(words_of(tuple(item), vocabulary)) for item in items) - {""}


def is_verdict(tokens: Tokens) -> bool:
    """`No.` and `No, ...` are a verdict; `no clear pattern` answers another question."""
    if not tokens or tokens[0] not in (YES, NO):
        return False
    return tokens[0] == YES or len(tokens) == 1 or not tokens[1][-1].isalnum()


def yes_or_no(tokens: Tokens, question: Tokens, vocabulary: Vocabulary) -> str | None:
    """`yes` or `no` where the tokens begin with it and do not take it back at once, else None.

    `No bridge is visible` is no answer where the question is known to ask for something else.
    """
    if not tokens or tokens[0] not in (YES, NO):
        return None
    words = [token for token in tokens if token[-1].isalnum()]
    following = words[2:3] if words[1:2] in (["or"], ["and"]) else words[1:2]
    opposite = {YES: NO, NO: YES}[tokens[0]]
    if following == [opposite]:
        # `Yes, no doubt` goes on; `no, yes there is` does not stay with its no.
        return YES if tokens[0] == YES and not is_verdict(tokens[tokens.index(NO) :]) else None
    if is_verdict(tokens):
        # `Yes, there is no ship` says both.
        return None if existence(_from_first_word(tokens[1:]), question, vocabulary) == opposite else tokens[0]
    if tokens[1] in vocabulary.words["no_answers"] or is_number(tokens[1]):
        return None
    said, sought = _noun_phrase(tokens[1:], vocabulary), _sought(question, vocabulary)
    of_another = bool(sought) and not vocabulary.things.isdisjoint(said) and not set(said) <= set(sought)
    return None if of_another else NO


def count_said(tokens: Tokens, question: Tokens, vocabulary: Vocabulary) -> str | None:
    """The number that tokens begin with, where it is the only one and neither doubted nor of other things than asked.

    `None`, and `no` before something that is asked for, is 0.

    Args:
        question: Empty if it is not known; then the things counted are not looked at.
    """
    leads = vocabulary.words["count_leads"]
    words = tuple(dropwhile(lambda word: word in leads, words_of(tokens, vocabulary)))
    if not words:
        return None
    numbers = {word for word in words if is_number(word)}
    refusing = vocabulary.words["denials"] | vocabulary.words["bounds"]
    if not refusing.isdisjoint(words[1:]):
        return None
    question = _from_how_many(question)
    asked_things = vocabulary.things.intersection(question)
    if not numbers and words[0] in (NO, "none"):
        idle = vocabulary.words["position_fillers"] | vocabulary.words["verbs"] | vocabulary.words["determiners"]
        counted = next((word for word in words[1:] if word not in idle), None)
        if counted is None:
            return "0" if words[0] == "none" else None
        return "0" if counted in (asked_things or question or vocabulary.things) else None
    if numbers != {words[0]} or len(words[0]) > LONGEST_COUNT:
        return None
    counted = next((word for word in words if word in vocabulary.things), None)
    return None if counted and asked_things and counted not in asked_things else words[0]


def _from_how_many(question: Tokens) -> Tokens:
    # What stands in front may be `The classes are: tank, car, ship.`, of which nothing is asked.
    return question[next((index for index, pair in enumerate(pairwise(question)) if pair == ("how", "many")), 0) :]


def existence(tokens: Tokens, question: Tokens, vocabulary: Vocabulary) -> str | None:
    """`yes` or `no` of `There is ...`, where it speaks of just what the question `Is there ...` asks about."""
    sought = _sought(question, vocabulary)
    if not sought or len(tokens) < 2 or tokens[0] != "there" or tokens[1] not in _BE | _BE_NOT:
        return None
    rest = tokens[2:]
    negated = tokens[1] in _BE_NOT or rest[:1] == ("not",)
    if negated:
        rest = rest[rest[:1] == ("not",) :]
        if rest and rest[0][-1].isalnum() and rest[0] not in _OF_ONE:
            return None  # `There are not many` leaves some
    denied = negated or rest[:1] in (("no",), ("none",), ("0",))
    said = _noun_phrase(rest[denied and not negated :], vocabulary)
    if said and said[-1] != sought[-1]:
        return None
    if denied:
        return NO if set(said) <= set(sought) else None
    return YES if not said or set(sought) <= set(said) else None


def _sought(question: Tokens, vocabulary: Vocabulary) -> Tokens:
    """What a question `Is there ...` asks about; empty for any other."""
    asked = [index for index, pair in enumerate(pairwise(question)) if pair[0] in _BE and pair[1] == "there"]
    return _noun_phrase(question[asked[-1] + 2 :], vocabulary) if asked else ()


def _noun_phrase(tokens: Tokens, vocabulary: Vocabulary) -> Tokens:
    """The words up to the end of a noun's phrase, singular, without articles and quantities."""
    found = []
    for token in tokens:
        if not token[-1].isalnum() or token in vocabulary.words["phrase_ends"]:
            break
        if token not in vocabulary.words["determiners"] and not is_number(token):
            found.append(token.removesuffix("s"))
    return tuple(found)
