"""LLaVA: a JSON list of `id`, `image` and `conversations` between human and gpt."""

from typing import Any

from sarlang_sft.formats.rows import OWN, Sample, messages, own_text
from sarlang_sft.formats.words import Words, read_verbatim, write_pixels
from sarlang_sft.records import Dialogue, Turn

SEPARATOR = "\n"
WORDS = Words(write_pixels, read_verbatim)
_SPEAKERS = {"user": "human", "assistant": "gpt"}


def row(sample: Sample, dialogue: Dialogue, turns: list[Turn]) -> dict[str, Any]:
    """`image` is one path, a list of several, or missing where there is none."""
    images = sample.images if len(sample.images) > 1 else sample.images[0] if sample.images else None
    return {
        "id": dialogue.id,
        **({"image": images} if images else {}),
        "conversations": [
            {"from": _SPEAKERS[role], "value": text} for role, text in messages(turns, len(sample.images), SEPARATOR)
        ],
        OWN: own_text(sample.record, dialogue),
    }
