"""Captions rewritten by a served model: what it is asked, what is taken of it, what it costs, what outlives a kill."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import FAULTS, IMPATIENT, MODEL, MisbehavingServer, misbehaving_server, text_of
from conftest import ROOT, run_here
from pycocoevalcap.bleu import bleu_scorer

from sarlang_sft.chat_client import ask_all, find_model
from sarlang_sft.chat_protocol import ChatRequest, Failure, Reply
from sarlang_sft.errors import InputError
from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import Box, Dialogue, Record, Rejection, Turn, read_records, to_table, write_data_folder
from sarlang_sft.reply_cache import ReplyCache
from sarlang_sft.rewriting.asking import (
    NONE_ACCEPTED,
    NOT_READ,
    PROMPT_VERSION,
    RewritingArguments,
    ask_rewrites,
    rewrites_in,
)
from sarlang_sft.rewriting.diversity import SAMPLE, diversity, self_bleu
from sarlang_sft.rewriting.folders import deal, open_source, write_rewritten

SCRIPT = "data_prep/rewrite_captions.py"
BEGIN = "A SAR image with "
CAPTIONS = [f"{BEGIN}{number} ships and 1 bridge." for number in range(2, 22)]


def record(name: str, split: str, captions: Sequence[str]) -> Record:
    asked = [Dialogue(f"{name}:q", "boxes_vqa1", "counting", [Turn("How many ships?", "2.")])]
    asked += [
        Dialogue(f"{name}:{number}", "boxes_caption", "description", [Turn("Describe it.", caption)], "complex")
        for number, caption in enumerate(captions)
    ]
    boxes = [Box(label, [0.0, 0.0, 5.0, 5.0]) for label in ("ship", "bridge", "car")]
    return Record([f"{name}.png"], 64, 64, "made", split, boxes=boxes, dialogues=asked)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty different captions, each of three training images, and one of a test image."""
    records = [record(f"{copy}-{n}", "train", [text]) for copy in range(3) for n, text in enumerate(CAPTIONS)]
    records += [record("test", "test", CAPTIONS[:1]), record("val", "val", [])]
    wording = read_wording("en")
    rejections = [Rejection("labels.json", 3, "x.png", "no such image")]
    files = {"wording.yaml": wording.dump(), "annotations.jsonl": '{"a": 1}\n', "card.md": "A card.\n"}
    write_data_folder(tmp_path / "data", to_table(records), rejections, tmp_path, {"in": "1"}, {"built": "x"}, files)
    return tmp_path / "data"


def caption_of(body: dict[str, Any]) -> str:
    """The caption that a request holds."""
    return json.loads(text_of(body).rpartition("The caption: ")[2])


def rewritten(body: dict[str, Any]) -> str:
    """Three good rewrites, and two that are not, in a chatty form."""
    told = caption_of(body).removeprefix(BEGIN).removesuffix(".")
    first, second = told.split(" and ")
    lines = [f"1. The radar has imaged {told}.", f'2. "{second} and {first} can be seen by radar."']
    lines += [f"- In this view, one can count {told}.", f"Perhaps {told}.", f"This shows {told} and a car."]
    return "<think>5 ships?</think>\n" + "\n\n".join(lines)


@pytest.fixture
def served() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as server:
        server.say = rewritten
        yield server


def words(data: Path, served: MisbehavingServer, out: str = "out", *more: object) -> list[object]:
    """The command line."""
    return ["--data", data, "--out", data.parent / out, "--model", MODEL, "--base_url", served.url, *more]


def rewrite(
    data: Path, served: MisbehavingServer, client: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """The library's part of the program, with an impatient client."""
    arguments = RewritingArguments(MODEL, served.url, **options)
    source = open_source(data, None, arguments.splits, arguments.styles)
    server = find_model(served.client(**(client or {})))
    rewrites = ask_rewrites(
        server, ReplyCache(data.parent / "replies.jsonl"), source.captions.values(), source.lexicon, arguments
    )
    return write_rewritten(data.parent / "out", source, rewrites, server, arguments)


def captions_in(folder: Path, split: str = "train") -> dict[str, str]:
    return {
        one.id: one.turns[0].answer
        for record in read_records(folder, split)
        for one in record.dialogues
        if one.subset == "boxes_caption"
    }


def test_every_distinct_caption_is_asked_for_once_and_good_rewrites_are_dealt_out(
    data: Path, served: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch, SCRIPT, *words(data, served))
    assert sorted(map(caption_of, served.received)) == sorted(CAPTIONS)
    assert all(
        body["temperature"] == 0.8 and "Write 5 different rewrites" in text_of(body) for body in served.received
    )
    out = data.parent / "out"
    before, after = captions_in(data), captions_in(out)
    assert before.keys() == after.keys() and not {*after.values()} & {*before.values()}
    numbers = {text: text.split()[4] for text in CAPTIONS}
    assert all(f"{numbers[before[name]]} ships" in text and "1 bridge" in text for name, text in after.items())
    assert len({*after.values()}) > 30, "images of one caption get different rewrites"
    manifest = json.loads((out / "manifest.json").read_text())
    old = json.loads((data / "manifest.json").read_text())
    facts = manifest.pop("rewriting")
    assert manifest == old
    assert facts["model"] == MODEL and facts["prompt_version"] == PROMPT_VERSION
    assert facts["wording"] == read_wording("en").hash
    assert (facts["captions"], facts["distinct_captions"], facts["rewritten"], facts["kept"]) == (60, 20, 60, {})
    assert facts["accepted_rewrites"] == 60
    assert facts["rejected_rewrites"] == {"a class is added": 20, "a word that is refused": 20}
    listed = [json.loads(line) for line in (out / "rewrites.jsonl").open(encoding="utf-8")]
    assert len(listed) == 40
    first = {"caption": CAPTIONS[8], "rewrite": "Perhaps 10 ships and 1 bridge.", "reason": "a word that is refused"}
    assert first | {"detail": "perhaps"} in listed
    for name in ("card.md", "annotations.jsonl", "wording.yaml", "rejected.jsonl"):
        assert (out / name).read_text() == (data / name).read_text()
    assert captions_in(out, "test") == captions_in(data, "test"), "test is as it was"
    shown = capsys.readouterr().out
    assert "60 captions, 20 of them different, 20 requests, 0 of them replied to before" in shown
    assert "captions 60 = rewritten 60 + kept 0" in shown and "rewrites accepted 60, rejected 40" in shown
    assert "before 20 different captions, distinct-1..4" in shown and "(of 60 captions)" in shown
    assert facts["diversity"]["after"]["different"] > facts["diversity"]["before"]["different"] == 20
    assert facts["diversity"]["after"]["self_bleu_4"] < facts["diversity"]["before"]["self_bleu_4"] == pytest.approx(1)
    with pytest.raises(SystemExit):
        run_here(monkeypatch, SCRIPT, *words(out, served, "again"))
    assert "its captions are rewritten; give the folder that they were built in" in capsys.readouterr().err


def test_nothing_but_the_captions_changes_and_another_seed_deals_them_otherwise(
    data: Path, served: MisbehavingServer
) -> None:
    rewrite(data, served)
    out = data.parent / "out"
    once = captions_in(out)
    for split in ("train", "val", "test"):
        for one, other in zip(read_records(data, split), read_records(out, split), strict=True):
            assert replace(one, dialogues=[]) == replace(other, dialogues=[])
            for dialogue, changed in zip(one.dialogues, other.dialogues, strict=True):
                assert dialogue.turns[0].question == changed.turns[0].question
                assert dialogue == changed or replace(dialogue, turns=changed.turns) == changed
    rewrite(data, served)
    assert captions_in(out) == once
    rewrite(data, served, seed=1, splits=["train", "test"])
    assert captions_in(out) != once and captions_in(out, "test") != captions_in(data, "test")
    assert len(served.received) == 20, "neither asks again"


def test_whatever_befalls_some_tries_all_captions_are_rewritten(data: Path, served: MisbehavingServer) -> None:
    served.plan = ["delay", "429", "429 after", "500", "garbage", "deep", "truncated", "html", "no choices", "closed"]
    facts = rewrite(data, served, {"timeout": IMPATIENT, "tries": 40})["rewriting"]
    assert facts["rewritten"] == 60 and facts["requests"] == {"replied": 20}


def test_what_fails_or_is_refused_keeps_its_template_and_is_counted(data: Path, served: MisbehavingServer) -> None:
    replies = {
        CAPTIONS[0]: "",
        CAPTIONS[1]: "I cannot help with that.",
        CAPTIONS[
            2
        ]: f"{CAPTIONS[2]}\n{CAPTIONS[2].replace('4', '5')}\n{CAPTIONS[2].replace('SAR', 'radar').replace('.', '')}",
        CAPTIONS[3]: "The radar has imaged 5 ships and 1 bridge.\nthe radar has imaged 5 ships and 1 bridge.",
    }
    served.say = lambda body: replies.get(caption_of(body)) or ("" if caption_of(body) in replies else rewritten(body))
    served.plan = ["400", "500", "500"]
    facts = rewrite(data, served, {"concurrency": 1, "tries": 1})["rewriting"]
    assert facts["requests"] == {"failed: HTTP 400": 1, "failed: HTTP 500": 2, "replied": 17}
    assert facts["kept"] == {"failed: HTTP 400": 3, "failed: HTTP 500": 6}
    served.plan = ["delay"]
    facts = rewrite(data, served, {"concurrency": 1, "tries": 1, "timeout": IMPATIENT})["rewriting"]
    assert facts["kept"] == {"failed: timed out": 3, NONE_ACCEPTED: 6}
    facts = rewrite(data, served, {"concurrency": 1, "tries": 1})["rewriting"]
    assert facts["kept"] == {NONE_ACCEPTED: 9} and facts["rewritten"] == 51 and facts["requests"] == {"replied": 20}
    assert len(served.received) == 24, "the failed ones alone are asked again"
    refused = facts["rejected_rewrites"]
    assert refused["the same as the caption"] == refused["the same as another rewrite"] == 1
    assert refused["another number"] == refused["it does not end as the caption does"] == 1
    assert sum(facts["kept"].values()) + facts["rewritten"] == facts["captions"] == 60
    kept = [text for text in captions_in(data.parent / "out").values() if text in CAPTIONS]
    assert Counter(kept) == dict.fromkeys(CAPTIONS[:3], 3)


def test_a_caption_that_is_not_read_is_not_asked_for(data: Path, served: MisbehavingServer) -> None:
    texts = ["A SAR image with 3 ships near 1 bridge.", CAPTIONS[0]]
    write_data_folder(
        data, to_table([record("a", "train", texts)]), [], data.parent, {}, None, {"wording.yaml": "extends: en\n"}
    )
    facts = rewrite(data, served)["rewriting"]
    assert [caption_of(body) for body in served.received] == CAPTIONS[:1]
    assert facts["kept"] == {NOT_READ: 1} and facts["rewritten"] == 1


def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice(
    data: Path, served: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch, SCRIPT, *words(data, served, "undisturbed"))
    served.replied.clear()
    served.stop_after = 8
    options = words(data, served, "out", "--concurrency", 3)
    replies = data.parent / "out.replies.jsonl"
    process = subprocess.Popen([sys.executable, *map(str, [SCRIPT, *options])], cwd=ROOT)
    try:
        assert served.held.wait(120)
        while len(replies.read_bytes().splitlines()) < 8:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (data.parent / "out").exists()
    served.stop_after = None
    served.released.set()
    run_here(monkeypatch, SCRIPT, *options)
    assert "20 requests, 8 of them replied to before" in capsys.readouterr().out
    assert set(served.replied.values()) == {1} and len(served.replied) == 20
    for name in ("manifest.json", "rewrites.jsonl", "train.parquet", "val.parquet", "test.parquet"):
        assert (data.parent / "out" / name).read_bytes() == (data.parent / "undisturbed" / name).read_bytes()


def test_the_cost_is_shown_first_and_what_is_dear_is_not_asked(
    data: Path, served: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_here(monkeypatch, SCRIPT, *words(data, served, "out", "--prices", 0, 10, "--max_cost", 0.1))
    shown = capsys.readouterr()
    assert "at most 20,000 to get, at most 0.20 in the currency" in shown.out
    assert "--max_cost 0.1: rewriting may cost up to 0.20; nothing was asked" in shown.err
    assert served.received == [] and not (data.parent / "out").exists()
    run_here(monkeypatch, SCRIPT, *words(data, served, "out", "--prices", 0, 10, "--max_cost", 0.2))
    run_here(monkeypatch, SCRIPT, *words(data, served, "out", "--prices", 0, 10, "--max_cost", 0))
    assert "20 requests, 20 of them replied to before" in capsys.readouterr().out
    assert len(served.received) == 20


def test_no_more_requests_a_minute_are_sent_than_allowed_retries_counted(served: MisbehavingServer) -> None:
    served.plan = ["429", "500", "garbage"]
    asked = [ChatRequest(str(n), [{"role": "user", "content": json.dumps(str(n))}], 8) for n in range(5)]
    served.say = text_of
    outcomes: list[Reply | Failure] = []
    server = served.client(concurrency=5, requests_per_minute=600)
    begin = time.monotonic()
    ask_all(server, ([one] for one in asked), lambda one, outcome: outcomes.append(outcome))
    passed = time.monotonic() - begin
    assert len(outcomes) == 5 and all(isinstance(one, Reply) for one in outcomes)
    assert len(served.received) == 8 and passed > 7 * 0.1 * 0.9, "eight tries, a tenth of a second apart"
    assert served.most_at_once < 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prices": [1.0]}, "--prices: give two"),
        ({"max_cost": 1.0}, "--max_cost: needs --prices"),
        ({"requests_per_minute": 0.0}, "--requests_per_minute must be above 0"),
        ({"variants": 0}, "must be positive"),
        ({"temperature": 3.0}, "--temperature 3: must be from 0 to 2"),
        ({"splits": []}, "--splits and --styles must name something"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RewritingArguments(MODEL, "http://127.0.0.1:1/v1", **options)


def test_a_folder_that_cannot_be_rewritten_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no template captions of the styles general in train, val"):
        open_source(data, None, ["train", "val"], ["general"])
    (data / "wording.yaml").unlink()
    with pytest.raises(InputError, match=r"has no wording\.yaml; name the words of its captions with --wording"):
        open_source(data, None, ["train"], ["complex"])
    assert len(open_source(data, "en", ["train"], ["complex"]).captions) == 60
    bare = tmp_path / "bare.yaml"
    bare.write_text("extends: en\nreading: {refused: []}\n")
    with pytest.raises(InputError, match=r"bare: has no `reading\.refused`"):
        open_source(data, str(bare), ["train"], ["complex"])


def test_classes_of_class_folders_are_those_of_the_folders(tmp_path: Path, served: MisbehavingServer) -> None:
    def chip(name: str, label: str) -> Record:
        text = f"A SAR image of a {label}."
        said = Dialogue(f"{name}:4", "folders", "description", [Turn("Describe it.", text)], "general")
        return Record([f"train/{label}/{name}.png"], 64, 64, "MSTAR", "train", dialogues=[said])

    records = to_table([chip("a", "T72"), chip("b", "T62")])
    write_data_folder(tmp_path / "data", records, [], tmp_path, {}, None, {"wording.yaml": "extends: en\n"})
    served.say = lambda body: "One T72, as the radar sees it.\nOne T72 beyond a T62.\nOne T62, as the radar sees it."
    facts = rewrite(tmp_path / "data", served)["rewriting"]
    assert facts["rewritten"] == 2 and facts["accepted_rewrites"] == 2
    assert facts["rejected_rewrites"] == {"a word that is refused": 2, "another class": 2}


@pytest.mark.parametrize(
    ("reply", "lines"),
    [
        ("A.\n\nB.", ["A.", "B."]),
        ("1. A.\n2) B.\n- C.\n* D.\n• E.", ["A.", "B.", "C.", "D.", "E."]),
        ("“A.”\n'B.'\n「C。」", ["A.", "B.", "C。"]),
        ('["A.", " B."]', ["A.", "B."]),
        ("<think>X.\nY.</think>\nA.", ["A."]),
        ("X.\n</think>\nA.", ["A."]),
        ("<think>X. never ends", []),
        ("5 ships.\n1.5 ships.", ["5 ships.", "1.5 ships."]),
        ("[" * 100_000, ["[" * 100_000]),
        ("", []),
    ],
)
def test_lines_are_found_in_what_models_say_around_them(reply: str, lines: list[str]) -> None:
    assert rewrites_in(reply) == lines


def test_rewrites_are_dealt_out_evenly_and_by_id_alone() -> None:
    captions = {f"d{n}": "a" for n in range(1000)} | {"other": "b"}
    dealt = deal(captions, {"a": ["x", "y", "z", "u"]}, 0)
    assert all(200 < count < 300 for count in Counter(dealt.values()).values()) and "other" not in dealt
    assert deal({"d7": "a"}, {"a": ["x", "y", "z", "u"]}, 0) == {"d7": dealt["d7"]}


def test_self_bleu_is_the_mean_of_each_against_the_others() -> None:
    texts = [
        "a ship and a car",
        "a ship a ship a ship",
        "two cars",
        "a radar image of two cars and a ship",
        "two cars",
    ]
    scores = []
    for number, text in enumerate(texts):
        scorer = bleu_scorer.BleuScorer(text, texts[:number] + texts[number + 1 :])
        scores.append(scorer.compute_score(option="closest")[0][3])
    assert self_bleu([text.split() for text in texts]) == pytest.approx(sum(scores) / len(texts))
    assert self_bleu([["a"]]) is None
    found = diversity({str(n): f"number {n} of all" for n in range(500)})
    assert (found["captions"], found["different"], found["sample"]) == (500, 500, SAMPLE)
    assert found["distinct"]["1"] == pytest.approx(503 / 2000)


def test_every_fault_that_matters_here_is_planned() -> None:
    assert {"429", "429 after", "500", "garbage", "400"} <= set(FAULTS)
