"""Scores of answers: what counts as right, agreement with the published rule, and the command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarlang_sft.errors import InputError
from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.scoring.comparison import compare_verdicts
from sarlang_sft.scoring.found_boxes import intersection_over_union
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.prediction_lines import Boxes
from sarlang_sft.scoring.predictions import Row, count_problems, join_predictions, summary
from sarlang_sft.scoring.published import JudgeQuestion, published_verdict
from sarlang_sft.scoring.signature import signature
from sarlang_sft.scoring.vqa import rules_of, score_vqa, verdicts

SCRIPT = Path(__file__).parents[1] / "eval" / "score_vqa.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images: three dialogues about a harbour (one of two turns, one a caption), one about a forest."""
    harbor = Record(
        images=["0000001.png"],
        width=512,
        height=512,
        source="SARDet-100K",
        split="test",
        dialogues=[
            Dialogue("a", "vqa1", "identification", [Turn("Is there a ship?", "Yes."), Turn("A car?", "No.")]),
            Dialogue("b", "vqa1", "counting", [Turn("How many ships?", "10")]),
            Dialogue("c", "caption_concise", "description", [Turn("Describe.", "A harbor.")], "concise"),
        ],
    )
    forest = Record(
        images=["SN6_1.png"],
        width=256,
        height=256,
        source="SpaceNet6",
        split="test",
        resolution_m=0.5,
        dialogues=[Dialogue("d", "vqa2", "classification", [Turn("What area is it?", "Forest.")])],
    )
    write_data_folder(tmp_path / "data", to_table([harbor, forest]), [], tmp_path, {})
    return tmp_path / "data"


ANSWERS = {"a#0": ("Yes.", "yes, two"), "a#1": ("No.", "unknown"), "b#0": ("10", "ten"), "c#0": ("A harbor.", "?")}


def write_predictions(path: Path, answers: dict[str, tuple[str, str]]) -> Path:
    rows = [{"id": name, "label": label, "predict": predict} for name, (label, predict) in answers.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row_of(label: str, predict: str | None, question: str = "What is it?", **facts: object) -> Row:
    """A row with these texts."""
    known = {"id": "a#0", "images": ("1.png",), "subset": "vqa1", "task": "counting", "style": None}
    known |= {"source": "SARDet-100K", "resolution_m": None}
    return Row(**{**known, "question": question, "label": label, "predict": predict, **facts})


def test_published_rule_keeps_its_defects_and_asks_the_judge_last() -> None:
    assert published_verdict("1", "10") is True
    assert published_verdict("car", "CARGO") is True
    assert published_verdict("Yes", "yep") is False
    assert published_verdict("Yes.", "yep") is None
    asked: list[JudgeQuestion] = []

    def judge(questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        asked.extend(questions)
        return [True, None]

    rows = [row_of("Pond", "Swimming pool", "What?"), row_of("1", "10"), row_of("pond", "lake")]
    assert verdicts(rows, "published", judge) == [True, True, None]
    assert asked == [("what?", "pond", "swimming pool"), ("what is it?", "pond", "lake")]


def test_judge_protocol_asks_about_answers_that_exact_does_not_find_right() -> None:
    asked: list[JudgeQuestion] = []

    def judge(questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        asked.extend(questions)
        return [True]

    rows = [row_of("2.", "two"), row_of("Dense trees.", "A thick wood"), row_of("1", " "), row_of("1", None)]
    assert verdicts(rows, "judge", judge) == [True, True, False, False]
    assert asked == [("What is it?", "Dense trees.", "A thick wood")]
    with pytest.raises(InputError, match="needs a judge"):
        verdicts(rows, "judge")


def test_published_agrees_with_the_authors_script_on_every_row(real_data: Path) -> None:
    lines = (real_data / "official_scores" / "vqa_rows.jsonl").read_text(encoding="utf-8").splitlines()
    official = [json.loads(line) for line in lines]
    rows = [
        row_of(row["ground_truth"], row["predicted"], f"{number} {row['question']}")
        for number, row in enumerate(official)
    ]

    def judge(questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        return [official[int(one.question.split()[0])]["judge"] == "1" for one in questions]

    assert len(rows) == 20_000
    assert [int(verdict is True) for verdict in verdicts(rows, "published", judge)] == [
        row["official_correct"] for row in official
    ]


def test_wilson_interval_of_a_textbook_case() -> None:
    # z = 1.96, 8 of 10: centre (8 + z²/2) / (10 + z²), half width z sqrt(8 * 2 / 10 + z²/4) / (10 + z²)
    share = share_with_interval([True] * 8 + [False] * 2)
    assert share["value"] == 0.8
    assert share["low"] == pytest.approx(0.4902, abs=1e-4)
    assert share["high"] == pytest.approx(0.9433, abs=1e-4)
    assert share_with_interval([False])["low"] == 0.0


def test_score_counts_missing_as_wrong_and_breaks_down(data: Path, tmp_path: Path) -> None:
    rows, problems = join_predictions(write_predictions(tmp_path / "p.jsonl", ANSWERS), data, "test", captions=False)
    result = score_vqa(rows, "exact")
    assert (result["n"], result["answered"], result["overall"]["value"]) == (4, 3, 0.5)
    shares = {
        by: {name: (entry["n"], entry["value"]) for name, entry in result[by].items()}
        for by in ("by_task", "by_subset", "by_source", "by_resolution")
    }
    assert shares == {
        "by_task": {"classification": (1, 0.0), "counting": (1, 1.0), "identification": (2, 0.5)},
        "by_subset": {"vqa1": (3, pytest.approx(2 / 3)), "vqa2": (1, 0.0)},
        "by_source": {"SARDet-100K": (3, pytest.approx(2 / 3)), "SpaceNet6": (1, 0.0)},
        "by_resolution": {"0.5": (1, 0.0), "unknown": (3, pytest.approx(2 / 3))},
    }
    assert problems == {"has no prediction": ["d#0"]}
    assert "1 times: has no prediction: d#0" in summary({**result, "problems": count_problems(problems)})


def test_published_without_judge_reports_what_is_undecided(data: Path, tmp_path: Path) -> None:
    rows = join_predictions(write_predictions(tmp_path / "p.jsonl", ANSWERS), data, "test", captions=False).rows
    result = score_vqa(rows, "published")
    # "Yes." and "No." with their full stops are neither substrings nor in the closed list; "ten" is not "10".
    assert (result["overall"]["value"], result["undecided"], result["upper_bound"]) == (0.0, 2, 0.5)
    judged = score_vqa(rows, "published", judge=lambda asked: [True] * len(asked))
    assert (judged["overall"]["value"], judged["undecided"], judged["upper_bound"]) == (0.5, 0, 0.5)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "a#0", "label"\n', "is no valid JSON"),
        ('{"id": "a#0", "label"', "is cut off"),
        ("\n", "is no valid JSON"),
        ("[1]\n", "is no object with the texts id and predict"),
        ('{"id": "d#0", "label": "Forest.", "predict": null}\n', "is no object with the texts id and predict"),
        ('{"id": "z#0", "label": "", "predict": ""}\n', "is not in the split"),
        ('{"id": "a#0", "label": "Yes.", "predict": "no"}\n', "answers a question again"),
        ('{"id": "d#0", "label": "Urban.", "predict": ""}\n', "answers another label than the data folder's"),
    ],
)
def test_bad_predictions_are_counted_and_change_no_denominator(
    data: Path, tmp_path: Path, line: str, reason: str
) -> None:
    path = write_predictions(tmp_path / "p.jsonl", {name: ANSWERS[name] for name in ("a#0", "b#0")})
    path.write_text(path.read_text() + line)
    rows, problems = join_predictions(path, data, "test", captions=False)
    assert [row.predict for row in rows] == ["yes, two", None, "ten", None]
    assert problems == {reason: ["line 3"], "has no prediction": ["a#1", "d#0"]}


def test_nothing_to_score_is_an_error(data: Path, tmp_path: Path) -> None:
    empty = write_predictions(tmp_path / "p.jsonl", {})
    with pytest.raises(InputError, match="no prediction for any of the 4 VQA questions"):
        join_predictions(empty, data, "test", captions=False)
    with pytest.raises(InputError, match="split val has no VQA questions"):
        join_predictions(empty, data, "val", captions=False)
    with pytest.raises(InputError, match="no such file"):
        join_predictions(tmp_path / "absent.jsonl", data, "test", captions=False)
    with pytest.raises(InputError, match="no questions to score"):
        score_vqa([], "exact")


def run_script(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})


def test_command_line_writes_the_result_and_prints_it(data: Path, tmp_path: Path) -> None:
    predictions, out = write_predictions(tmp_path / "p.jsonl", ANSWERS), tmp_path / "scores" / "vqa.json"
    done = run_script("--predictions", predictions, "--data", data, "--protocol", "published", "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"protocol", "n", "answered", "overall", "by_task", "by_subset", "by_source", "by_resolution"} <= set(
        result
    )
    assert set(result["overall"]) == {"value", "low", "high"}
    assert "2 of 4 answers have no verdict of the protocol's judge" in done.stdout
    assert "1 times: has no prediction: d#0" in done.stdout
    assert str(out) in done.stdout


def test_command_line_refuses_bad_input_with_exit_code_2(data: Path, tmp_path: Path) -> None:
    predictions, out = write_predictions(tmp_path / "p.jsonl", ANSWERS), tmp_path / "vqa.json"
    bad = run_script("--predictions", predictions, "--data", data, "--out", out, "--protocol", "strict")
    assert bad.returncode == 2
    assert "--protocol strict: must be one of exact, published, judge" in bad.stderr


def test_parts_and_the_answered_alone_are_shown_beside_the_whole(data: Path, tmp_path: Path) -> None:
    rows = join_predictions(write_predictions(tmp_path / "p.jsonl", ANSWERS), data, "test", captions=False).rows
    result = score_vqa(rows, "exact")
    assert result["of_answered"]["value"] == pytest.approx(2 / 3)
    assert {name: (part["n"], part["answered"], part["value"]) for name, part in result["by_type"].items()} == {
        "count": (1, 1, 1.0),
        "open": (1, 0, 0.0),
        "yes_no": (2, 2, 0.5),
    }
    assert {name: part["answered"] for name, part in result["by_subset"].items()} == {"vqa1": 3, "vqa2": 0}
    shown = summary({**result, "problems": {}})
    assert "3 of 4 were answered" in shown and "over the answered alone: 0.6667" in shown


def test_counting_errors_are_of_answers_with_one_number() -> None:
    said = ["There are 3 ships.", "5", "several", "2 or 3", None, "ten"]
    rows = [row_of("3.", text, "How many ships are located in the image?") for text in said]
    counting = score_vqa(rows, "exact")["counting"]
    assert (counting["n"], counting["with_number"]) == (6, 3)
    assert (counting["mae"], counting["within_one"]) == (3.0, pytest.approx(1 / 3))
    assert counting["by_task"]["counting"]["mae"] == 3.0
    nothing = score_vqa([row_of("3.", "many")], "exact")["counting"]
    assert (nothing["with_number"], nothing["mae"]) == (0, None)


def test_a_coarser_position_is_compatible_and_still_not_right() -> None:
    said = ["left top", "top", "bottom left", "left or right", "top left, and a ship", None]
    result = score_vqa([row_of("top left.", text, task="positioning") for text in said], "exact")
    assert result["overall"]["value"] == pytest.approx(1 / 6)
    assert result["positions"]["compatible"]["value"] == pytest.approx(2 / 6)


def test_items_of_lists_are_counted_one_by_one() -> None:
    rows = [row_of("ship, harbor.", "The image shows boats."), row_of("car.", "car, tank"), row_of("tank, car", None)]
    lists = score_vqa(rows, "exact")["lists"]
    assert (lists["precision"], lists["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 5))
    assert lists["f1"] == pytest.approx(4 / 8)


def box_row(label: str, predicted: Boxes | None, predict: str | None = "a box", image: str = "1.png") -> Row:
    """A question about where two boxes of an image are: 10 x 10 pixels, 20 pixels apart."""
    boxes = (Box("ship", [0, 0, 10, 10]), Box("ship", [30, 0, 10, 10]))
    return row_of(label, predict, task="grounding", boxes=boxes, predicted=predicted, images=(image,))


def test_boxes_overlap_as_drawn_on_paper() -> None:
    square, half, turned = (0.0, 0.0, 10.0, 10.0), (5.0, 0.0, 10.0, 10.0), (5.0, 0.0, 10.0, 5.0, 5.0, 10.0, 0.0, 5.0)
    crossed = (0.0, 0.0, 10.0, 10.0, 10.0, 0.0, 0.0, 10.0)  # the square's corners in no order around it
    found = intersection_over_union((square,), (square, half, turned, crossed, (), (1.0, 1.0, 0.0, 5.0)))
    assert found == pytest.approx(np.array([[1, 1 / 3, 1 / 2, 1, 0, 0]]))
    huge = intersection_over_union((square,), ((0.0, 0.0, 1e299, 1e299), (-1e299, 0.0, 1e-300, 1e299)))
    assert np.isfinite(huge).all()


def test_boxes_are_matched_one_to_one_and_scored_over_all_of_them() -> None:
    near, far = (0.0, 0.0, 10.0, 6.0), (200.0, 0.0, 10.0, 10.0)
    rows = [
        box_row("<box:0> <box:1>", ((30.0, 0.0, 10.0, 10.0), near)),  # both found, in another order
        box_row("<box:0>", (near, near), image="2.png"),  # one of two the same is made up
        box_row("<box:1>", (far, ()), image="3.png"),  # missed, with an unusable box
        box_row("<box:0>", None, image="4.png"),  # nothing said of boxes
        box_row("[0, 0, 10, 10]", None, "It is at [0, 0, 10, 5.1] (top left).", image="5.png"),
        box_row("<box:0>", None, None, image="6.png"),
        box_row("<box:0>", ((0.0, 0.0, 10.0, 3.0),), image="7.png"),  # an overlap of 0.3
    ]
    result = score_vqa(rows, "exact")
    boxes = result["boxes"]
    assert (boxes["n"], boxes["without_boxes"], boxes["unusable"]) == (7, 2, 1)
    assert [boxes["iou_0.5"][name] for name in ("tp", "fp", "fn")] == [4, 4, 4]
    assert boxes["iou_0.5"]["value"] == pytest.approx(4 / 12)
    assert [boxes["iou_0.25"][name] for name in ("tp", "fp", "fn")] == [5, 3, 3]
    assert boxes["iou_0.5"]["low"] < 4 / 12 < boxes["iou_0.5"]["high"]
    # Right is who finds all boxes and makes none up.
    assert verdicts(rows, "exact") == [True, False, False, False, True, False, False]


def test_a_named_box_that_its_image_has_not_is_missed_and_stays_in_the_denominator() -> None:
    assert score_vqa([box_row("<box:7>", None)], "exact")["boxes"]["iou_0.5"]["fn"] == 1
    found = score_vqa([box_row("<box:0> <box:7>", ((0.0, 0.0, 10.0, 10.0),))], "exact")["boxes"]["iou_0.5"]
    assert (found["tp"], found["fp"], found["fn"]) == (1, 0, 1)


def test_bad_fields_of_predictions_are_counted_and_cost_no_answer(data: Path, tmp_path: Path) -> None:
    bad = [
        ("a#0", '"logprob": NaN'),
        ("a#1", '"logprob": "-1.5"'),
        ("b#0", '"boxes": [[1, 2, 3, 4], [1, 2], "x", [1, 2, 3, NaN]]'),
        ("d#0", '"boxes": {"x": 1}'),
        ("c#0", '"logprob": 1e999'),
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"id": "{name}", "predict": "yes", {field}}}\n' for name, field in bad))
    rows, problems = join_predictions(path, data, "test", captions=False)
    assert [row.predict for row in rows] == ["yes"] * 4
    assert [row.logprob for row in rows] == [None] * 4
    assert [row.predicted for row in rows] == [None, None, ((1.0, 2.0, 3.0, 4.0), (), (), ()), ((),)]
    assert problems == {
        "has a logprob that is no finite number": ["line 1", "line 2", "line 5"],
        "has boxes that are not 4 or 8 finite numbers each": ["line 3", "line 4"],
    }


def test_answers_to_another_split_are_named(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "whole"
    trained, tested = (
        Record([f"{split}.png"], 9, 9, "x", split, dialogues=[Dialogue(split, "v", "counting", [Turn("?", "1")])])
        for split in ("train", "test")
    )
    write_data_folder(other, to_table([trained, tested]), [], tmp_path, {})
    mixed = write_predictions(tmp_path / "p.jsonl", {"train#0": ("1", "1"), "test#0": ("1", "1"), "z#0": ("1", "1")})
    problems = join_predictions(mixed, other, "test", captions=False).problems
    assert problems == {"is not in the split but in train": ["line 1"], "is not in the split": ["line 3"]}
    wrong = write_predictions(tmp_path / "q.jsonl", {"train#0": ("1", "1")})
    with pytest.raises(InputError, match="1 of its answers are of the split train: --split train"):
        join_predictions(wrong, other, "test", captions=False)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    lines=st.lists(
        st.binary(max_size=40)
        | st.fixed_dictionaries(
            {"id": st.sampled_from(["a#0", "d#0", "\ud800#0"]), "predict": st.text() | JSON_VALUES},
            optional={"label": JSON_VALUES, "logprob": JSON_VALUES, "boxes": JSON_VALUES},
        ).map(lambda row: json.dumps(row).encode()),
        max_size=6,
    )
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_predictions_file_upsets_the_scorer(data: Path, tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"id": "a#1", "predict": "No"}\n' + b"\n".join([*lines, b"[" * 100_000]))
    rows, problems = join_predictions(path, data, "test", captions=False)
    result = score_vqa(rows, "exact")
    assert result["n"] == 4
    json.dumps({**result, "problems": count_problems(problems)}, allow_nan=False)


def test_comparison_counts_what_changed_and_how_likely_that_is_by_chance() -> None:
    # 12 answers turned right and 2 wrong: McNemar's exact p is 2 * (1 + 14 + 91) / 2^14.
    ours, theirs = [True] * 12 + [False] * 2 + [True] * 6, [False] * 12 + [True] * 2 + [True] * 6
    rows = [row_of("1", "1", id=f"{n}#0", images=(f"{n // 2}.png",)) for n in range(20)]
    rows = [replace(row, task="counting" if n < 14 else "others") for n, row in enumerate(rows)]
    found = compare_verdicts(rows, ours, theirs)
    assert (found["n"], found["to_right"], found["to_wrong"]) == (20, 12, 2)
    assert found["p"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert found["difference"]["value"] == pytest.approx(0.5)
    assert 0 < found["difference"]["low"] < 0.5 < found["difference"]["high"] < 1
    assert found["by_task"]["others"]["p"] == 1.0
    assert found["by_task"]["counting"]["difference"]["value"] == pytest.approx(10 / 14)
    reversed_ = compare_verdicts(rows, theirs, ours)
    assert (reversed_["to_right"], reversed_["p"]) == (2, found["p"])


def test_signature_tells_questions_and_rules_apart_and_not_answers() -> None:
    rows = [row_of("1", "1", id=f"{number}#0") for number in range(3)]
    first = signature(rules_of("exact"), rows, "test")
    assert re.fullmatch(
        r"sarlang-sft\|protocol:exact\|version:\d+\|synonyms:\w{8}\|split:test\|questions:\w{8}\|n:3\|tasks:all", first
    )
    assert signature(rules_of("exact"), [replace(row, predict="2") for row in reversed(rows)], "test") == first
    relabelled = [replace(rows[0], label="2"), *rows[1:]]
    assert signature(rules_of("exact"), relabelled, "test") != first
    moved = (Box("ship", [0, 0, 5, 5]),)
    assert signature(rules_of("exact"), [replace(row, boxes=moved) for row in rows], "test") == first
    boxed = box_row("<box:0>", None)
    assert signature({}, [boxed], "test") != signature({}, [replace(boxed, boxes=moved)], "test")
    caption = replace(boxed, label="A ship.", task="description")
    for change in ({"boxes": moved}, {"style": "complex"}, {"images": ("2.png",)}):
        assert signature({}, [caption], "test") != signature({}, [replace(caption, **change)], "test")
    judged = signature(rules_of("judge", judge="qwen:7b|x"), rows, "test", ["counting", "others"])
    assert "|judge:qwen_7b_x|" in judged and judged.endswith("|tasks:counting+others")


def test_scoring_needs_neither_torch_nor_transformers() -> None:
    modules = ("vqa", "exact", "published", "comparison", "signature", "predictions")
    code = f"""import sys
import {", ".join(f"sarlang_sft.scoring.{name}" for name in modules)}
print(sorted({{"torch", "transformers", "trl", "datasets", "matplotlib"}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_command_line_compares_two_runs_on_the_same_questions(data: Path, tmp_path: Path) -> None:
    ours = write_predictions(tmp_path / "p.jsonl", {**ANSWERS, "a#1": ("No.", "no"), "d#0": ("Forest.", "a thicket")})
    theirs, out = write_predictions(tmp_path / "q.jsonl", ANSWERS), tmp_path / "vqa.json"
    more = tmp_path / "more.yaml"
    more.write_text("things: {forest: [thicket]}\n")
    options = ("--predictions", ours, "--data", data, "--out", out, "--synonyms", more)
    done = run_script(*options, "--compare", theirs)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["comparison"]["to_right"], result["comparison"]["to_wrong"]) == (2, 0)
    assert result["signature"] in done.stdout and "to right" in done.stdout
    strangers = write_predictions(tmp_path / "r.jsonl", {"a#0": ("Yes.", "no"), "z#0": ("Yes.", "no")})
    # Before a judge is asked: there is no server.
    judge = ("--protocol", "judge", "--judge_model", "m", "--judge_base_url", "http://127.0.0.1:9/v1")
    refused = run_script(*options, *judge, "--compare", strangers)
    assert refused.returncode == 2
    assert "r.jsonl: line 2 is not in the split" in refused.stderr
