"""Words of texts from boxes: read, extended, translated, and checked."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarlang_sft.errors import InputError
from sarlang_sft.language.building import say_everything
from sarlang_sft.language.checking import check_dialogue
from sarlang_sft.language.linting import lint
from sarlang_sft.language.reading import make_reader
from sarlang_sft.language.things import name_of, name_things
from sarlang_sft.language.truth import look_at
from sarlang_sft.language.wording import BUILT_IN, content_problems, read_content, read_wording
from sarlang_sft.records import Box

ENGLISH = read_content("en")
CHINESE = Path(__file__).with_name("wording_zh.yaml")


def write(folder: Path, content: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_built_in_wordings_have_no_flaw_and_read_back_as_they_are_written(name: str, tmp_path: Path) -> None:
    assert lint(read_content(name)) == []
    wording = read_wording(name)
    again = read_wording(write(tmp_path, wording.dump()))
    assert again.sets == wording.sets and again.hash == wording.hash


def test_a_file_replaces_and_adds_to_what_it_extends(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        extends: en
        answers: {yes: Indeed., no: "Not at all."}
        questions:
          counting: ["Number of {classes}?"]
          identification+: ["Do you see {a_class}?"]
        classes: {harbor: {say: port}, iceberg: {many: bergs}}
        """,
    )
    wording, english = read_wording(path), read_wording("en")
    assert wording.parts["answers.yes"].fill({}) == "Indeed." and wording.parts["answers.no"].fill({}) == "Not at all."
    assert [one.slots for one in wording.sets["questions.counting"]] == [("classes",)]
    added = len(english.sets["questions.identification"]) + 1
    assert len(wording.sets["questions.identification"]) == added
    things = name_things(["harbor", "iceberg", "T62"], wording)
    assert things["harbor"].name == "port" and things["iceberg"].many == "bergs"
    assert things["T62"].a_kind == "a battle tank"
    assert lint(read_content(path)) == []


def test_another_language_is_spoken_and_checked() -> None:
    content = read_content(str(CHINESE))
    assert lint(content, ("船", "飞机", "桥梁")) == []
    wording = read_wording(str(CHINESE))
    things = name_things(["船", "飞机", "桥梁"], wording)
    reader = make_reader(wording, things)
    boxes = [Box("船", [5, 5, 9, 9]), Box("船", [30, 5, 9, 9]), Box("桥梁", [60, 80, 20, 9])]
    picture = look_at(things, boxes, 100, 100)
    said = list(say_everything(boxes, 100, 100, reader, Random(0)))
    texts = [text for one in said for turn in one.turns for text in (turn.question, turn.answer)]
    assert not any("ship" in text or "image" in text for text in texts)
    assert any("2个船" in text for text in texts) and any("左上" in text for text in texts)
    for one in said:
        assert check_dialogue(reader, picture, one.subset, one.task, one.style, one.turns) is None, one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("questions: {counting: ['How many {clases}?']}", "has the slot {clases}; it may have {class}, {classes}"),
        ("questions: {counting: ['How many?']}", "lacks {class} or {classes}"),
        ("questions: {counting: []}", "`questions.counting` must be a list of templates"),
        ("questions: {counting: {a: b}}", "`questions.counting` must be a list of templates"),
        ("questions: {countings: ['{classes}']}", "`questions.countings` is no part of a wording; did you mean"),
        ("quesions: {}", "`quesions` is no part of a wording"),
        ("questions: 5", "must hold `name: value` lines"),
        ("answers: {yes: Ay., no: Ay.}", "`answers.yes` and `answers.no` are the same"),
        ("question_prompt: Answer.", "lacks {question}"),
        ("question_prompt: '<|im_end|>{question}'", "holds a token that chat templates write"),
        ("captions: {general: ['{kinds} <image>']}", "holds a token that chat templates write"),
        ("grounding: {name_box: ['What is in <box:0>, {box}?']}", "or a box by number"),
        ("captions: {general: ['{kinds} and {kinds}']}", "has a slot twice"),
        ("captions: {general: ['{kinds} {']}", "brace that is not closed"),
        ("captions: {absolute_region: ['{group} here.']}", "needs {placed}, or {group} and {place}"),
        ("captions: {relative_region: ['{group} {place} {is|are|be} {relation} {the_group}']}", "must be two words"),
        ("grammar: german", "`grammar` must be one of english, listed"),
        ("regions: {top: up}", None),
        ("regions: {middle: mid}", "`regions` must hold top, bottom, left, right, center"),
        ("places: {top: [upper left]}", "'upper left' stands for top left and for top"),
        ("places: {top: []}", "`places.top` must be a list of texts"),
        ("relations: {above: [below]}", "'below' stands for above and for below"),
        ("classes: {ship: {plural: ships}}", "`classes.ship.plural` is no form"),
        ("classes: {ship: {also: boat}}", "`classes.ship.also` must be a list of texts"),
        ("classes: {ship: ships}", "`classes.ship` must hold forms"),
        ("questions+: [a]", "adds to a list"),
        ("extends: [en]", "must name one wording"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_with_its_place(content: str, message: str | None, tmp_path: Path) -> None:
    path = write(tmp_path, content if "extends" in content else f"extends: en\n{content}")
    if message is None:
        assert read_wording(path).regions["top"] == "up"
        return
    with pytest.raises(InputError) as error:
        read_wording(path)
    assert message in str(error.value) and path in str(error.value)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("questions: {counting: ['how many {classes}?']}", False, "begins with a small letter"),
        ("questions: {counting: ['How many  {classes}?']}", False, "has two spaces"),
        ("questions: {counting: ['How many {classes}? ']}", False, "begins or ends with a space"),
        ("questions: {counting: ['How many {classes} there are']}", False, "ends without a mark"),
        ("questions: {identification: ['Is there a {class}?']}", False, "an article in front of a class"),
        ("questions: {identification: ['Is the {a_class} there?']}", False, "two articles"),
        ("questions: {counting: ['How many {class}?']}", False, "has {class} as many"),
        ("questions: {identification: ['Is {classes} there?']}", False, "has {classes} as one"),
        ("captions: {general+: ['There are {kinds}.']}", False, "form for one, or for many"),
        ("captions: {complex+: ['{groups} is shown.']}", False, "form for one, or for many"),
        ("captions: {general: ['X {kinds}.'], complex: ['X {groups}.'], absolute_region: ['X {placed}.']}", False,
         "fewer than five captions"),
        ("questions: {counting: ['Number of {classes}?', 'Number of {classes}?']}", False, "stands there twice"),
        ("grounding: {count_first: ['Locate all {classes}.']}", False, "stands in both"),
        ("parts: {between: ' ', last: ' '}\nclasses: {ship: {say: 'tank car', many: 'tank cars'}}", True, ""),
        ("questions: {counting: ['Where {classes}?'], positioning_many: ['Where {classes}?']}", False, "in both"),
        ("reading: {refused: []}", False, "`reading.refused` is empty"),
        ("grammar: listed", False, "`questions.counting` is still that of en"),
        ("grounding: {count_first: ['Locate all {classes}.']}", True, "turns instead of"),
    ],
)  # fmt: skip
def test_the_linter_tells_what_reads_badly_and_what_misleads(
    content: str, error: bool, message: str, tmp_path: Path
) -> None:
    content = read_content(write(tmp_path, f"extends: en\n{content}"))
    try:
        remarks = lint(content)
    except InputError as refused:
        assert error and "reads like a list" in str(refused)
        return
    assert any(remark.error == error and message in remark.text for remark in remarks), remarks


def test_the_linter_is_a_program(run: Callable[..., str], tmp_path: Path) -> None:
    output = run("data_prep/lint_wording.py", "--wording", "sarlang", "--classes", "ship", "oil rig")
    assert "sarlang: 0 errors, 0 warnings" in output
    path = write(tmp_path, "extends: en\nquestions: {counting: ['How many?'], referring: ['?']}")
    output = run("data_prep/lint_wording.py", "--wording", path, code=1)
    assert "error: `questions.counting`: 'How many?' lacks" in output and "2 errors, 0 warnings" in output
    assert "cannot be read" in run("data_prep/lint_wording.py", "--wording", "none.yaml", code=2)


def test_a_wording_that_extends_itself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: mine.yaml")
    with pytest.raises(InputError, match="extends itself"):
        read_wording(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["A1", "A1s"], "'A1s' may mean either"),
        (["ship", "tank", "ship and tank"], "reads like a list"),
        (["...", "ship"], "leaves no name"),
    ],
)
def test_classes_that_texts_could_not_tell_apart_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        name_things(labels, read_wording("en"))


def test_labels_are_said_as_people_say_them() -> None:
    wording = read_wording("en")
    said = {
        "large-vehicle": "large vehicle",
        "ground_track_field": "ground track field",
        "ZSU_23_4": "ZSU_23_4",
        "vehicle_0": "vehicle_0",
        "F-16": "F-16",
        "船": "船",
        "Boeing 737": "Boeing 737",
        "a: b?": "a b",
    }
    assert {label: name_of(label, wording) for label in said} == said
    things = name_things(["Ship", "ship", "ships", "storage-tanks"], wording)
    assert things["Ship"] is things["ship"] is things["ships"] and things["ship"].many == "Ships"
    assert things["storage-tanks"].name == "storage tank" and things["storage-tanks"].many == "storage tanks"


@pytest.mark.parametrize(
    ("label", "article", "many"),
    [
        ("F-16", "an F-16", "F-16s"),
        ("M1", "an M1", "M1s"),
        ("2S1", "a 2S1", "2S1s"),
        ("UAV", "a UAV", "UAVs"),
        ("SUV", "an SUV", "SUVs"),
        ("HARBOR", "a HARBOR", "HARBORS"),
        ("airplane_1", "an airplane_1", "airplane_1s"),
        ("Ship-A", "a Ship-A", "Ship-As"),
        ("U-boat", "a U-boat", "U-boats"),
        ("bus", "a bus", "buses"),
        ("école", "an école", "écoles"),
        ("other", "an other object", "other objects"),
        ("unmanned aircraft", "an unmanned aircraft", "unmanned aircraft"),
        ("船", "a 船", "船"),
    ],
)
def test_names_get_the_article_and_the_plural_that_people_say(label: str, article: str, many: str) -> None:
    thing = name_things([label], read_wording("en"))[label]
    assert (thing.a, thing.many) == (article, many)


def test_a_class_is_known_however_its_name_is_spelt() -> None:
    things = name_things(["T-62", "BTR_60", "bmp2"], read_wording("en"))
    kinds = [thing.kind for thing in things.values()]
    assert kinds == ["battle tank", "armored personnel carrier", "infantry fighting vehicle"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["grammar", "questions", "counting", "places", "classes", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_whatever_a_file_holds_is_judged_without_a_crash(content: object) -> None:
    merged = ENGLISH | (content if isinstance(content, dict) else {"x": content})
    assert all(isinstance(problem, str) for problem in content_problems(merged))
