import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import HUNG, ROOT, run_here, run_script

from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import leave_out_images, read_questions, still_to_ask
from sarlang_sft.inference import load_tuned
from sarlang_sft.predict import Asking, predict_to_file
from sarlang_sft.prediction_files import answered_ids, append_rows, lock_predictions, make_row, merge_parts, part_of

GENERATE = "eval/generate.py"
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
HOLD = """
import sys, time
from pathlib import Path
from sarlang_sft.locks import sign_lock, take_lock
lock = take_lock(Path(sys.argv[1])); sign_lock(lock); print("held", flush=True); time.sleep(600)
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def said(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["id"], row["predict"]) for row in rows]


def prompts(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """What is asked: several captions of an image are asked for once."""
    return {(row["image"], row["question"]) for row in rows}


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_answers(process: subprocess.Popen[str], folder: Path) -> None:
    end = time.monotonic() + HUNG
    while not any(part.stat().st_size for part in folder.glob("predictions.part*.jsonl")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.01)


def test_predictions_are_written_once_each_and_a_half_written_file_is_continued(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny, "--data", data, "--limit", 30, "--max_new_tokens", 8, "--out"]
    run_script(GENERATE, *words, tmp_path)
    rows = rows_of(tmp_path / "predictions.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 30
    assert set(rows[0]) == {"id", "image", "subset", "task", "question", "label", "predict", "logprob"}
    assert all(row["logprob"] <= 0 for row in rows)

    def refusal(*more: object) -> str:
        with pytest.raises(SystemExit) as refused:
            run_here(monkeypatch, GENERATE, *words, tmp_path / "half", *more)
        assert refused.value.code == 2
        return capsys.readouterr().err

    assert "--limit must be at least 1" in refusal("--limit", -1), "which would leave out the last one"
    half = tmp_path / "half/predictions.jsonl"
    half.parent.mkdir()
    half.write_text("".join(json.dumps(row) + "\n" for row in rows[:11]) + '{"id": "torn')
    assert "holds answers, and nothing says with which" in refusal()
    shutil.copyfile(tmp_path / "predictions.settings.json", tmp_path / "half/predictions.settings.json")
    run_here(monkeypatch, GENERATE, *words, tmp_path / "half")
    left = len(prompts(rows) - prompts(rows[:11]))
    assert f"{left} prompts answered for 30 questions" in capsys.readouterr().out and left < 19
    assert said(rows_of(half)) == said(rows)
    assert "was begun with exchange_images False, not True" in refusal("--exchange_images", "true")
    settings = tmp_path / "half/predictions.settings.json"
    begun = json.loads(settings.read_text())
    settings.write_text(json.dumps(begun | {"image_ops": ["log"]}))
    assert "was begun with image_ops ['log'], not []" in refusal()
    settings.write_text(json.dumps(begun | {"exchange_images": True, "exchanged_among": [[], [], 30]}))
    assert "not [[], [], 20]" in refusal("--exchange_images", "--limit", 20), "among fewer, it is another image"
    settings.write_text("{")
    assert "predictions.settings.json: cannot be read as JSON" in refusal()
    settings.write_text(json.dumps(begun))
    half.write_text('{"id": "another question"}\n')
    assert "holds answers to other questions" in refusal()


def test_a_killed_rank_ends_the_launch_and_other_numbers_of_ranks_go_on(
    tiny: Path,
    data: Path,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", tiny, "--data", data, "--split", "train", "--limit", 240, "--batch_size", 2]
    images = Path(shutil.copytree(sample, tmp_path / "images"))
    words += ["--max_new_tokens", 24, "--image_root", images, "--out"]
    run_here(monkeypatch, GENERATE, *words, tmp_path / "one")
    whole = rows_of(tmp_path / "one/predictions.jsonl")
    assert [row["id"] for row in whole] == [question.id for question in read_questions(data, "train", [], [], 240)]

    out = tmp_path / "two"
    launch = start(*TWO_RANKS, GENERATE, *words, out)
    wait_for_answers(launch, out)
    ranks = {rank.environ()["RANK"]: rank for rank in psutil.Process(launch.pid).children()}
    ranks["1"].kill()
    output, _ = launch.communicate(timeout=60)
    assert launch.returncode and "Signal 9 (SIGKILL)" in output
    parts = sorted(out.glob("predictions.part*.jsonl"))
    kept = sum(part.read_bytes().count(b"\n") for part in parts)
    assert 0 < kept < len(prompts(whole)) < 240 and not (out / "predictions.jsonl").exists()
    with open(parts[-1], "ab") as file:
        file.write(b'{"id": "torn')
    capsys.readouterr()
    run_here(monkeypatch, GENERATE, *words, out)
    assert f"{len(prompts(whole)) - kept} prompts answered for 240 questions" in capsys.readouterr().out
    assert said(rows_of(out / "predictions.jsonl")) == said(whole)
    assert not list(out.glob("predictions.part*.jsonl"))

    # One rank, then four, then two; and one image that cannot be read.
    lines = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text("".join(lines[:50]))
    (out / "predictions.part0.jsonl").write_text("".join(lines[40:90]) + lines[90][:30])
    (out / "predictions.part3.jsonl").write_text("".join(lines[100:130]) + '{"id": "torn')
    torn = whole[-1]["image"]
    (images / torn).write_bytes(b"torn")
    readable = [row for row in whole if row["image"] != torn or row in whole[:130]]
    output = run_script(*TWO_RANKS, GENERATE, *words, out)
    assert output.count("1 images or questions stay unanswered") == 1 and torn in output
    left = prompts(readable) - prompts(whole[:90] + whole[100:130])
    assert f"{len(left)} prompts answered for 240 questions" in output and left and len(readable) < 240
    assert said(rows_of(out / "predictions.jsonl")) == said(readable)


def test_sigterm_leaves_with_75_and_keeps_whole_answers(tiny: Path, data: Path, tmp_path: Path) -> None:
    words = ["--model", tiny, "--data", data, "--split", "train", "--batch_size", 1, "--max_new_tokens", 64]
    process = start(GENERATE, *words, "--out", tmp_path)
    wait_for_answers(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "Traceback" not in output, output
    questions = read_questions(data, "train", [], [], None)
    kept = (tmp_path / "predictions.part0.jsonl").read_bytes()
    assert kept.endswith(b"\n") and 0 < len(answered_ids(tmp_path / "predictions.jsonl", questions)) < len(questions)


def test_the_text_alone_is_asked_without_any_image(
    tiny: Path, data: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", tiny, "--data", data, "--limit", 40, "--max_new_tokens", 8, "--out"]
    run_here(monkeypatch, GENERATE, *words, tmp_path / "seeing")
    run_here(monkeypatch, GENERATE, *words, tmp_path / "text", "--without_images")
    seeing, text = (rows_of(tmp_path / name / "predictions.jsonl") for name in ("seeing", "text"))
    assert [row["id"] for row in text] == [row["id"] for row in seeing] and said(text) != said(seeing)
    assert [row["question"] for row in text] == [row["question"] for row in seeing]
    assert {row["image"] for row in text} == {""}
    answers: dict[str, set[str]] = {}
    for row in text:
        answers.setdefault(row["question"], set()).add(row["predict"])
    assert all(len(one) == 1 for one in answers.values()) and len(answers) < 40, "nothing else tells them apart"
    settings = json.loads((tmp_path / "text/predictions.settings.json").read_text())
    assert settings["without_images"] is True and settings["exchange_images"] is False
    with pytest.raises(SystemExit) as refused:
        run_here(monkeypatch, GENERATE, *words, tmp_path / "text")
    assert refused.value.code == 2
    with pytest.raises(SystemExit) as refused:
        run_here(monkeypatch, GENERATE, *words, tmp_path / "both", "--without_images", "--exchange_images")
    assert refused.value.code == 2 and not (tmp_path / "both").exists()
    one_by_one = leave_out_images(read_questions(data, "test", [], [], 40))
    predict_to_file(load_tuned(str(tiny), None), one_by_one, sample, tmp_path / "o.jsonl", Asking(1, 8, False), Crew())
    assert said(rows_of(tmp_path / "o.jsonl")) == said(text)


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_another_process_writes_is_left_alone(number: int, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    holder = start("-c", HOLD, tmp_path / f".predictions.part{number}.lock")
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"predictions.jsonl: process {holder.pid} on .* writes it now"):
        lock_predictions(path)
    lock_predictions(tmp_path / "blind.jsonl").close()
    holder.kill()
    holder.wait()
    lock_predictions(path).close()


def test_what_is_no_part_of_the_file_is_named(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions[1].jsonl"
    questions = still_to_ask(read_questions(data, "test", [], [], None), ())[:5]
    append_rows(part_of(path, 0), [make_row(questions[3], "lone \ud800 surrogate", None)])
    append_rows(part_of(path, 12), [make_row(questions[1], "zwei\nZeilen\u2028é", -0.123456)])
    (tmp_path / "predictions1.part0.jsonl").write_text("another file's")
    merge_parts(path, questions)
    first, second = rows_of(path)
    assert (first["id"], first["predict"], first["logprob"]) == (questions[1].id, "zwei\nZeilen\u2028é", -0.1235)
    assert (second["id"], second["predict"], second["logprob"]) == (questions[3].id, "lone ? surrogate", None)
    assert answered_ids(path, questions) == {questions[1].id, questions[3].id}
    assert [file.name for file in tmp_path.glob("*part*")] == ["predictions1.part0.jsonl"]
    part_of(path, 2).write_text("[1, 2]\n")
    with pytest.raises(InputError, match=r"part2.jsonl: no predictions file"):
        answered_ids(path, questions)
    append_rows(path, [make_row(read_questions(data, "train", [], [], 1)[0], "", None)])
    part_of(path, 2).unlink()
    with pytest.raises(InputError, match="holds answers to other questions"):
        answered_ids(path, questions)
