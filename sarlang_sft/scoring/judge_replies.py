"""Verdicts in what judges reply: they are told to give one digit, and many say more."""

import json
import re
import unicodedata

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"```\w*\s*(.*?)```", re.DOTALL)
# A 0 or 1 by itself: not in 10, 0.5, 1st, q1, -1 or 1/10, and counting nothing ("1 ship").
_BY_ITSELF = r"([01])(?:\.0+)?(?![\w%]|[.,]\d|\s*/| (?!(?:because|since|as|or|and|so|but)\b)[a-z])"
_DIGIT = re.compile(rf"(?<![\w.,/-]){_BY_ITSELF}")
_STATED = re.compile(
    r"(?:\A[\s*_`#\"'(\[]*|\b(?:verdict|score|rating|judge?ment|reply)\b(?: is)?[\s:=*_`\"']+)"
    rf"{_BY_ITSELF}(?!\. |\s*\d)"
)
_OTHER_NUMBER = re.compile(r"(?<![\w.,/-])(?:[2-9]|\d\d+)(?![\w%])")
_OUT_OF_ONE = re.compile(r"(?<![\w.,/-])([01])\s*(?:/|out of)\s*1(?!\w|[.,]\d)")
_MARKUP = " \t*_`#.\"'()[]"
_NEGATION = r"\b(?:not|\w+n['’]t|cannot|never|hardly|neither)\s+(?:\w+\s+){0,2}?"
_NEGATED = re.compile(rf"{_NEGATION}(?:correct|true|equivalent|a match)\b")
_NEGATED_DIGIT = re.compile(rf"{_NEGATION}[01]\b")
_SAYS_NEITHER = re.compile(  # "the correct answer is a lake", "partly correct", "not wrong"
    r"\b(?:correct|true) (?:answer|value|count|number|class|label|one)\b"
    rf"|\b(?:part(?:ial)?ly|almost|nearly|mostly) correct\b|{_NEGATION}(?:incorrect|wrong|false)\b"
)
_RIGHT = re.compile(r"\b(?:correct|true|equivalent)\b")
_WRONG = re.compile(r"\b(?:incorrect|wrong|false|mismatch)\b")
_FIRST_WORD = re.compile(r"\W*(yes|no)\b")
_WORDS = {"1": True, "0": False, "true": True, "false": False, "correct": True, "incorrect": False, "wrong": False}
_WORDS |= {"yes": True, "no": False}


def verdict_in(reply: str) -> bool | None:
    """Right (1), wrong (0), or None where a reply says neither, or both.

    Thoughts before a verdict do not count. JSON is read for values that are a verdict; other text for lines that hold
    just a digit, then for a 0 or 1 by itself and for words (`correct`, `not correct`, a leading `no`), which must
    agree. Digits among other numbers may be counts that are compared: then they must begin the reply or be named.
    """
    folded = unicodedata.normalize("NFKC", reply).lower()
    said = _THOUGHTS.sub("", folded).rpartition("</think>")[2].strip()
    block = _BLOCK.fullmatch(said)
    said = block[1] if block else said
    return _only(_in_json(said) or _in_lines(said) or _in_sentences(said))


def _only(verdicts: set[bool]) -> bool | None:
    return next(iter(verdicts)) if len(verdicts) == 1 else None


def _in_json(said: str) -> set[bool]:
    try:
        content = json.loads(said)
    except (ValueError, RecursionError):
        return set()
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else [content]
    words = [str(value).strip().lower() for value in values if isinstance(value, str | int)]
    return {_WORDS[word] for word in words if word in _WORDS}


def _in_lines(said: str) -> set[bool]:
    return {line == "1" for line in (line.strip(_MARKUP) for line in said.splitlines()) if line in ("0", "1")}


def _in_sentences(said: str) -> set[bool]:
    said = _NEGATED_DIGIT.sub("", _OUT_OF_ONE.sub(r"\1 ", said))
    stated = _STATED.findall(said)
    digits = {digit == "1" for digit in [*stated, *_DIGIT.findall(said)]}
    if digits and not stated and _OTHER_NUMBER.search(said):
        return {True, False}
    plain = _SAYS_NEITHER.sub("", _NEGATED.sub("incorrect", said))
    words = {verdict for pattern, verdict in ((_RIGHT, True), (_WRONG, False)) if pattern.search(plain)}
    first = _FIRST_WORD.match(said)
    return digits | words or ({first[1] == "yes"} if first else set())
