"""The words that the protocol `exact` knows: synonyms, spellings, positions, numbers, read from a data file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError, nearest
from sarlang_sft.scoring.signature import short_hash
from sarlang_sft.yaml_files import read_mapping

FILE = Path(__file__).with_name("vocabulary.yaml")
THINGS, SPELLINGS, NUMBERS = "things", "spellings", "numbers"  # what is no plain list of words

Phrase = tuple[str, ...]
"""Words as they stand beside each other."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What vocabulary.yaml holds, made ready to look up.

    Attributes:
        things: Their names.
        phrases: What each spelling stands for: `("storage", "tanks")` for `("tank",)`.
        longest: Words of the longest phrase, by its first word.
        words: Of every list in the file by its name, and what `spellings` turns into others.
        hash: Of all that it holds.
    """

    things: frozenset[str]
    phrases: Mapping[Phrase, Phrase]
    longest: Mapping[str, int]
    numbers: Mapping[str, int]
    words: Mapping[str, frozenset[str]]
    hash: str


def read_vocabulary(synonyms: Path | None = None) -> Vocabulary:
    """The project's vocabulary, and what a file of the user's adds to it.

    Raises:
        InputError: The user's file is missing or holds something that vocabulary.yaml has no place for.
    """
    content = read_mapping(FILE, FILE.read_text(encoding="utf-8"))
    if synonyms is not None:
        content = _extended(content, _read_synonyms(synonyms, content))
    spelt = {tuple(form.split()): tuple(name.split()) for form, name in content[SPELLINGS].items()}
    named = {
        tuple(f"{form}{ending}".split()): (name,)
        for name, forms in content[THINGS].items()
        for form in (name, *forms)
        for ending in ("", "s")
    }
    phrases = spelt | named
    longest = {phrase[0]: len(phrase) for phrase in sorted(phrases, key=len)}
    return Vocabulary(
        things=frozenset(content[THINGS]),
        phrases=phrases,
        longest=longest,
        numbers=content[NUMBERS],
        words={key: frozenset(words) for key, words in content.items() if key not in (THINGS, NUMBERS)},
        hash=short_hash(content),
    )


def _read_synonyms(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    try:
        added = read_mapping(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--synonyms {path}: cannot be read ({error})") from error
    for key, value in added.items():
        if key not in known:
            hint = nearest(key, known, f"its keys are {', '.join(known)}")
            raise InputError(f"--synonyms {path}: `{key}` is no key of a vocabulary; {hint}")
        if not _fits(key, value):
            raise InputError(
                f"--synonyms {path}: `{key}` must be written as in {FILE.name}: letters and digits in lower case, "
                'quotes around "yes", "no" and "on"'
            )
    return added


def _fits(key: str, value: Any) -> bool:
    if key not in (THINGS, SPELLINGS, NUMBERS):
        return _are_words(value)
    if not isinstance(value, dict) or not _are_words([*value]):
        return False
    if key == NUMBERS:
        return all(type(number) is int and number >= 0 for number in value.values())
    return all(_are_words(found if key == THINGS else [found]) for found in value.values())


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(word, str) and word == word.lower() and word.replace(" ", "").isalnum() for word in value
    )


def _extended(content: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    extended = dict(content)
    for key, value in added.items():
        if key == THINGS:
            names = [*content[THINGS], *(name for name in value if name not in content[THINGS])]
            extended[key] = {name: [*content[THINGS].get(name, ()), *value.get(name, ())] for name in names}
        elif isinstance(value, dict):
            extended[key] = {**content[key], **value}
        else:
            extended[key] = [*content[key], *value]
    return extended


VOCABULARY = read_vocabulary()
