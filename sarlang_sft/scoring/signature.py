"""One line that says how a score is made, so that two of them can be told apart or held side by side.

The idea is sacreBLEU's (Post, "A call for clarity in reporting BLEU scores", WMT 2018).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from sarlang_sft.boxes import PLACEHOLDER
from sarlang_sft.scoring.predictions import CAPTION_TASK, Row

DIGITS = 8  # of the hashes


def signature(rules: Mapping[str, str | int], rows: Sequence[Row], split: str, tasks: Sequence[str] = ()) -> str:
    """Such as `sarlang-sft|protocol:exact|version:1|split:test|questions:1a2b3c4d|n:125255|tasks:all`.

    Args:
        rules: What the scorer did, in the order to be shown: at least `protocol` and the `version` of its rules.
        rows: The questions that are scored.
        tasks: Those chosen; empty for all.
    """
    parts = {
        **rules,
        "split": split,
        "questions": questions_hash(rows),
        "n": len(rows),
        "tasks": "+".join(sorted(tasks)) or "all",
    }
    # What separates the parts must not occur in them: a judge may be called `qwen:7b`.
    cleaned = (f"{name}:{str(value).replace('|', '_').replace(':', '_')}" for name, value in parts.items())
    return "|".join(["sarlang-sft", *cleaned])


def questions_hash(rows: Sequence[Row]) -> str:
    """Of what predictions are held against, in any order: ids, questions and stored answers, and what else decides.

    That are the boxes that an answer names as `<box:i>`, and of a caption its images and style, which gather its
    references, and all boxes, which its facts are held against.
    """
    return short_hash([_truth(row) for row in sorted(rows, key=lambda row: (row.id, row.question, row.label))])


def _truth(row: Row) -> list[object]:
    truth = [row.id, row.question, row.label]
    boxes = [[box.label, *box.points] for box in row.boxes]
    if row.task == CAPTION_TASK:
        return [*truth, row.images, row.style, boxes]
    return [*truth, boxes] if PLACEHOLDER.search(row.label) else truth


def short_hash(content: object) -> str:
    """The first `DIGITS` hexadecimal digits of the SHA-256 of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
