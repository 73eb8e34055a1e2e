"""Texts without what makes no difference."""

import re
import unicodedata

_HYPHEN = re.compile(r"(?<=[^\W_])[-_]+(?=[^\W_])")
_SAME = str.maketrans({"’": "'", "‐": "-", "‑": "-"})


def fold(text: str) -> str:
    """A text without what makes no difference: case, runs of white space, hyphens and underscores within words."""
    plain = unicodedata.normalize("NFC", text).translate(_SAME).casefold()
    return " ".join(_HYPHEN.sub(" ", plain).split())
