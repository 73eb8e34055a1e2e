"""What captions state of classes and counts, held against the boxes of their images."""

from collections.abc import Sequence

import numpy as np
import pytest

from sarlang_sft.questions import captions as scene_captions
from sarlang_sft.records import Box
from sarlang_sft.scenes import CLASSES, make_scene
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.facts import score_facts
from sarlang_sft.scoring.predictions import Row
from sarlang_sft.scoring.stated import class_of, forms_of, stated_facts

FORMS = forms_of(frozenset(CLASSES))


def row(image: str, label: str, predict: str | None, classes: Sequence[str], style: str = "concise") -> Row:
    boxes = tuple(Box(name, [0.0, 0.0, 4.0, 4.0]) for name in classes)
    name = f"{image}-{style}-{label}#0"
    return Row(name, (image,), "caption", "description", style, "S", None, "Describe.", label, predict, boxes)


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        ("Farmland with a bridge, two harbors and three aircraft.", {"bridge": 1, "harbor": 2, "aircraft": 3}),
        ("One can see a ship at the right, two ships at the left.", {"ship": 3}),
        ("Twenty-five large grey boats and 3 Oil Tanks", {"ship": 25, "tank": 3}),
        ("A ship lies at the pier. The ship is long.", {"ship": 1}),
        ("Five vessels: two ships at the top and three at the bottom", {"ship": 5}),
        ("There are five planes, including two aircraft on the apron", {"aircraft": 5}),
        ("A group of three ships, a pair of bridges", {"ship": 3, "bridge": 2}),
        ("١٢ ships", {"ship": 12}),
        ("Several ships near a harbor", {"ship": (2, None), "harbor": 1}),
        ("Planes, an aircraft and one aircraft", {"aircraft": 2}),
        ("Parked planes", {"aircraft": (2, None)}),
        ("Ships in port", {"ship": (2, None), "harbor": (1, None)}),
        ("Aircraft stand on the apron beside the bridge", {"aircraft": (1, None), "bridge": (1, None)}),
        ("two or three ships, 2-4 cars", {"ship": (2, 3), "car": (2, 4)}),
        (
            "at least ten ships, more than 5 cars, up to 4 tanks",
            {"ship": (10, None), "car": (6, None), "tank": (1, 4)},
        ),
        ("No ships are visible near the bridge", {"ship": 0, "bridge": (1, None)}),
        ("There are no ships, cars or planes", {"ship": 0, "car": 0, "aircraft": 0}),
        ("No ships and two cars", {"ship": 0, "car": 2}),
        ("Without a ship or a car but with an aircraft", {"ship": 0, "car": 0, "aircraft": 1}),
        ("Zero ships; no other boats", {"ship": (2, None)}),
        ("No sign of ships", {"ship": 0}),
        ("No harbor, only two ships", {"harbor": 0, "ship": 2}),
        ("Not all ships are large, not many cars", {"ship": (2, None), "car": (2, None)}),
        ("two dozen ships, half a dozen cars, a dozen tanks", {"ship": 24, "car": 6, "tank": 12}),
        (
            "more than a dozen ships, 20+ cars, five or more tanks",
            {"ship": (13, None), "car": (20, None), "tank": (5, None)},
        ),
        ("between two and four ships, between two bridges", {"ship": (2, 4), "bridge": 2}),
        ("1,000 cars, 12 ships", {"car": 1000, "ship": 12}),
        ("A two-lane bridge, 3 thousand cars", {"bridge": 1, "car": (2, None)}),
        ("Two aircraft carriers", {}),
        ("There are no ships at the top, two ships at the bottom", {"ship": 2}),
        ("a 100 m long ship", {"ship": 1}),
        ("A built-up area, ships", {"ship": (2, None)}),
        ("A car park and a tank farm beside a relationship to cargo", {}),
        ("A dense forest on three hills.", {}),
        ("", {}),
    ],
)
def test_captions_state_classes_and_counts(caption: str, facts: dict[str, int | tuple[int, int | None]]) -> None:
    expected = {name: count if isinstance(count, tuple) else (count, count) for name, count in facts.items()}
    assert stated_facts(caption, FORMS) == expected


@pytest.mark.parametrize(
    "text", ["ship " * 3000, "9" * 5000 + " ships", "፩ ② ships", "no " * 500, "\ud800 1 ship \u2028", ":,;" * 999]
)
def test_rambles_and_odd_characters_break_nothing(text: str) -> None:
    assert set(stated_facts(text, FORMS)) <= {"ship"}


def test_labels_of_boxes_are_read_like_the_words_of_captions() -> None:
    assert [class_of(label) for label in ("Ship", "Storage-Tank", "harbour", "Large_Vehicle")] == [
        "ship",
        "tank",
        "harbor",
        "large vehicle",
    ]
    assert stated_facts("two large vehicles", forms_of(frozenset({"large vehicle"}))) == {"large vehicle": (2, 2)}


def test_the_references_of_simulated_scenes_are_right_in_every_fact() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        scene = make_scene(rng, 96)
        for style in ("concise", "complex"):
            for text in scene_captions(scene, style, rng):
                rows.append(row(f"{number}.png", text, text, [box.label for box in scene.boxes], style))
    found = score_facts(rows)
    assert found["captions"] == 240
    for name in ("class_precision", "class_recall", "count_precision", "count_recall"):
        assert found[name]["value"] == found[name]["low"] == 1
    assert found["without_fact"] == found["hallucinated"] == found["missed"] == found["wrong_numbers"] == 0


def test_facts_are_counted_over_all_captions_of_images_with_boxes() -> None:
    found = score_facts(
        [
            row("0.png", "", "Two ships and a bridge.", ["ship", "ship", "car"]),  # a bridge made up, a car missed
            row("1.png", "", "Four boats.", ["Ship"] * 3),  # a wrong number
            row("2.png", "", "Several cars.", ["car"]),  # a number is denied by the box, but none is stated
            row("3.png", "", "No cars in the forest.", ["car", "bridge"]),
            row("4.png", "", None, ["ship"]),
            row("5.png", "", "Ninety ships.", []),  # without boxes
        ]
    )
    assert (found["captions"], found["images"], found["without_fact"]) == (5, 5, 1)
    shares = {
        name: (found[name]["value"], found[name]["n"]) for name in found if name.endswith(("precision", "recall"))
    }
    assert shares == {
        "class_precision": (3 / 4, 4),
        "class_recall": (3 / 7, 7),
        "count_precision": (1 / 3, 3),
        "count_recall": (1 / 7, 7),
    }
    assert (found["hallucinated"], found["missed"], found["wrong_numbers"]) == (1, 4, 1)
    assert (found["vague"], found["vague_contradicted"]) == (1, 1)
    assert (found["denied"], found["wrongly_denied"]) == (1, 1)
    assert found["by_class"]["ship"] == {
        "there": 3,
        "named": 2,
        "hallucinated": 0,
        "missed": 1,
        "numbered": 2,
        "right_number": 1,
    }
    assert found["classes"] == {"S": ["bridge", "car", "ship"]}


def test_without_a_named_class_there_is_no_precision() -> None:
    found = score_facts([row("0.png", "", "A forest.", ["ship"])])
    assert found["class_precision"] == {"value": None, "low": None, "high": None, "n": 0}
    assert found["class_recall"]["value"] == 0
    assert score_facts([row("0.png", "", "A ship.", [])]) is None


SIGHTS = (
    "a warehouse", "two runways", "a canal", "an orchard", "the quarry", "a stadium",
    "the railway", "a reservoir", "narrow streets", "a dyke", "the plaza", "a vineyard",
    "storage yards", "bare fields", "a row of houses", "the ring road", "tall chimneys", "a golf course",
)  # fmt: skip
REFERENCE = "The scene shows {} beside {}, crossed by {}. In the upper part {} ships lie at anchor, and {} reach {}."
SAID = "In the upper part {3} ships lie at anchor; the scene shows {0} with {1} and {2}, where {4} reach {5}."


def test_cider_hardly_sees_a_wrong_count_and_the_facts_do() -> None:
    rng = np.random.default_rng(1)
    numbers = ["two", "three", "four", "five", "six"]
    right, wrong, reworded = [], [], []
    for image in range(200):
        ships = int(rng.integers(0, 4))
        *sights, other = (str(sight) for sight in rng.permutation(SIGHTS)[:6])
        label = REFERENCE.format(*sights[:3], numbers[ships], *sights[3:])
        for rows, number, last in (
            (right, ships, sights[-1]),
            (wrong, ships + 1, sights[-1]),
            (reworded, ships, other),
        ):
            caption = SAID.format(*sights[:3], numbers[number], sights[3], last)
            rows.append(row(f"{image}.png", label, caption, ["ship"] * (ships + 2), "complex"))
    full, counted, named = (score_captions(rows, "standard") for rows in (right, wrong, reworded))
    assert 0.8 < counted["overall"]["value"] / full["overall"]["value"] < 1
    assert counted["overall"]["value"] > named["overall"]["value"]
    assert [one["facts"]["count_precision"]["value"] for one in (full, counted, named)] == [1, 0, 1]
    assert [one["facts"]["wrong_numbers"] for one in (full, counted, named)] == [0, 200, 0]
    assert counted["facts"]["class_precision"]["value"] == 1
