"""Questions answered by a real server on loopback: what it is asked, what is written, what it may not do."""

import base64
import io
import json
import runpy
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Barrier, Lock
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import IMPATIENT, MODEL, MisbehavingServer, image_of, misbehaving_server, text_of
from conftest import HUNG, ROOT, run_here, with_adapters
from PIL import Image

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.box_texts import frame_of
from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import Question, leave_out_images, read_questions, still_to_ask
from sarlang_sft.imagery import load_picture, save_ops
from sarlang_sft.inference import Asked, answer_each, load_tuned
from sarlang_sft.loading import load_processor
from sarlang_sft.predict import Asking, predict_to_file
from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.served_answers import Preparation, data_url, open_served, predict_by_server
from sarlang_sft.tuning import TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]


@pytest.fixture
def served() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as server:
        server.say = lambda body: f"Heard: {text_of(body)}"
        yield server


@pytest.fixture(scope="module")
def preparation(tiny: Path) -> Preparation:
    return Preparation(load_processor(str(tiny), QWEN), QWEN, [])


def picture_in(body: dict[str, Any]) -> Image.Image:
    """The image of a request as a server sees it."""
    return Image.open(io.BytesIO(base64.b64decode(image_of(body).partition(",")[2]))).convert("RGB")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ask_about(data: Path, count: int | None = None) -> list[Question]:
    """Questions of the split `test`, no two of one prompt."""
    return still_to_ask(read_questions(data, "test", [], [], None), ())[:count]


def check_complete(rows: list[dict[str, Any]], questions: list[Question]) -> None:
    """Every question once, in order, with the answer to it."""
    assert [row["id"] for row in rows] == [question.id for question in questions]
    for row, question in zip(rows, questions, strict=True):
        assert (row["question"], row["label"]) == (question.turns[-1]["question"], question.label)
        assert row["predict"] == f"Heard: {row['question']}".strip()


def test_all_questions_are_answered_once_and_in_order_by_a_server_that_misbehaves(
    served: MisbehavingServer, preparation: Preparation, data: Path, sample: Path, tmp_path: Path
) -> None:
    questions = read_questions(data, "test", [], [], 40)
    prompts = len(still_to_ask(questions, ()))
    served.plan = ["429", "delay", "garbage", "500", "truncated", "closed", "no choices", "429 after", "503", "html"]
    path = tmp_path / "p.jsonl"
    server = served.client(concurrency=3, tries=12, timeout=IMPATIENT)
    assert predict_by_server(server, preparation, questions, sample, path, 16) == (prompts, {})
    rows = rows_of(path)
    check_complete(rows, questions)
    assert all(row["logprob"] == -0.5 * len(row["predict"].split()) for row in rows)
    for body in served.received:
        assert (body["temperature"], body["max_tokens"], body["logprobs"]) == (0, 16, True)
        assert body["repetition_penalty"] == 1.0
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert predict_by_server(server, preparation, questions, sample, path, 16) == (0, {})
    assert sum(served.replied.values()) == prompts < 40, "nothing is asked again"


def test_the_questions_of_an_image_stay_together_and_begin_with_the_same_bytes(
    served: MisbehavingServer, preparation: Preparation, data: Path, sample: Path, tmp_path: Path
) -> None:
    questions = ask_about(data)
    scattered = questions[::3] + questions[1::3] + questions[2::3]
    predict_by_server(served.client(concurrency=2), preparation, scattered, sample, tmp_path / "p.jsonl", 16)
    images = {question.images[0] for question in questions}
    urls = [image_of(body) for body in served.received]
    assert len(set(urls)) == len(images) > 2, "the same bytes for every question of an image"
    assert Counter(Counter(urls).values()) == Counter(Counter(q.images[0] for q in questions).values())
    for place in range(len(urls)):
        under_way = set(urls[: place + 1]) & set(urls[place:])
        assert len(under_way) <= 2, "at most as many images as requests"
    spans: dict[str, list[tuple[float, float]]] = {}
    for url, start, end in served.spans:
        spans.setdefault(url, []).append((start, end))
    for times in map(sorted, spans.values()):
        assert all(end <= start for (_, end), (start, _) in pairwise(times)), "one after the other"


def test_a_server_that_runs_the_model_gives_the_answers_of_the_engine_here(
    served: MisbehavingServer, tiny: Path, data: Path, sample: Path, tmp_path: Path
) -> None:
    """Images, image operations, context and prompts reach it as the engine `hf` feeds them to the model."""
    tuned = load_tuned(str(tiny), None)
    tuned.image_ops = ["standardise", "crop:60"]
    lock = Lock()

    def answer(body: dict[str, Any]) -> str:
        texts = [
            part if isinstance(part := message["content"], str) else message["content"][-1]["text"]
            for message in body["messages"]
        ]
        turns = [{"question": q, "answer": a} for q, a in zip(texts[::2], [*texts[1::2], ""], strict=True)]
        with lock:
            [(text, _)] = answer_each(tuned, [Asked([picture_in(body)], turns)], body["max_tokens"])
        return text

    served.say = answer
    preparation = Preparation(tuned.processor, tuned.backbone, tuned.image_ops)
    questions = ask_about(data, 12)
    earlier = {"question": "Is there a ship?", "answer": "Yes."}
    questions[3] = Question(**{**vars(questions[3]), "turns": [earlier, *questions[3].turns]})
    server = served.client()
    assert predict_by_server(server, preparation, questions, sample, tmp_path / "served.jsonl", 8)[0] == 12
    assert predict_to_file(tuned, questions, sample, tmp_path / "here.jsonl", Asking(12, 8), Crew())[0] == 12
    here = {row["id"]: row["predict"] for row in rows_of(tmp_path / "here.jsonl")}
    assert {row["id"]: row["predict"] for row in rows_of(tmp_path / "served.jsonl")} == here
    assert len(set(here.values())) > 1


def test_pictures_above_the_pixel_budget_are_sent_as_the_processor_would_resize_them(
    tiny: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 280), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    processor = load_processor(str(tiny), QWEN)
    larger = Preparation(processor, QWEN, [])
    assert larger.picture(tmp_path / "a.png").size == (280, 200), "left to the server, which resizes it"
    budget = load_processor(str(tiny), QWEN, max_pixels=120 * 120)
    reduced = Preparation(budget, QWEN, []).picture(tmp_path / "a.png")
    grids = [
        one(images=[picture], return_tensors="pt")["image_grid_thw"].tolist()
        for one, picture in (
            (budget.image_processor, larger.picture(tmp_path / "a.png")),
            (processor.image_processor, reduced),
        )
    ]
    assert grids[0] == grids[1], "a server with a larger budget sees as many patches"
    assert reduced.width * reduced.height <= 120 * 120


def test_grey_pictures_travel_as_one_band_and_come_out_the_same() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    for pixels in (np.repeat(noise[..., None], 3, axis=2), np.stack([noise, noise, 255 - noise], axis=2)):
        url = data_url(Image.fromarray(pixels))
        decoded = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        assert np.array_equal(np.asarray(decoded.convert("RGB")), pixels)
        assert decoded.mode == ("L" if pixels[0, 0, 0] == pixels[0, 0, 2] else "RGB")


def test_boxes_are_written_for_the_model_and_read_from_its_answers(
    served: MisbehavingServer, preparation: Preparation, tmp_path: Path
) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    boxes = [Box("ship", [80.0, 20.0, 40.0, 30.0])]
    asked = [Turn("Where is it?", "<box:0>"), Turn("What is in <box:0>?", "ship."), Turn("What is in <box:7>?", "x")]
    dialogues = [Dialogue(f"d{number}", "boxes", "grounding", [turn]) for number, turn in enumerate(asked)]
    record = Record(["a.png"], 200, 100, "made", "test", None, None, boxes, dialogues)
    write_data_folder(tmp_path / "data", to_table([record]), [], tmp_path, {})
    frame = frame_of(preparation.processor, QWEN, [], 200, 100)
    ship = QWEN.box_convention.write(boxes[0].points, frame)
    served.say = lambda body: f"At {ship}."
    questions = read_questions(tmp_path / "data", "test", [], [], None)
    result = predict_by_server(served.client(), preparation, questions, tmp_path, tmp_path / "p.jsonl", 16)
    assert result == (2, {"d2#0": "no box of this number"})
    assert sorted(map(text_of, served.received)) == [f"What is in {ship}?", "Where is it?"]
    rows = {row["id"]: row for row in rows_of(tmp_path / "p.jsonl")}
    assert np.allclose(rows["d0#0"]["boxes"], [boxes[0].points], atol=1.0) and "boxes" not in rows["d1#0"]
    assert rows["d1#0"]["question"] == "What is in <box:0>?"
    _, unanswered = predict_by_server(served.client(), None, questions, tmp_path, tmp_path / "plain.jsonl", 16)
    assert unanswered == dict.fromkeys(["d0#0", "d1#0", "d2#0"], "names boxes, which only a --model says how to write")


def test_what_fails_stays_unanswered_is_counted_and_asked_again(
    served: MisbehavingServer, preparation: Preparation, data: Path, sample: Path, tmp_path: Path
) -> None:
    questions = ask_about(data, 20)
    root = tmp_path / "images"
    for name in {question.images[0] for question in questions}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((sample / name).read_bytes())
    broken = questions[0].images[0]
    (root / broken).write_bytes(b"no image")
    served.plan = ["400", "500", "500"]
    path = tmp_path / "p.jsonl"
    server = served.client(tries=2, concurrency=1)
    about_it = sum(question.images[0] == broken for question in questions)
    written, unanswered = predict_by_server(server, preparation, questions, root, path, 16)
    assert written == 20 - about_it - 2 == len(rows_of(path))
    assert Counter(unanswered.values()) == {"cannot be read": 1, "HTTP 400": 1, "HTTP 500": 1}
    (root / broken).write_bytes((sample / broken).read_bytes())
    assert predict_by_server(server, preparation, questions, root, path, 16) == (20 - written, {})
    check_complete(rows_of(path), questions)


def test_models_that_are_none_of_ours_and_questions_without_images_are_asked_plainly(
    served: MisbehavingServer, data: Path, sample: Path, tmp_path: Path
) -> None:
    server, preparation = open_served(served.client(), None, None, None)
    assert preparation is None and server.root == "/models/tiny"
    questions = ask_about(data, 3)
    assert predict_by_server(server, None, questions, sample, tmp_path / "p.jsonl", 16) == (3, {})
    assert all("repetition_penalty" not in body for body in served.received), "OpenAI refuses what it does not know"
    stored = load_picture(sample / questions[0].images[0], [])
    assert np.array_equal(np.asarray(picture_in(served.received[0])), np.asarray(stored))
    blind = leave_out_images(questions)
    assert predict_by_server(server, None, blind, sample, tmp_path / "blind.jsonl", 16) == (3, {})
    assert [image_of(body) for body in served.received[3:]] == [""] * 3
    together = Barrier(3)
    served.say = lambda body: str(together.wait(HUNG))
    assert predict_by_server(server, None, blind, sample, tmp_path / "again.jsonl", 16) == (3, {})


def adapter_at(out: Path, tiny: Path, **options: Any) -> Path:
    """An adapter saved as training saves it."""
    torch.manual_seed(0)
    with_adapters(QWEN.model_class.from_pretrained(tiny), QWEN, TuningArguments(**options)).save_pretrained(out)
    load_processor(str(tiny), QWEN).save_pretrained(out)
    save_ops(out, ["standardise"])
    return out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vision_tower": "lora"}, r"outside of the language model \(such as model\.visual"),
        ({"projector": "lora"}, "outside of the language model"),
        ({"use_dora": True}, "is a DoRA"),
        ({"projector": "full"}, r"trained in full \(such as model\.visual\.merger"),
    ],
)
def test_an_adapter_that_servers_do_not_apply_must_be_merged(
    served: MisbehavingServer, options: dict[str, Any], why: str, tiny: Path, tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "adapter", tiny, **options)
    served.models += [{"id": "radar", "parent": MODEL}]
    with pytest.raises(InputError, match=f"{why}.*merge it first: python recipes/merge_adapter.py --base {tiny}"):
        open_served(served.client(model="radar"), str(tiny), str(adapter), None)


def test_an_adapter_on_the_language_model_is_asked_by_its_name(
    served: MisbehavingServer, tiny: Path, tmp_path: Path
) -> None:
    adapter = adapter_at(tmp_path / "adapter", tiny, lora_r=12)
    with pytest.raises(InputError, match=rf"is no adapter at .*--max-lora-rank 16 --lora-modules NAME={adapter}"):
        open_served(served.client(), str(tiny), str(adapter), None)
    served.models += [{"id": "radar", "root": "/runs/radar", "parent": MODEL}]
    server, preparation = open_served(served.client(model="radar"), str(tiny), str(adapter), None)
    assert preparation.image_ops == ["standardise"]
    assert server.facts() == {"served_model": "radar", "served_root": "/runs/radar", "served_parent": MODEL}
    with pytest.raises(InputError, match=r"is an adapter on tiny at .*name its folder with --adapter"):
        open_served(served.client(model="radar"), str(tiny), None, None)
    with pytest.raises(InputError, match="serves no model `other`; it serves tiny, radar"):
        open_served(served.client(model="other"), str(tiny), None, None)
    with pytest.raises(InputError, match="need --model"):
        open_served(served.client(model="radar"), None, str(adapter), None)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="describes no LoRA"):
        open_served(served.client(model="radar"), str(tiny), str(adapter), None)


def test_a_generation_without_any_answer_is_no_success(
    served: MisbehavingServer,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served.plan = ["400"]
    words = [
        "--engine",
        "openai",
        "--base_url",
        served.url,
        "--served_model",
        MODEL,
        "--data",
        data,
        "--out",
        tmp_path,
    ]
    with pytest.raises(SystemExit) as ended:
        run_here(monkeypatch, "eval/generate.py", *words, "--limit", 3, "--concurrency", 1)
    said = capsys.readouterr()
    assert ended.value.code == 2 and "none of the questions could be answered" in said.err
    assert "0 prompts answered for 3 questions, 0 of which have an answer" in said.out
    run_here(monkeypatch, "eval/generate.py", *words, "--limit", 3)
    assert "3 of which have an answer" in capsys.readouterr().out


def generate_words(served: MisbehavingServer, tiny: Path, data: Path, out: Path, *more: object) -> list[str]:
    words = ["eval/generate.py", "--engine", "openai", "--base_url", served.url, "--served_model", MODEL]
    return [str(word) for word in [*words, "--model", tiny, "--data", data, "--out", out, "--limit", 40, *more]]


def test_generation_killed_in_the_middle_goes_on_without_asking_anything_twice(
    served: MisbehavingServer,
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served.stop_after = 17
    words = generate_words(served, tiny, data, tmp_path, "--concurrency", 3)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    part = tmp_path / "predictions.part0.jsonl"
    try:
        assert served.held.wait(120)
        while not part.is_file() or len(part.read_bytes().splitlines()) < 17:
            assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open(part, "ab") as file:
        file.write(b'{"id": "torn')
    served.stop_after = None
    served.released.set()
    monkeypatch.setattr("sys.argv", words)
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    rows = rows_of(tmp_path / "predictions.jsonl")
    prompts = len({(row["image"], row["question"]) for row in rows})
    assert f"{prompts - 17} prompts answered for 40 questions" in capsys.readouterr().out
    assert sum(served.replied.values()) == prompts < 40, "as many as there are prompts"
    check_complete(rows, read_questions(data, "test", [], [], 40))
    settings = json.loads((tmp_path / "predictions.settings.json").read_text())
    assert (settings["engine"], settings["served_model"], settings["model"]) == ("openai", MODEL, str(tiny))
