"""What can be wrong with the words of a dialogue."""

import re
from collections.abc import Iterator

from sarlang_sft.boxes import PLACEHOLDER
from sarlang_sft.sarlang import SPECIAL_TOKEN
from sarlang_sft.scoring.exact import exact_verdict
from sarlang_sft.scoring.vocabulary import VOCABULARY

# Tokens of all families: those that converters refuse, and the plain names of Llama's and the videos'.
SPECIAL_TOKENS = re.compile(rf"{SPECIAL_TOKEN.pattern}|</?s>|<unk>|<pad>|<video>")
# Without the joiners U+200C and U+200D and the marks of direction U+200E and U+200F, which some scripts need.
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffd]"
)
_BOX_LIKE = re.compile(r"<box:[^>]*>?")

_WORD = re.compile(r"[^\W_]+")
# `The classes are: tank, car.`, `Options: ship, car`: what a question offers is no leak.
_OFFER = re.compile(r"\b(?:class|categor|option|choice|candidate|label)\w*(?: are)?:[^.?\n]*")
# Words that questions and answers share by nature.
_SHARED = {"yes", "no", *VOCABULARY.numbers}.union(
    *(VOCABULARY.words[name] for name in ("positions", "position_fillers", "spellings", "articles"))
)
_LISTED_BEFORE = re.compile(r"(?:[,;:/().\n]|\b(?:or|and|either|between|among))\s*(?:(?:a|an|the)\s+)?$")
_LISTED_AFTER = re.compile(r"^\s*(?:[,;/]|(?:or|and)\b)")


def special_tokens(tokenizer_tokens: list[str]) -> re.Pattern[str]:
    """The control tokens of all families and of one tokenizer."""
    return re.compile("|".join([SPECIAL_TOKENS.pattern, *map(re.escape, tokenizer_tokens)]))


def text_problems(text: str, special: re.Pattern[str], max_characters: int) -> Iterator[tuple[str, str]]:
    """(kind of finding, detail) of one question or answer."""
    if not text.strip():
        yield "empty_text", "no words"
    if len(text) > max_characters:
        yield "long_text", f"{len(text):,} characters: {text[:60]}"
    if match := special.search(text):
        yield "special_token", match[0]
    if match := CONTROL_CHARACTERS.search(text):
        yield "control_characters", f"U+{ord(match[0]):04X} at character {match.start() + 1}"


def boxes_not_there(text: str, boxes: int) -> list[str]:
    """What looks like `<box:i>` in a text and names none of a record's boxes."""
    return [
        match[0]
        for match in _BOX_LIKE.finditer(text)
        if not ((named := PLACEHOLDER.fullmatch(match[0])) and int(named[1]) < boxes)
    ]


def gives_away(question: str, answer: str) -> bool:
    """Whether a question holds its own answer.

    It does if all words of the answer stand in it in their order, as a whole, and the question does not offer them.
    Offered is what stands in a list of classes or options (`The classes are: ...`), or beside a comma, a stroke, a
    bracket, a full stop, `or` or `and`. Answers of nothing but yes, no, positions, numbers, single letters and boxes
    give nothing away, since questions hold such words by nature. A leak may be missed, but no form of the release is
    taken for one.
    """
    answer, question = answer.strip(" .!\n").lower(), question.lower()
    if not answer or answer not in question:  # nearly all end here
        return False
    words = _WORD.findall(PLACEHOLDER.sub("", answer))
    telling = [word for word in words if len(word) > 1 and not word.isdigit() and word not in _SHARED]
    if not telling:
        return False
    own = _OFFER.sub("", question)
    places = list(re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", own))
    return bool(places) and not any(
        _LISTED_BEFORE.search(own[: place.start()]) or _LISTED_AFTER.match(own[place.end() :]) for place in places
    )


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same, as the protocol `exact` compares them."""
    return one.strip().lower() == other.strip().lower() or exact_verdict(one, other) or exact_verdict(other, one)


def same_question(question: str) -> str:
    """A question without what makes no difference: case and white space."""
    return " ".join(question.split()).casefold()
