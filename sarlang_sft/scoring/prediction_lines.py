"""The lines of a predictions file, whoever wrote it: what can be used, and what is wrong with the rest."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError

FIELDS = ("id", "predict")
BOX_NUMBERS = (4, 8)  # `x y w h`, or four corners

Problems = dict[str, list[str]]
"""What is wrong with a predictions file: the reason, and every place of it (`line 7`, or the id of a question)."""

Boxes = tuple[tuple[float, ...], ...]
"""Predicted boxes: `x y w h` or the 8 numbers of four corners; without numbers where the model's were unusable."""


@dataclass(frozen=True)
class Prediction:
    """What one line of a predictions file says."""

    line: int
    label: str | None
    predict: str
    logprob: float | None
    boxes: Boxes | None


def read_predictions(path: Path) -> tuple[dict[str, Prediction], defaultdict[str, list[str]]]:
    """The predictions by id, and what is wrong with the file; of several answers to one question the first counts.

    Raises:
        InputError: There is no such file.
    """
    if not path.is_file():
        raise InputError(f"--predictions {path}: no such file; make it with eval/generate.py")
    found: dict[str, Prediction] = {}
    problems: defaultdict[str, list[str]] = defaultdict(list)
    # Bytes, because text mode would also end lines at a lone carriage return.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                problems["is no valid JSON" if line.endswith(b"\n") else "is cut off"].append(place)
                continue
            if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
                problems["is no object with the texts id and predict"].append(place)
            elif row["id"] in found:
                problems["answers a question again"].append(place)
            else:
                logprob, boxes = row.get("logprob"), _read_boxes(row.get("boxes"))
                if logprob is not None and not is_finite(logprob):
                    problems["has a logprob that is no finite number"].append(place)
                    logprob = None
                if boxes is not None and () in boxes:
                    problems["has boxes that are not 4 or 8 finite numbers each"].append(place)
                found[row["id"]] = Prediction(number, row.get("label"), row["predict"], logprob, boxes)
    return found, problems


def _read_boxes(given: Any) -> Boxes | None:
    if given is None:
        return None
    boxes = given if isinstance(given, list) else [given]
    return tuple(
        tuple(map(float, box))
        if isinstance(box, list) and len(box) in BOX_NUMBERS and all(map(is_finite, box))
        else ()
        for box in boxes
    )


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold; `true` is none."""
    return (type(value) is int and abs(value) < 1e300) or (type(value) is float and math.isfinite(value))
