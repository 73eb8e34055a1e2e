"""Boxes and scene facts to questions, answers and captions, in the forms that SARLANG-1M publishes."""

from collections import defaultdict

import numpy as np

from sarlang_sft.language.places import most, region_of
from sarlang_sft.records import Box, Turn
from sarlang_sft.scenes import CLASSES, Scene

TaskTurn = tuple[str, Turn]
"""A task of `records.TASKS` with one question and answer about it."""

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def plural(label: str) -> str:
    """The plural as the release writes it (`aircrafts` included)."""
    return label + "s"


def where_most(boxes: list[Box], width: int, height: int) -> str | None:
    """The region that holds more than half of the boxes, or None; every box has one, as in all earlier samples."""
    return most([region_of(box.points, width, height, border=0) for box in boxes])


def box_questions(boxes: list[Box], width: int, height: int, rng: np.random.Generator) -> list[TaskTurn]:
    """Questions of the five box-driven applications (SARVQA1): every answer follows from the boxes alone.

    Identification asks about as many absent as present classes; positions without a majority are not asked.
    """
    by_class = _by_class(boxes)
    present = [label for label in CLASSES if label in by_class]
    absent = [label for label in CLASSES if label not in by_class]
    asked: list[TaskTurn] = []
    for label in present:
        asked.append(("identification", Turn(f"Is there a {label} in the image?", "Yes.")))
        asked.append(
            ("counting", Turn(f"How many {plural(label)} are located in the image?", f"{len(by_class[label])}."))
        )
        region = where_most(by_class[label], width, height)
        if region:
            question = f"Where are most {plural(label)} positioned within the image?"
            asked.append(("positioning", Turn(question, f"{region}.")))
    for label in rng.permutation(absent)[: len(present)]:
        asked.append(("identification", Turn(f"Is there a {label} in the image?", "No.")))
    chosen = boxes[int(rng.integers(len(boxes)))]
    form = rng.choice(["What is the object present in the area {}?", "What is the category visible in the area {}?"])
    asked.append(("referring", Turn(str(form).format([float(value) for value in chosen.points]), f"{chosen.label}.")))
    asked.append(("classification", Turn("What categories are visible?", f"{', '.join(present)}.")))
    return asked


_AREA = {"forest": "Forest/park", "fields": "Farming", "buildings": "Residential", "open water": "Open water"}
_COVER = {"forest": "Vegetation", "fields": "Agricultural field", "buildings": "Urban", "open water": "Water"}
_USE = {"forest": "Forestry", "fields": "Farming", "buildings": "Housing", "open water": "Shipping"}
_GROUND = {"forest": "a forest", "fields": "farmland", "buildings": "a built-up area", "open water": "open water"}


def scene_questions(scene: Scene, rng: np.random.Generator) -> list[TaskTurn]:
    """Free-form questions (SARVQA2): area types, surroundings, and the five kinds of Others."""
    background = scene.background
    trees = "Yes." if background == "forest" else "No."
    asked: list[TaskTurn] = [
        ("classification", Turn("What type of area is mostly visible?", f"{_AREA[background]}.")),
        ("identification", Turn("Are there any surrounding trees?", trees)),
    ]
    others = [
        Turn("What is the predominant land cover?", f"{_COVER[background]}."),
        Turn("What is the area most likely used for?", f"{_USE[background]}."),
    ]
    if scene.field_shape:
        others.append(Turn("What shape are the fields?", f"{scene.field_shape}."))
    if scene.building_pattern:
        others.append(Turn("What pattern do the buildings form?", f"{scene.building_pattern}."))
    if scene.road:
        others.append(Turn("What direction is the main road?", f"{scene.road}."))
    return asked + [("others", others[index]) for index in rng.permutation(len(others))[:2]]


_CONCISE = ("{ground} with {groups}.", "{groups} in {ground}.")
_COMPLEX = (
    "The radar image shows {ground}{road}. There {are} {groups}.",
    "This is a view of {ground}{road}. One can see {groups}.",
)


def captions(scene: Scene, style: str, rng: np.random.Generator) -> list[str]:
    """Two captions in different words, the groups of targets in different order.

    Args:
        style: `concise` (one sentence: the ground and what stands on it) or `complex` (two sentences: the ground with
            its road, then every group with its place).
    """
    by_class = _by_class(scene.boxes)
    written = []
    for template in _CONCISE if style == "concise" else _COMPLEX:
        labels = [str(label) for label in rng.permutation(list(by_class))]
        groups = [_counted(label, len(by_class[label])) for label in labels]
        if style == "complex":
            places = [_place(by_class[label], scene.size) for label in labels]
            groups = [f"{group} {place}" for group, place in zip(groups, places, strict=True)]
        road = f" crossed by a {scene.road.lower()} road" if scene.road else ""
        are = "is" if len(by_class[labels[0]]) == 1 else "are"
        text = template.format(ground=_GROUND[scene.background], groups=_join(groups), road=road, are=are)
        written.append(text[0].upper() + text[1:])
    return written


def _by_class(boxes: list[Box]) -> dict[str, list[Box]]:
    groups: dict[str, list[Box]] = defaultdict(list)
    for box in boxes:
        groups[box.label].append(box)
    return groups


def _place(boxes: list[Box], size: int) -> str:
    region = where_most(boxes, size, size)
    return "in the center" if region == "center" else f"at the {region}" if region else "spread over the scene"


def _counted(label: str, count: int) -> str:
    if count == 1:
        return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"
    return f"{NUMBER_WORDS[count]} {label if label == 'aircraft' else plural(label)}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
