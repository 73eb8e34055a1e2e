"""English forms of the names of classes: singular, plural and article, by the package inflect where they are words."""

import re
import unicodedata
from functools import lru_cache

import inflect

_FIRST_WORD = re.compile(r"[^\W\d_]{2,}")
_LAST_WORD = re.compile(r"[^\W\d_]{2,}$")
_LATIN = re.compile(r"[A-Za-z]")
# In front of what is no word: characters whose names begin with a vowel, as in an F-16, an M1, an 8x8.
_SPELT_WITH_VOWEL = re.compile(r"(?:[AEFHILMNORSX](?![a-z])|8|11(?!\d)|18(?!\d))")
_PLURAL_ENDING = re.compile(r"(?<![suiao])s$")
LONGEST_ACRONYM = 3  # letters


@lru_cache(maxsize=1)
def _engine() -> inflect.engine:
    return inflect.engine()


def _is_word(text: str) -> bool:
    """Whether letters are read as a word: no acronym, and not written together like HighSpeedCraft."""
    if not _plain(text).isascii():
        return False
    return text.islower() or text.istitle() or (text.isupper() and len(text) > LONGEST_ACRONYM)


def _plain(text: str) -> str:
    """Letters without their accents."""
    return "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))


def singular(name: str) -> str:
    """`ship` of `ships`, `storage tank` of `storage tanks`; names that are no plural as they are."""
    last = _LAST_WORD.search(name)
    if not last or not _is_word(last[0]) or not _PLURAL_ENDING.search(last[0].lower()):
        return name
    found = _engine().singular_noun(last[0].lower())
    return name[: last.start()] + _in_case_of(last[0], found) if isinstance(found, str) else name


def plural(name: str) -> str:
    """`ships`, `buses`, `aircraft`; `T62s` of what is no word, and names in other scripts as they are."""
    last = _LAST_WORD.search(name)
    if last and _is_word(last[0]):
        plain = _plain(last[0]).lower()
        many = str(_engine().plural_noun(plain) or plain)
        if many.startswith(plain):
            ending = many[len(plain) :]
            return name + (ending.upper() if last[0].isupper() else ending)
        return name[: last.start()] + _in_case_of(last[0], many)
    return f"{name}s" if _LATIN.search(name) else name


def with_article(name: str) -> str:
    """`a ship`, `an aircraft`, `an hour`; `a T62`, `an F-16`."""
    first = _FIRST_WORD.match(name)
    if first and _is_word(first[0]):
        return f"{str(_engine().a(_plain(first[0]).lower())).split()[0]} {name}"
    return f"{'an' if _SPELT_WITH_VOWEL.match(name) else 'a'} {name}"


def _in_case_of(word: str, text: str) -> str:
    return text.upper() if word.isupper() else text.capitalize() if word.istitle() else text
