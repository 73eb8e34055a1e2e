"""Verdicts in what judges reply: they are told to give one digit, and many say more."""

import json
import re
import unicodedata

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(r"```\w*\s*(.*?)```", re.DOTALL)
# A 0 or 1 by itself: not in 10, 0.5, 1st, q1, -1 or 1/10.
_DIGIT = re.compile(r"(?<![\w.,/-])([01])(?:\.0+)?(?![\w%]|[.,]\d|\s*/)")
_OUT_OF_ONE = re.compile(r"(?<![\w.,/-])([01])\s*(?:/|out of)\s*1(?!\w|[.,]\d)")
_MARKUP = " \t*_`#.\"'()[]"
_NEGATED = re.compile(r"\b(?:not|isn't|never|hardly|neither)\s+(?:\w+\s+){0,2}?(correct|true|equivalent|a match)\b")
_RIGHT = re.compile(r"\b(?:correct|true|equivalent)\b")
_WRONG = re.compile(r"\b(?:incorrect|wrong|false|mismatch)\b")
_FIRST_WORD = re.compile(r"\W*(yes|no)\b")
_WORDS = {"1": True, "0": False, "true": True, "false": False, "correct": True, "incorrect": False, "wrong": False}
_WORDS |= {"yes": True, "no": False}


def verdict_in(reply: str) -> bool | None:
    """Right (1), wrong (0), or None where a reply says neither, or both.

    Thoughts before a verdict do not count. JSON is read for values that are a verdict; other text for lines that hold
    just a digit, then for any 0 or 1 by itself, then for words (`correct`, `not correct`, a leading `no`).
    """
    folded = unicodedata.normalize("NFKC", reply).lower()
    said = _THOUGHTS.sub("", folded).rpartition("</think>")[2].strip()
    block = _BLOCK.fullmatch(said)
    said = block[1] if block else said
    return _only(_in_json(said) or _in_lines(said) or _in_digits(said) or _in_words(said))


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


def _in_digits(said: str) -> set[bool]:
    return {digit == "1" for digit in _DIGIT.findall(_OUT_OF_ONE.sub(r"\1 ", said))}


def _in_words(said: str) -> set[bool]:
    first = _FIRST_WORD.match(said)
    plain = _NEGATED.sub("incorrect", said)
    verdicts = {verdict for pattern, verdict in ((_RIGHT, True), (_WRONG, False)) if pattern.search(plain)}
    return verdicts or ({first[1] == "yes"} if first else set())
