"""Scores of answers: what counts as right, agreement with the published rule, and the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sarlang_sft.errors import InputError
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row, count_problems, join_predictions, summary
from sarlang_sft.scoring.published import JudgeQuestion, published_verdict
from sarlang_sft.scoring.vqa import score_vqa, verdicts

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
    given = [json.loads(line) for line in lines]
    rows = [
        row_of(row["ground_truth"], row["predicted"], f"{number} {row['question']}")
        for number, row in enumerate(given)
    ]

    def judge(questions: Sequence[JudgeQuestion]) -> list[bool | None]:
        return [given[int(one.question.split()[0])]["judge"] == "1" for one in questions]

    assert len(rows) == 20_000
    assert [int(verdict is True) for verdict in verdicts(rows, "published", judge)] == [
        row["official_correct"] for row in given
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
    assert "2 of 4 answers need the protocol's judge" in done.stdout
    assert "1 times: has no prediction: d#0" in done.stdout
    assert str(out) in done.stdout


def test_command_line_refuses_bad_input_with_exit_code_2(data: Path, tmp_path: Path) -> None:
    predictions, out = write_predictions(tmp_path / "p.jsonl", ANSWERS), tmp_path / "vqa.json"
    bad = run_script("--predictions", predictions, "--data", data, "--out", out, "--protocol", "strict")
    assert bad.returncode == 2
    assert "--protocol strict: must be one of exact, published, judge" in bad.stderr
