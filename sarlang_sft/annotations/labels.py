"""Class names as they can stand in texts."""

import unicodedata
from functools import cache

from sarlang_sft.sarlang_texts import is_unicode
from sarlang_sft.text_checks import CONTROL_CHARACTERS, SPECIAL_TOKENS

NO_NAME = "class without a name"
BREAKS_TEXTS = "class name that breaks texts"


@cache
def clean_label(label: str) -> str:
    """A class name in any script, composed (NFC), with single spaces between its words and none around them."""
    return unicodedata.normalize("NFC", " ".join(label.split()))


@cache
def label_problem(label: str) -> str | None:
    """Why a clean class name cannot stand in a text, or None."""
    if not label:
        return NO_NAME
    if "<box:" in label or SPECIAL_TOKENS.search(label) or CONTROL_CHARACTERS.search(label) or not is_unicode(label):
        return BREAKS_TEXTS
    return None
