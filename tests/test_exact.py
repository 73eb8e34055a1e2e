"""The protocol `exact`: what counts as the same answer, what does not, and that no text upsets it."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.exact import VERSION, exact_verdict, predicted_count, question_type, things_named
from sarlang_sft.scoring.vocabulary import VOCABULARY, read_vocabulary

IS_THERE = "Question: Is there a ship in the image?. Answer the question concisely."
HOW_MANY = "How many ships are located in the image?"
HOW_MANY_LISTED = f"Question: The classes are: tank, car, aircraft, harbor, bridge, ship. {HOW_MANY}"
WHERE = "Where are most ships positioned within the image?"
WHAT = "What categories are visible?"

SAME = [
    ("yes", "Yes, there is a ship.", ""),
    ("No.", "no", ""),
    ("No.", " **No** ship can be seen", ""),
    ("Yes, there are trees.", "yes", ""),
    ("No.", "There is no ship.", IS_THERE),
    ("No.", "There are no vessels in the image.", IS_THERE),
    ("No.", "There isn't any ship.", IS_THERE),
    ("No.", "There are none.", IS_THERE),
    ("No.", "There is not a ship in it", IS_THERE),
    ("No.", "There are no visible ships.", IS_THERE),
    ("No.", "There are not any ships.", IS_THERE),
    ("No.", "There does not appear to be a ship in the image.", IS_THERE),
    ("No.", "No, there is a bridge.", IS_THERE),
    ("Yes.", "There appears to be a ship in the image.", IS_THERE),
    ("Yes.", "There is a ship in the image.", IS_THERE),
    ("Yes.", "There are 3 large ships", IS_THERE),
    ("no", "The answer is no.", ""),
    ("yes", "Answer: **Yes**", ""),
    ("yes", "yes, no doubt", ""),
    ("2.", "two", ""),
    ("21", "Twenty-one.", ""),
    ("105", "one hundred and five", ""),
    ("5", "５", ""),
    ("5", "٥", ""),
    ("5", "05", ""),
    ("3.", "There are 3 ships.", HOW_MANY),
    ("3.", "There are three vessels in the image.", HOW_MANY),
    ("3", "About 3 ships", HOW_MANY),
    ("3", "I count 3 ships.", HOW_MANY),
    ("3", "3 vessels", HOW_MANY_LISTED),
    ("3", "The number of ships is 3.", HOW_MANY),
    ("3", "<think>2 or 4?</think> \\boxed{3}", HOW_MANY),
    ("There are 3 ships.", "3", HOW_MANY),
    ("0.", "There are no ships in the image.", HOW_MANY),
    ("0", "None.", HOW_MANY),
    ("0", "None are visible.", HOW_MANY),
    ("0.", "There are no visible ships in the image.", HOW_MANY),
    ("0", "There aren't any ships.", HOW_MANY),
    ("0", "There do not appear to be any ships.", HOW_MANY),
    ("0", "There are no trees.", "How many trees are there?"),
    ("3", "There appear to be 3 ships.", HOW_MANY),
    ("3", "-> 3<|im_end|>", HOW_MANY),
    ("ship, harbor", "Harbor and ship.", ""),
    ("ship, harbor", "- ship\n- harbor", WHAT),
    ("ship, harbor.", "There are ships and a harbor in the image.", WHAT),
    ("car, tank, bridge", "bridges, a car, and the tank", ""),
    ("aircraft.", "Airplanes", ""),
    ("ship", "boat", ""),
    ("ship", "The object present in the area [1.0, 2.0, 3.0, 4.0] is a vessel.", ""),
    ("ship", "A ship is visible.", ""),
    ("ship", "The object appears to be a ship.", ""),
    ("harbor", "the port", ""),
    ("harbor", "Harbour", ""),
    ("football field", "soccer field", ""),
    ("playground", "ground track field", ""),
    ("building", "rooftops", ""),
    ("pond", "Swimming pool", ""),
    ("top left", "left top", ""),
    ("upper side", "top", ""),
    ("right.", "The answer is right.", WHERE),
    ("top left.", "In the upper left corner of the image", WHERE),
    ("top left.", "The ships are mostly located in the top-left quadrant.", WHERE),
    ("top left.", "Most ships are positioned at the top left of the image.", WHERE),
    ("bottom.", "They are mostly in the lower part of the image.", WHERE),
    ("near center.", "near the centre", WHERE),
    ("left", "<b>left</b>-hand side", WHERE),
    ("Forest/park.", "forest / park", ""),
    ("Urban.", "The predominant land cover is urban.", ""),
    ("Commercial and residential.", "residential and  commercial", ""),
]

OTHER = [
    ("1", "10", ""),
    ("10", "1", ""),
    ("3", "-3", ""),
    ("2", "2 or 3", ""),
    ("3", "There are 2 or 3 ships.", HOW_MANY),
    ("3", "It is 2, or rather 3.", HOW_MANY),
    ("3", "2-3", HOW_MANY),
    ("3", "3 to 4", HOW_MANY),
    ("3", "at least 3", HOW_MANY),
    ("3", "more than 3 ships", HOW_MANY),
    ("3", "3+", HOW_MANY),
    ("3", "> 3", HOW_MANY),
    ("3", "≤3", HOW_MANY),
    ("3", "three dozen ships", HOW_MANY),
    ("3", "There are 3 thousand ships.", HOW_MANY),
    ("3", "There are 3 groups of ships.", HOW_MANY),
    ("3", "There are not 3 ships.", HOW_MANY),
    ("3", "I doubt there are 3 ships.", HOW_MANY),
    ("3", "3 cars", HOW_MANY),
    ("3", "3 cars", HOW_MANY_LISTED),
    ("0", "There are no bridges.", HOW_MANY_LISTED),
    ("3", "3 ships and 1 harbor", HOW_MANY),
    ("3", "3D view", HOW_MANY),
    ("0", "No.", HOW_MANY),
    ("0", "No idea.", HOW_MANY),
    ("0", "There are no cars.", HOW_MANY),
    ("0", "No visible cars.", HOW_MANY),
    ("0", "No image is provided.", HOW_MANY),
    ("25", "2.5", ""),
    ("no", "unknown", ""),
    ("no", "not sure", ""),
    ("no", "no idea", ""),
    ("no", "No one knows.", ""),
    ("no", "another north area", ""),
    ("no", "yes, no doubt", ""),
    ("yes", "yes and no", ""),
    ("no", "no, yes there is one", ""),
    ("no", "yes or no", ""),
    ("yes", "Yes/No", ""),
    ("No.", "There is no bridge.", IS_THERE),
    ("No.", "No bridge can be seen", IS_THERE),
    ("No.", "There is no visible bridge.", IS_THERE),
    ("No.", "No visible bridges.", IS_THERE),
    ("No.", "No, there is a ship.", IS_THERE),
    ("Yes.", "Yes, there are no ships in the image.", IS_THERE),
    ("No.", "There is no large ship.", IS_THERE),
    ("No.", "There are not many ships.", IS_THERE),
    ("No.", "There aren't 3 ships.", IS_THERE),
    ("Yes.", "There is a harbor.", IS_THERE),
    ("Yes.", "There is no ship.", IS_THERE),
    ("Yes.", "There is a ship.", "What is it?"),
    ("No clear pattern.", "No", ""),
    ("car", "cargo", ""),
    ("car", "vehicle", ""),
    ("ship", "relationship", ""),
    ("aircraft", "aircraft carrier", ""),
    ("ship, harbor", "ship", ""),
    ("ship", "ship, harbor", ""),
    ("ship", "It is not a ship.", ""),
    ("ship", "It is a ship or a tank.", ""),
    ("ship", "It is a ship. It is a tank.", ""),
    ("ship", "I am unsure whether it is a ship", ""),
    ("ship, harbor", "The image shows no ships and a harbor.", WHAT),
    ("top left", "top", ""),
    ("near center", "center", ""),
    ("left", "left and right", ""),
    ("right", "That is not right.", WHERE),
    ("top", "The image shows a top view.", WHERE),
    ("left", "left of the harbor", WHERE),
    ("[10.0, 20.0, 5.0, 5.0]", "[20.0, 10.0, 5.0, 5.0]", ""),
    ("yes", "", ""),
    ("ship", "", ""),
    ("?", "!", ""),
    ("ship", "a10", ""),
]

# Of the verdicts on all pairs of the texts above, by version: a verdict that changes needs a new version and line.
VERDICTS = {1: "58bf33b42c275c26e5e70b966dfaf969dc8d3ce83ed8993265c792f646dd9391"}


@pytest.mark.parametrize(("label", "predict", "question"), SAME)
def test_exact_accepts_the_same_answer_in_other_words(label: str, predict: str, question: str) -> None:
    assert exact_verdict(label, predict, question)


@pytest.mark.parametrize(("label", "predict", "question"), OTHER)
def test_exact_refuses_what_only_looks_alike(label: str, predict: str, question: str) -> None:
    assert not exact_verdict(label, predict, question)


def test_a_changed_verdict_changes_the_version() -> None:
    labels, predictions, questions = (sorted({row[place] for row in SAME + OTHER}) for place in range(3))
    verdicts = [exact_verdict(label, said, asked) for label in labels for said in predictions for asked in questions]
    assert hashlib.sha256(json.dumps(verdicts).encode()).hexdigest() == VERDICTS[VERSION]


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("Yes.", "yes_no"),
        ("No, there is none.", "yes_no"),
        ("12.", "count"),
        ("two", "count"),
        ("aircraft.", "class"),
        ("oil tanks", "class"),
        ("near center", "position"),
        ("upper left side", "position"),
        ("ship, harbor.", "list"),
        ("Commercial and residential.", "list"),
        ("<box:0> (bottom right)", "box"),
        ("[56.0, 191.0, 112.0, 122.0]", "box"),
        ("[1, 2, 3, 4], [5, 6, 7, 8].", "box"),
        ("[1, 2]", "open"),
        ("Forest/park.", "open"),
        ("No clear pattern.", "open"),
        ("3 ships", "open"),
        ("", "open"),
    ],
)
def test_the_form_of_an_answer_tells_the_type_of_its_question(label: str, kind: str) -> None:
    assert question_type(label) == kind


@given(
    a=st.integers(0, 10**6), b=st.integers(0, 10**6), form=st.sampled_from(["{} or {}", "{}, {}", "{}-{}", "{} {}"])
)
def test_two_numbers_are_never_the_answer_to_how_many(a: int, b: int, form: str) -> None:
    said = form.format(a, b)
    for text in (said, f"There are {said} ships.", f"The answer is {said}"):
        assert a == b or not (exact_verdict(str(a), text, HOW_MANY) or exact_verdict(str(b), text, HOW_MANY))


ANY_TEXT = st.text(st.characters()) | st.lists(
    st.sampled_from(
        ["no", "yes", "is", "there", "3", "ship", "left", ",", ".", ":", "and", "or", "hundred", "[", "<b>"]
    )
).map(" ".join)


@given(label=ANY_TEXT, predict=ANY_TEXT, question=ANY_TEXT)
def test_any_text_gets_a_verdict(label: str, predict: str, question: str) -> None:
    assert exact_verdict(label, predict, question) in (True, False)
    assert exact_verdict(label, predict, question) == exact_verdict(label, f"  {predict}\n", question)
    predicted_count(predict, question)
    things_named(predict)


@pytest.mark.parametrize(
    "unit",
    ["1", "1,", "1.", ".", "-", "<", "<a", "<a ", "\\", "\\a", "no ", "there is no ", "a", "and ", ", ", "[1,", "[[1",
     "hundred ", "twenty one ", "1+", "+ ", "> ", ">1", "</think>", "\n", "ship, ", "left ", "é", "about "],
)  # fmt: skip
def test_a_long_ramble_is_read_in_one_go(unit: str) -> None:
    # What goes back over the text needs a hundred thousand times as long, or its square: it would not end here.
    ramble = unit * (100_000 // len(unit))
    for text in (ramble, f"{ramble}x"):
        for label in ("3", "yes", "ship, harbor"):
            exact_verdict(label, text, "Is there a ship?")
    question_type(ramble)


def test_a_number_of_thousand_digits_is_no_count() -> None:
    assert predicted_count("9" * 5000) is None
    assert not exact_verdict("1" * 40, "1" * 39 + "2")


def test_synonyms_of_a_file_are_known_beside_the_projects_own(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("things:\n  ship: [tanker]\n  oil rig: [drilling platform]\nspellings: {north: top}\n")
    more = read_vocabulary(path)
    assert exact_verdict("ship", "Tankers.", vocabulary=more)
    assert exact_verdict("ship", "boat", vocabulary=more)
    assert exact_verdict("oil rig, ship", "a tanker and drilling platforms", vocabulary=more)
    assert exact_verdict("top left", "north left", vocabulary=more)
    assert not exact_verdict("ship", "tankers")
    assert more.hash != VOCABULARY.hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("thing: {ship: [tanker]}", "`thing` is no key of a vocabulary; did you mean `things`"),
        ("things: {ship: tanker}", "`things` must be written as in vocabulary.yaml"),
        ("denials: [no]", "quotes around"),
        ("things: {ship: [Tanker]}", "in lower case"),
        ("numbers: {dozen: twelve}", "`numbers` must be"),
        ("- ship", "must hold"),
    ],
)
def test_a_file_of_synonyms_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "more.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_vocabulary(path)
