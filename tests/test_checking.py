"""Texts from boxes are true, and a checker of its own says so of the true ones alone."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import numpy as np
import pytest
from box_sets import CLASSES, KINDS, random_set
from hypothesis import given
from hypothesis import strategies as st

from sarlang_sft.annotations.cleaning import label_images
from sarlang_sft.annotations.reading import read_annotations
from sarlang_sft.errors import InputError
from sarlang_sft.language.building import say_everything
from sarlang_sft.language.captions import counted_form
from sarlang_sft.language.checking import check_dialogue
from sarlang_sft.language.dialogues import Said
from sarlang_sft.language.places import cell_of, extent_of, region_of, relations_of
from sarlang_sft.language.reading import Reader, make_reader
from sarlang_sft.language.things import Thing, name_things
from sarlang_sft.language.truth import Picture, look_at
from sarlang_sft.language.wording import CELLS, REGIONS, read_wording
from sarlang_sft.records import Box, Turn

SETS = 10_000
ENGLISH = read_wording("en")
EVERY_TASK = {
    "identification", "counting", "positioning", "referring", "classification", "grounding", "cross_identification",
    "description",
}  # fmt: skip


@pytest.fixture(scope="module", params=["en", "sarlang"])
def reader(request: pytest.FixtureRequest) -> Reader:
    wording = read_wording(request.param)
    return make_reader(wording, name_things(CLASSES, wording))


@pytest.fixture(scope="module")
def english() -> Reader:
    wording = read_wording("en")
    return make_reader(wording, name_things(CLASSES, wording))


def why_untrue(reader: Reader, picture: Picture, said: Said) -> str | None:
    return check_dialogue(reader, picture, said.subset, said.task, said.style, said.turns)


def test_the_checker_agrees_with_every_answer_on_ten_thousand_random_sets(reader: Reader) -> None:
    asked: Counter[str] = Counter()
    for number in range(SETS // 2):  # by each of two wordings
        rng = Random(f"{reader.wording.name}/{number}")
        boxes, width, height = random_set(rng, KINDS[number % len(KINDS)])
        picture = look_at(reader.labels, boxes, width, height)
        for said in say_everything(boxes, width, height, reader, rng):
            asked[said.task] += 1
            assert why_untrue(reader, picture, said) is None, (said, boxes, width, height)
    assert {*asked} == EVERY_TASK and min(asked.values()) > SETS / 5


def test_the_checker_agrees_on_the_boxes_of_real_scenes(real_data: Path, english: Reader) -> None:
    scenes = read_annotations([str(real_data / "mstar_scenes/instances.json")])
    images, _ = label_images(scenes, real_data / "mstar_scenes/images")
    reader = make_reader(english.wording, name_things(scenes.classes, english.wording))
    assert len(images) == 150 and sum(len(image.boxes) for image in images) == 253
    count = 0
    for image in images:
        picture = look_at(reader.labels, image.boxes, image.width, image.height)
        for said in say_everything(image.boxes, image.width, image.height, reader, Random(image.image)):
            count += 1
            assert why_untrue(reader, picture, said) is None, said
    assert count > 150 * 20


def wrong_answers(said: Said, picture: Picture, labels: Mapping[str, Thing], rng: Random) -> Iterator[Said]:
    """The dialogue with answers that are not true of the boxes."""
    *before, last = said.turns

    def answer(text: str) -> Said:
        return said._replace(turns=(*before, Turn(last.question, text)))

    absent = [thing for label, thing in labels.items() if label not in {box.label for box in picture.boxes}]
    if last.answer in ("Yes.", "No."):
        yield answer("No." if last.answer == "Yes." else "Yes.")
    elif said.task == "counting":
        yield answer(f"{int(last.answer[:-1]) + rng.choice((1, 2, 10))}.")
        yield answer(f"{int(last.answer[:-1]) - 1}.")
    elif said.task == "positioning":
        yield from (answer(f"{one}.") for one in REGIONS if f"{one}." != last.answer)
    elif said.task == "referring":
        yield answer(rng.choice([f"{one}." for one in CLASSES if f"{one}." != last.answer]))
    elif said.task == "classification":
        names = last.answer[:-1].split(", ")
        yield from (answer(", ".join([*names, one.name]) + ".") for one in absent[:1])
        yield answer(f"{', '.join([*names, names[0]])}.")
        if len(names) > 1:
            yield answer(f"{', '.join(names[1:])}.")
    elif said.task == "grounding":
        named = last.answer.split(", ")
        others = [f"<box:{one}>" for one in range(len(picture.boxes) + 1) if f"<box:{one}>" not in named]
        yield answer(", ".join([*named, others[-1]]))
        yield answer(", ".join([*named[1:], others[0]]))
        if len(said.turns) == 2:
            first = said.turns[0]
            yield said._replace(turns=(Turn(first.question, f"{int(first.answer[:-1]) + 1}."), last))
    else:
        yield from (answer(text) for text in wrong_captions(last.answer, picture, absent))


def wrong_captions(text: str, picture: Picture, absent: list[Thing]) -> Iterator[str]:
    for match in re.finditer(r"\d+", text):
        yield f"{text[: match.start()]}{int(match[0]) + 1}{text[match.end() :]}"
    for thing in {*picture.things} if absent else ():
        for form in ("a", "many", "name"):
            swapped = re.sub(rf"\b{getattr(thing, form)}\b", getattr(absent[0], form), text, count=1)
            if swapped != text:
                yield swapped
                break
    opposites = {"above": "below", "below": "above", "to the left": "to the right", "to the right": "to the left"}
    yield from (text.replace(one, other) for one, other in opposites.items() if one in text)
    if any(word in text for word in ("upper", "lower", "center")):
        taken = {cell_of(box.points, picture.width, picture.height) for box in picture.boxes}
        names = {cell: words[0] for cell, words in ENGLISH.places.items()}
        empty = [names[cell] for cell in CELLS if cell not in taken]
        written = re.search("|".join(sorted(names.values(), key=len, reverse=True)), text)
        if empty and written:
            yield text.replace(written[0], empty[0], 1)


def test_every_wrong_answer_is_caught(english: Reader) -> None:
    caught: Counter[str] = Counter()
    kinds = [kind for kind in KINDS if kind not in ("ties", "empty")]
    for number in range(700):
        rng = Random(number)
        boxes, width, height = random_set(rng, kinds[number % len(kinds)])
        picture = look_at(english.labels, boxes, width, height)
        for said in say_everything(boxes, width, height, english, rng):
            for wrong in wrong_answers(said, picture, english.labels, rng):
                assert wrong.turns != said.turns
                assert why_untrue(english, picture, wrong), (wrong, boxes, width, height)
                caught[f"{said.task} {said.style or ''}"] += 1
    assert len(caught) == len(EVERY_TASK) - 1 + 4 and min(caught.values()) > 100, caught


@pytest.mark.parametrize(
    ("task", "style", "question", "answer", "reason"),
    [
        ("description", "general", None, "There may be ships.", "caption not understood"),
        ("description", "odd", None, "A SAR image of ships.", "no caption of a family"),
        ("description", "general", "Say something.", "A SAR image of ships.", "question not understood"),
        ("description", "general", None, "A SAR image of ships and ships.", "names a class twice"),
        ("description", "complex", None, "A SAR image with 2 ships and 2 ships.", "names a class twice"),
        ("description", "complex", None, "A SAR image with 1 ships.", "which the boxes do not"),
        ("counting", None, "How many ships are there in the image?", "two.", "the boxes say '2.'"),
        ("counting", None, "How many boats are there in the image?", "2.", "question not understood"),
        ("positioning", None, "Where are most ships located?", "top.", "question not understood"),
        ("positioning", None, "Where is the ship located in the image?", "top.", "speaks of one object"),
        ("positioning", None, "Where are most ships positioned within the image?", "top.", "no side has more"),
        ("referring", None, "Which object is located in the area [1.0, 2.0]?", "ship.", "asks about no box"),
        ("referring", None, "Which object is located in the area [1.0, -, 2.0, 3.0]?", "ship.", "asks about no box"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_asked_is_no_true_answer(
    task: str, style: str | None, question: str | None, answer: str, reason: str, english: Reader
) -> None:
    boxes = [Box("ship", [0, 0, 10, 10]), Box("ship", [80, 80, 10, 10])]
    picture = look_at(english.labels, boxes, 100, 100)
    caption = task == "description"
    prompt = english.wording.sets["prompts.general"][0].fill({})
    if caption:
        style_prompt = english.wording.sets.get(f"prompts.{style}", english.wording.sets["prompts.general"])[0].fill(
            {}
        )
        turn = Turn(question or style_prompt, answer)
    else:
        turn = Turn(english.wording.ask(question or prompt), answer)
    said = Said("boxes_caption" if caption else "boxes_vqa", task, style, (turn,))
    assert reason in (why_untrue(english, picture, said) or "")


def test_ties_have_no_side_and_no_part_and_a_majority_needs_more_than_half(english: Reader) -> None:
    assert region_of([10, 10, 20, 20], 100, 100) is None  # on the diagonal
    assert region_of([10, 10, 20, 20], 100, 100, border=0) == "top"
    assert cell_of([23, 40, 20, 20], 99, 99) is None  # a third across
    assert region_of([40, 5, 20, 10], 100, 100) == "top" and region_of([85, 30, 10, 10], 100, 100) == "right"
    assert region_of([40, 40, 20, 20], 100, 100) == cell_of([40, 40, 20, 20], 100, 100) == "center"
    assert cell_of([80, 2, 10, 10], 100, 100) == "top right" and cell_of([2, 45, 10, 10], 100, 100) == "left"
    half = [Box("ship", [0, 45, 10, 10]), Box("ship", [90, 45, 10, 10])]
    tasks = [said.task for said in say_everything(half, 100, 100, english, Random(0))]
    assert "counting" in tasks and "positioning" not in tasks


def test_relations_hold_for_all_of_both_groups_or_are_not_said() -> None:
    high, low = extent_of([[0, 0, 10, 10], [50, 5, 10, 10]]), extent_of([[0, 15, 10, 10]])
    assert relations_of(high, low) == ["above"] and relations_of(low, high) == ["below"]
    assert relations_of(high, extent_of([[0, 14, 10, 10]])) == []
    assert relations_of(extent_of([[0, 0, 5, 5]]), extent_of([[9, 9, 5, 5]])) == ["above", "left"]
    assert relations_of(extent_of([[9, 0, 5, 5]]), extent_of([[0, 0, 5, 5, 5, 5, 0, 0]])) == ["right"]


def test_a_box_in_whose_place_lies_another_class_is_not_asked_about(english: Reader) -> None:
    twins = [Box("ship", [10, 10, 20, 20]), Box("harbor", [11, 10, 20, 20]), Box("car", [70, 70, 9, 9])]
    for seed in range(20):
        for said in say_everything(twins, 100, 100, english, Random(seed)):
            if said.task in ("referring", "cross_identification"):
                asked = said.turns[0].question
                assert "[70.0, 70.0, 9.0, 9.0]" in asked or "<box:2>" in asked


def test_the_checker_knows_what_is_not_known_and_which_box_is_meant(english: Reader) -> None:
    boxes = [Box("ship", [10, 40, 8, 8]), Box("harbor", [11, 40, 8, 8]), Box("car", [70, 40, 9, 9])]
    sure = look_at(english.labels, boxes, 100, 100)
    unsure = look_at(english.labels, boxes, 100, 100, {"car", "tank"})
    found = Counter()
    for said in say_everything([boxes[0], boxes[2]], 100, 100, english, Random(0)):
        known = look_at(english.labels, [boxes[0], boxes[2]], 100, 100, {"car", "tank"})
        spoken = str(said.turns)
        if (said.task in ("counting", "positioning") and "car" in spoken) or said.style in ("general", "complex"):
            assert why_untrue(english, known, said), said
            found[said.task] += 1
        if said.task == "classification" or (said.task == "identification" and "tank" in spoken):
            assert why_untrue(english, known, said), said
            found[said.task] += 1
    assert {*found} == {"counting", "positioning", "description", "classification", "identification"}
    named = Said("boxes_grounding", "referring", None, (Turn("What is the object in <box:0>?", "ship."),))
    assert "in whose place lies another class" in why_untrue(english, sure, named)
    plain = Said("boxes_grounding", "referring", None, (Turn("What is the object in <box:2>?", "car."),))
    assert why_untrue(english, unsure, plain) is None
    zeros = Said("boxes_grounding", "referring", None, (Turn("What is the object in <box:02>?", "car."),))
    assert why_untrue(english, sure, zeros) == "question not understood"


def test_the_words_are_good_english(english: Reader) -> None:
    wording = english.wording
    wrong = re.compile(
        r"\ba [aeiou]|\ban [^aeiou]|  |aircrafts|\bis [2-9]|\bare 1 |\b1 (?:ships|cars|tanks|bridges|harbors)\b"
        r"|\b(?:[2-9]|1\d) (?:ship|car|tank|bridge|harbor)\b|\b(?:many|most) (?:ship|car|tank|bridge|harbor)\b"
    )
    count = 0
    for number in range(300):
        rng = Random(number)
        boxes, width, height = random_set(rng, KINDS[number % 3])
        for said in say_everything(boxes, width, height, english, rng):
            for turn in said.turns:
                count += 1
                question = turn.question.removeprefix("Question: ").removesuffix(". Answer the question concisely.")
                assert question[0].isupper() and question[-1] in "?." and not wrong.search(question), question
                if said.task == "description":
                    assert turn.answer[0].isupper() or turn.answer[0].isdigit()
                    assert turn.answer.endswith(".") and not wrong.search(turn.answer), turn.answer
    assert count > 5000
    things = english.labels
    assert counted_form(things["aircraft"], 1, wording) == "1 aircraft"
    assert counted_form(things["harbor"], 3, wording, "the_") == "the 3 harbors"
    assert counted_form(things["ship"], 1, wording, "the_") == "the ship"


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp")), min_size=1, max_size=12)


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True), st.integers(0, 10**6))
def test_any_names_of_classes_are_read_back_or_refused(names: list[str], seed: int) -> None:
    wording = read_wording("en")
    try:
        things = name_things(names, wording)
    except InputError as error:
        assert "class" in str(error)
        return
    reader = make_reader(wording, things)
    rng = Random(seed)
    boxes = [Box(rng.choice(names), [*np.round([rng.uniform(0, 80), rng.uniform(0, 80), 9, 9], 1)]) for _ in range(6)]
    picture = look_at(things, boxes, 100, 100)
    for said in say_everything(boxes, 100, 100, reader, rng):
        assert why_untrue(reader, picture, said) is None, said
