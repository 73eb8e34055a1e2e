"""Predictions written by hand, for tests of the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sarlang_sft.scoring.predictions import Row, join_everything

HOSTILE = '</script></p><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)'
NUL, TURNED, LONG_WORD, RAMBLE = "a\x00b", "‮right to left‬ مرحبا", "w" * 10_000, "It may be a ship. " * 400


def questions(data: Path, split: str = "test") -> list[Row]:
    """All questions and captions of a split, without predictions."""
    nothing = data.parent / "nothing.jsonl"
    nothing.write_text("")
    return join_everything(nothing, data, split).rows


def write_predictions(
    path: Path, rows: list[Row], answer: Callable[[int, Row], str | None], **settings: object
) -> Path:
    """A predictions file with what `answer` says to every row, given its place; None leaves it out."""
    lines: list[dict[str, Any]] = []
    for place, row in enumerate(rows):
        said = answer(place, row)
        if said is not None:
            lines.append({"id": row.id, "label": row.label, "predict": said, "logprob": -0.1 * (place % 30)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_suffix(".settings.json").write_text(json.dumps({"model": "tiny", **settings}))
    return path
