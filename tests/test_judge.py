"""A language model as judge: what it replies, what it is asked, what it costs, and what outlives a kill."""

import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, MisbehavingServer, misbehaving_server, text_of
from conftest import ROOT

from sarlang_sft.chat_client import find_model
from sarlang_sft.errors import InputError
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.reply_cache import ReplyCache
from sarlang_sft.scoring.judge import LONGEST_TEXT, PROMPT_VERSION, JudgeArguments, ServedJudge, open_judge
from sarlang_sft.scoring.judge_replies import verdict_in
from sarlang_sft.scoring.published import JudgeQuestion, published_question, published_verdict

RIGHT = [
    "1", "1.", " **1**\n", "The answer is 1.", "Correct", "correct.", '{"score": 1}',
    '{"verdict": true, "why": "0 of"}',
    '```json\n{"answer": "1"}\n```', "<think>Maybe 0? The truth says 10.</think>1", "so 0 or 1 ... 0?</think>\n\n1",
    "1\n\nThe truth has 0 ships, and so does the answer.", "Both say 10 ships, so:\n\n**1**", "１", "1/1", "1.0",
    "Yes.",
    "The answer is correct.", "Yes, they are equivalent", '["1"]', "Score: 1 (the same thing)", "1 out of 1", "`1`",
    "<thinking>it is wrong</thinking>\nCorrect", "1, both say 10 ships",
    "1 because both say 10 ships", "Verdict: 1 (10 is ten)",
    "The correct answer is a lake, and so is this: 1",
]  # fmt: skip
WRONG = [
    "0", "0.", "**0**", "The answer is 0.", "Incorrect", "wrong", '{"score": 0}', '{"correct": false}', "0/1", "0.0",
    "<think>1 or 0, it is 1 at first sight</think> 0", "not correct", "It is not really correct.", "No, it differs.",
    "This isn't equivalent", "They aren't equivalent", "They don’t seem equivalent", "1 is not correct, so 0",
    "Incorrect: the truth has 1 ship, the answer 3.", "0 - the truth says 10", "not 1 but 0",
    "The correct answer is forest, but the answer says lake: 0.",
    "I cannot give a 1 here, so it is 0.", "0\nThe truth says 1 and the answer 2.", "False",
]  # fmt: skip
OPEN = [
    "", "   ", "1 or 0", "0 1", "maybe", "10", "0.5", "1/10", "-1", "2", "<think>The truth is 1 and",
    "<think>1</think>",
    "correct or incorrect", '{"score": 0.5}', '{"a": 1, "b": 0}', "q1", "the 1st", "100%", "No clear verdict, 0 or 1",
    "The answer is not 1", "The answer is not 1.", "I would not give a 1.", "The truth has 1 ship, the answer has 3.",
    "The truth is 3, the answer is 1.", "The truth says 1 ship and the answer says 10 ships.", "It is not wrong.",
    "The correct answer is a lake.", "The true answer is forest.", "Partially correct", "Incorrect, so 1",
    "1. The truth is a forest. 2. The answer is a lake. They differ.", "I cannot say that it is 1 of 2.",
    "[" * 100_000, "I cannot compare these.",
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "verdict"), [*((r, True) for r in RIGHT), *((r, False) for r in WRONG), *((r, None) for r in OPEN)]
)
def test_a_verdict_is_found_in_what_judges_say_around_it(reply: str, verdict: bool | None) -> None:
    assert verdict_in(reply) is verdict


@pytest.fixture
def served() -> Iterator[MisbehavingServer]:
    """A judge that compares literally."""
    with misbehaving_server() as server:
        server.say = lambda body: str(int(case_of(body)["truth"] == case_of(body)["answer"]))
        yield server


def case_of(body: dict[str, Any]) -> dict[str, str]:
    """The question, truth and answer that a judge is shown."""
    return json.loads(next(line for line in text_of(body).split("\n") if line.startswith("{")))


def judge_at(served: MisbehavingServer, folder: Path, **options: Any) -> ServedJudge:
    return ServedJudge(find_model(served.client()), ReplyCache(folder / "judge.jsonl"), **options)


def test_verdicts_come_in_order_and_the_same_is_asked_once(served: MisbehavingServer, tmp_path: Path) -> None:
    questions = [
        JudgeQuestion("What?", "forest", answer) for answer in ("forest", "a lake", "forest", "{0}", "a lake")
    ]
    judge = judge_at(served, tmp_path)
    assert judge(questions) == [True, False, True, False, False]
    assert len(served.received) == 3 and judge.outcome == {"right": 1, "wrong": 2}
    assert {case_of(body)["answer"] for body in served.received} == {"forest", "a lake", "{0}"}
    for body in served.received:
        assert body["temperature"] == 0 and body["max_tokens"] == 16
        for pair in ("football and soccer", "playground and ground track field", "building and rooftop", "pond and"):
            assert pair in text_of(body)
    assert judge_at(served, tmp_path)(questions) == [True, False, True, False, False]
    assert len(served.received) == 3, "a second judge with the same replies asks nothing"


def test_what_stays_without_a_verdict_is_counted_and_the_others_go_on(
    served: MisbehavingServer, tmp_path: Path
) -> None:
    served.plan = ["400"]
    served.say = lambda body: {"a": "1", "b": "hard to say", "c": "I think: 0"}[case_of(body)["answer"][0]]
    judge = judge_at(served, tmp_path)
    judge.server = find_model(served.client(concurrency=1))  # the first question is the one that fails
    verdicts = judge([JudgeQuestion("What?", "x", name + str(number)) for number in range(4) for name in "abc"])
    assert sorted(map(str, verdicts)) == ["False"] * 4 + ["None"] * 5 + ["True"] * 3
    assert judge.outcome == {"right": 3, "wrong": 4, "no verdict in the reply": 4, "failed: HTTP 400": 1}
    assert judge.facts()["requests"] == judge.outcome and judge.facts()["prompt_version"] == PROMPT_VERSION


def test_rambling_answers_are_cut_before_they_are_sent_and_that_is_said(
    served: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = judge_at(served, tmp_path)
    judge([JudgeQuestion("What?", "forest", "forest " * 2000), JudgeQuestion("What?", "forest", "lake")])
    longest = max(len(case_of(body)["answer"]) for body in served.received)
    assert longest == LONGEST_TEXT + len(" ...")
    assert "1 texts are cut after 1,000 characters" in capsys.readouterr().out


def test_halves_of_characters_and_braces_in_answers_do_not_stop_a_judge(
    served: MisbehavingServer, tmp_path: Path
) -> None:
    odd = [JudgeQuestion("What?", "forest", answer) for answer in ("\ud800", "{case} {0}", '"}', "\x00\n\u2028")]
    assert judge_at(served, tmp_path)(odd) == [False] * 4
    assert {case_of(body)["answer"] for body in served.received} == {"?", "{case} {0}", '"}', "\x00\n\u2028"}


def test_the_cost_is_shown_first_and_a_dear_judge_is_not_asked(
    served: MisbehavingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [JudgeQuestion("What?", "forest", str(number)) for number in range(100)]
    dear = judge_at(served, tmp_path, prices=[10.0, 1000.0], max_cost=0.5)
    with pytest.raises(InputError, match=r"--judge_max_cost 0.5: judging may cost up to 1\.\d\d; nothing was asked"):
        dear(questions)
    assert served.received == []
    shown = capsys.readouterr().out
    assert "100 answers to judge, 100 requests, 0 of them replied to before" in shown
    assert "at most 1,600 to get, at most 1." in shown
    judge_at(served, tmp_path)(questions[:99])
    judge_at(served, tmp_path, prices=dear.prices, max_cost=0.5)(questions)
    assert "100 requests, 99 of them replied to before" in capsys.readouterr().out
    twice = judge_at(served, tmp_path, prices=[0.0, 1e4], max_cost=0.3)
    twice([JudgeQuestion("Who?", "forest", "a")])
    with pytest.raises(InputError, match=r"up to 0\.32, 0\.16 of it for what was asked before; no more was asked"):
        twice([JudgeQuestion("Who?", "forest", "b")])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 questions about one image."""
    dialogues = [Dialogue(f"d{n}", "vqa2", "others", [Turn(f"What is number {n}?", f"thing{n}")]) for n in range(40)]
    record = Record(["a.png"], width=64, height=64, source="OpenEarthMap-SAR", split="test", dialogues=dialogues)
    write_data_folder(tmp_path / "data", to_table([record]), [], tmp_path, {})
    answers = [{"id": f"d{n}#0", "label": f"thing{n}", "predict": f"matter {n}"} for n in range(40)]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return tmp_path / "data"


def score_words(data: Path, served: MisbehavingServer, *more: object) -> list[str]:
    """The command line of a scorer with this judge."""
    words = ["eval/score_vqa.py", "--predictions", data.parent / "predictions.jsonl", "--data", data]
    words += ["--out", data.parent / "scores.json", "--judge_model", MODEL, "--judge_base_url", served.url]
    return [str(word) for word in [*words, *more]]


def test_judging_killed_in_the_middle_goes_on_without_asking_anything_twice(
    served: MisbehavingServer, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served.stop_after = 15
    served.say = lambda body: "1" if case_of(body)["answer"].endswith("7") else "0"
    replies = data.parent / "judge.jsonl"
    words = score_words(data, served, "--protocol", "published", "--judge_concurrency", 3)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    try:
        assert served.held.wait(120)
        while len(replies.read_bytes().splitlines()) < 15:
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    served.stop_after = None
    served.released.set()
    monkeypatch.setattr("sys.argv", words)
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert "40 requests, 15 of them replied to before" in capsys.readouterr().out
    assert set(served.replied.values()) == {1} and len(served.replied) == 40
    result = json.loads((data.parent / "scores.json").read_text())
    assert result["overall"]["value"] == 4 / 40 and result["undecided"] == 0
    assert result["judge"]["requests"] == {"right": 4, "wrong": 36}
    assert f"judge:{MODEL}+prompt{PROMPT_VERSION}" in result["signature"]
    assert (result["judge"]["model"], result["judge"]["prompt_version"]) == (MODEL, PROMPT_VERSION)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"judge_prices": [1.0]}, "--judge_prices: give two"),
        ({"judge_prices": [1.0, -1.0]}, "--judge_prices: give two"),
        ({"judge_concurrency": 0}, "must be at least 1"),
        ({"judge_max_cost": 3.0}, "--judge_max_cost: needs --judge_prices"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JudgeArguments(judge_model=MODEL, **options)


def test_a_judge_is_found_at_its_server_and_only_where_one_is_asked(served: MisbehavingServer, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    assert open_judge(JudgeArguments(), "published", out) is None
    with pytest.raises(InputError, match="serves no model `gpt`; it serves tiny"):
        open_judge(JudgeArguments("gpt", served.url), "published", out)
    with pytest.raises(InputError, match="the protocol exact asks no judge"):
        open_judge(JudgeArguments(MODEL, served.url), "exact", out)
    judge = open_judge(JudgeArguments(MODEL, served.url, judge_cache=str(tmp_path / "x" / "replies")), "judge", out)
    assert judge.name == f"{MODEL}+prompt{PROMPT_VERSION}"
    served.models += [{"id": "judge", "root": "/models/large"}]
    other = open_judge(JudgeArguments("judge", served.url), "judge", out)
    assert other.name == f"judge=large+prompt{PROMPT_VERSION}", "a name given anew is another judge in the signature"
    assert judge.server.root == "/models/tiny" and judge.cache.path == tmp_path / "x" / "replies"


def test_the_authors_judge_is_reproduced_from_its_replies(
    served: MisbehavingServer, tmp_path: Path, real_data: Path
) -> None:
    """A judge that replies as theirs did, chattily, gives their verdicts on the rows that their rule leaves open."""
    rows = [json.loads(line) for line in (real_data / "official_scores/vqa_rows.jsonl").open(encoding="utf-8")][:600]
    questions = [
        published_question(row["question"], row["ground_truth"], row["predicted"])
        for row in rows
        if published_verdict(row["ground_truth"], row["predicted"]) is None
    ]
    assert len(questions) > 100
    official = {}
    for row in rows:
        case = (row["question"].lower(), row["ground_truth"].lower(), row["predicted"].lower())
        official.setdefault(case, row["judge"])
    forms = ["{}", "**{}**", "The answer is {}.", "<think>0 or 1?</think>{}", '{{"score": {}}}']
    served.say = lambda body: forms[len(served.received) % len(forms)].format(official[tuple(case_of(body).values())])
    verdicts = judge_at(served, tmp_path)(questions)
    assert verdicts == [official[tuple(question)] == "1" for question in questions]
