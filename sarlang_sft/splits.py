"""Splits by the names that folders and files give them."""

import re

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def split_of(path: str) -> str | None:
    """The split that a file's name, or else its folders, state."""
    words = [word for word in re.split(r"[^a-z]+", path.lower()) if word in SPLIT_NAMES]
    return SPLIT_NAMES[words[-1]] if words else None
