"""LLaMA-Factory: JSON lines in its sharegpt formatting, with the `dataset_info.json` that names them."""

import json
import re
from pathlib import Path
from typing import Any

from sarlang_sft.formats.rows import OWN, Sample, messages, own_text
from sarlang_sft.formats.words import Words, read_verbatim, write_pixels
from sarlang_sft.records import Dialogue, Turn

SEPARATOR = ""
WORDS = Words(write_pixels, read_verbatim, reserved=("<image>", "<video>", "<audio>"))
_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def row(sample: Sample, dialogue: Dialogue, turns: list[Turn], separator: str = SEPARATOR) -> dict[str, Any]:
    """`messages` and `images`."""
    return {
        "messages": [{"role": role, "content": text} for role, text in messages(turns, len(sample.images), separator)],
        "images": sample.images,
        OWN: own_text(sample.record, dialogue),
    }


def write_dataset_info(folder: Path, name: str) -> None:
    """`dataset_info.json`: a data set `<name>_<file>` for every file in the folder."""
    info = {}
    for path in sorted(folder.glob("*.jsonl")):
        columns = {"messages": "messages"} | ({} if path.stem.endswith("_text") else {"images": "images"})
        info[f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}_{path.stem}"] = {
            "file_name": path.name,
            "formatting": "sharegpt",
            "columns": columns,
            "tags": _TAGS,
        }
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
