"""TRL: Parquet that `datasets` loads and SFTTrainer takes, as `messages` or as `prompt` and `completion`.

Contents are plain text, in front of which TRL puts the images itself: a list of typed parts would get every key of the
other parts, filled with nothing, once it is stored in Arrow.
"""

from typing import Any

import pyarrow as pa
from datasets import Features, Image, List, Value

from sarlang_sft.formats.rows import OWN, Sample, messages, own_text
from sarlang_sft.formats.words import Words, read_verbatim, write_pixels
from sarlang_sft.records import Dialogue, Turn

WORDS = Words(write_pixels, read_verbatim)
_MESSAGES = List({"role": Value("string"), "content": Value("string")})
_OTHERS = {"images": List(Image()), OWN: Value("string")}
SCHEMA: pa.Schema = Features({"messages": _MESSAGES, **_OTHERS}).arrow_schema
COMPLETION_SCHEMA: pa.Schema = Features({"prompt": _MESSAGES, "completion": _MESSAGES, **_OTHERS}).arrow_schema


def row(sample: Sample, dialogue: Dialogue, turns: list[Turn]) -> dict[str, Any]:
    """`messages`; every image is a path that `datasets` decodes when the row is read."""
    return {
        "messages": [{"role": role, "content": text} for role, text in messages(turns, 0, "")],
        "images": [{"bytes": None, "path": path} for path in sample.images],
        OWN: own_text(sample.record, dialogue),
    }


def completion_row(sample: Sample, dialogue: Dialogue, turns: list[Turn]) -> dict[str, Any]:
    """The same with the last answer as `completion`: SFTTrainer then trains on it alone, with any chat template."""
    whole = row(sample, dialogue, turns)
    *prompt, completion = whole.pop("messages")
    return {"prompt": prompt, "completion": [completion], **whole}
