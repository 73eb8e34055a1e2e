"""The protocol `exact`: is an answer right? Decided by rules and a vocabulary alone, the same on every machine.

docs/scoring.md states the rules with examples. Whoever changes a verdict raises `VERSION`.
"""

from functools import lru_cache

from sarlang_sft.scoring.found_boxes import is_box_label
from sarlang_sft.scoring.reading import (
    REMEMBERED,
    Tokens,
    count_said,
    existence,
    is_number,
    is_verdict,
    read_tokens,
    statement,
    things_said,
    words_of,
    yes_or_no,
)
from sarlang_sft.scoring.vocabulary import VOCABULARY, Vocabulary

VERSION = 1
QUESTION_TYPES = ("yes_no", "count", "class", "position", "list", "box", "open")


@lru_cache(maxsize=REMEMBERED)
def question_type(label: str, vocabulary: Vocabulary = VOCABULARY) -> str:
    """What the form of a stored answer shows of its question, one of `QUESTION_TYPES`."""
    if is_box_label(label):
        return "box"
    tokens = read_tokens(label, vocabulary)
    if is_verdict(tokens):
        return "yes_no"
    if label_count(label, vocabulary) is not None:
        return "count"
    named = things_said(tokens, vocabulary)
    if named and named <= vocabulary.words["positions"]:
        return "position"
    if len(named) > 1:
        return "list"
    return "class" if named and named <= vocabulary.things else "open"


@lru_cache(maxsize=REMEMBERED)
def exact_verdict(label: str, predict: str, question: str = "", vocabulary: Vocabulary = VOCABULARY) -> bool:
    """Whether `predict` says the same as `label`.

    Args:
        question: What was asked, if it is known: it tells what `There is none` and `3 ships` are about.
    """
    truth, said = read_tokens(label, vocabulary), read_tokens(predict, vocabulary)
    stated = statement(said, vocabulary)
    kind = question_type(label, vocabulary)
    if kind == "yes_no":
        asked = read_tokens(question, vocabulary)
        plain = yes_or_no(said, asked, vocabulary) or (stated[0] if is_verdict(stated) else None)
        return (plain or existence(said, asked, vocabulary)) == truth[0]
    if kind == "count":
        return predicted_count(predict, question, vocabulary) == label_count(label, vocabulary)
    named = things_said(truth, vocabulary)
    readings = [said, stated]
    if kind in ("class", "list"):
        readings += [_without_tail(tokens, vocabulary) for tokens in (said, stated)]
    return bool(named) and any(things_said(tokens, vocabulary) == named for tokens in readings)


@lru_cache(maxsize=REMEMBERED)
def label_count(label: str, vocabulary: Vocabulary = VOCABULARY) -> str | None:
    """The number that a stored answer consists of, also as `There are 3 ships.`; None if it is no count."""
    tokens = read_tokens(label, vocabulary)
    words = words_of(tokens, vocabulary)
    if len(words) == 1:
        return words[0] if is_number(words[0]) else None
    return count_said(statement(tokens, vocabulary), (), vocabulary) if tokens[:1] == ("there",) else None


@lru_cache(maxsize=REMEMBERED)
def predicted_count(predict: str, question: str = "", vocabulary: Vocabulary = VOCABULARY) -> str | None:
    """The one number that an answer plainly gives, in ASCII digits; None if there is none or more than one."""
    tokens, asked = read_tokens(predict, vocabulary), read_tokens(question, vocabulary)
    stated = statement(tokens, vocabulary)
    numbers = {token for token in tokens if is_number(token)}
    found = count_said(tokens, asked, vocabulary) or count_said(stated, asked, vocabulary)
    return found if numbers <= {found} else None


@lru_cache(maxsize=REMEMBERED)
def things_named(answer: str, vocabulary: Vocabulary = VOCABULARY) -> frozenset[str]:
    """What an answer names, evened out: list items as a set, a position as its words; empty if there is no word.

    Where the whole answer is a sentence, what it says: `ship` and `harbor` of `The image shows ships and a harbor.`
    """
    tokens = read_tokens(answer, vocabulary)
    stated = _without_tail(statement(tokens, vocabulary), vocabulary)
    return things_said(stated, vocabulary) or things_said(_without_tail(tokens, vocabulary), vocabulary)


def position_words(answer: str, vocabulary: Vocabulary = VOCABULARY) -> frozenset[str]:
    """The words of the position that an answer gives; empty if it gives none, or something beside it."""
    named = things_named(answer, vocabulary)
    return named if named <= vocabulary.words["positions"] else frozenset()


def _without_tail(tokens: Tokens, vocabulary: Vocabulary) -> Tokens:
    end = len(tokens)
    while end and (not tokens[end - 1][-1].isalnum() or tokens[end - 1] in vocabulary.words["tails"]):
        end -= 1
    return tokens[:end]
