import pytest
from corruptions import often
from hypothesis import given
from hypothesis import strategies as st

from sarlang_sft.sarlang import CLASS_PREFIX, POSITION_PREFIX, VQA_PROMPT
from sarlang_sft.text_checks import gives_away, same_answer
from sarlang_sft.validation import box_problem


@often
@given(
    st.tuples(st.floats(0, 90), st.floats(0, 40)),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    st.sampled_from([(-1, 0), (1, 0), (0, -1), (0, 1)]),
    st.floats(1.01, 1e6),
)
def test_boxes_are_judged_by_the_image_in_both_forms(
    corner: tuple[float, float], sides: tuple[float, float], way: tuple[int, int], beyond: float
) -> None:
    (x, y), (w, h) = corner, sides
    assert box_problem([x, y, w, h], 100, 50) is None
    assert box_problem([x, y, x + w, y, x + w, y + h, x, y + h], 100, 50) is None
    # moved until it reaches `beyond` pixels out of the image on one side
    x = {-1: -beyond, 1: 100 + beyond - w, 0: x}[way[0]]
    y = {-1: -beyond, 1: 50 + beyond - h, 0: y}[way[1]]
    expected = "box_outside" if beyond < (w if way[0] else h) * 0.999 else "unusable_box"
    if abs(beyond - (w if way[0] else h)) > 0.01:
        assert box_problem([x, y, w, h], 100, 50) == expected
        assert box_problem([x, y, x, y + h, x + w, y + h, x + w, y], 100, 50) == expected


@pytest.mark.parametrize("prompt", ["{question}", VQA_PROMPT])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Are there any surrounding trees?", "Yes."),
        ("Is there a road surrounding the stadium?", "no"),
        ("Is there no ship in the image?", "No."),
        (f"{CLASS_PREFIX} Is there a ship in the image?", "Yes."),
        ("What type of area is mostly visible?", "Forest/park."),
        (f"{CLASS_PREFIX} What categories are visible?", "ship, harbor."),
        (f"{CLASS_PREFIX} What categories are visible?", "tank, car."),
        (f"{CLASS_PREFIX} How many harbors are located in the image?", "2."),
        (f"{CLASS_PREFIX} What is the object present in the area [56.0, 191.0, 112.0, 122.0]?", "aircraft."),
        (f"{CLASS_PREFIX} What is the category visible in the area [88.0, 376.0, 90.0, 99.0]?", "ship."),
        ("How many ships are in the area [2.0, 3.0, 40.0, 9.0]?", "2."),
        (f"{POSITION_PREFIX} Where are most harbors positioned within the image?", "bottom."),
        ("Where is the ship in the top left part?", "top left"),
        ("Is the tank near the center?", "near center"),
        ("What shape are the swimming pools?", "Rectangular."),
        ("What direction is the main road?", "Diagonal."),
        ("What is the predominant land cover?", "Urban."),
        ("Is the area urban or rural?", "Urban."),
        ("Which is larger, the ship or the harbor next to the ship?", "The ship."),
        ("Which of these is it: forest, water?", "Water."),
        ("Which is it? A. ship B. car", "B"),
        ("Which is it? (a) ship (b) car", "ship"),
        ("Options: forest, open water. What surrounds the island?", "Open water."),
        ("What is the category of the target in the image?", "T72."),
        ("Is the object in <box:0> that in <box:1>?", "<box:1>"),
        ("How many of the two ships move?", "two"),
    ],
)
def test_official_forms_give_nothing_away(prompt: str, question: str, answer: str) -> None:
    assert not gives_away(prompt.replace("{question}", question), answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the shape of the circular pond?", "Circular."),
        ("What is the predominant land cover of the agricultural field?", "agricultural field."),
        (f"{CLASS_PREFIX} What is the ship in the area [1.0, 2.0, 3.0, 4.0]?", "ship."),
        ("What kind of storage tank is visible?", "Storage tank"),
    ],
)
def test_a_question_that_holds_its_answer_is_told(question: str, answer: str) -> None:
    assert gives_away(VQA_PROMPT.replace("{question}", question), answer)
    assert not gives_away(VQA_PROMPT.replace("{question}", question), f"{answer.strip('.')}like")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yes.", "Yes, there is one.", True), ("Vessel.", "a ship", True), ("2.", "two", True),
        ("top left", "Left top.", True), ("\u00b0", "\u00b0 ", True), ("Yes.", "No.", False), ("2.", "3.", False),
        ("ship", "ship, car", False),
    ],
)  # fmt: skip
def test_answers_contradict_by_what_they_say(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) == same_answer(other, one) == same
