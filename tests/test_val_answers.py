"""Evaluation while training: the loss on val, answers to its questions, and what both leave alone."""

import json
import math
import shutil
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_trainer, run_script, with_adapters
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from PIL import Image

from sarlang_sft.arguments import TrainArguments
from sarlang_sft.attention import FLEX, answering_attention
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.checkpoints import list_checkpoints
from sarlang_sft.collate import IGNORED, DialogueCollator
from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import read_questions
from sarlang_sft.inference import TunedModel, load_tuned
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.packing import PlannedRows
from sarlang_sft.predict import Asking, predict_to_file
from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.predictions import Row
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.val_answers import Answer, Share, answer_sample, check_metric, judge, score
from sarlang_sft.val_loss import read_batches, share_out
from sarlang_sft.val_questions import ValQuestion, choose_questions, make_batches, prompts_by_image

QWEN = BACKBONES["qwen2_5_vl"]
ALL = Share(0, 1, False)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "val_max_new_tokens": 12}
COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.fixture(scope="module")
def folder(sample: Path) -> Path:
    """A data folder of the sample with more images in val, and without the split test."""
    out = sample.parent / "val_data"
    write_data_folder(out, *convert(sample, sample, 0.3, Prompts())[:2], image_root=sample, inputs={})
    (out / "test.parquet").unlink()
    return out


@pytest.fixture(scope="module")
def taught(tiny: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that answers some questions rightly, and ends its answers."""
    out = tmp_path_factory.mktemp("taught")
    trainer, _ = make_trainer(tiny, folder, out, TuningArguments(tuning="full"), max_steps=30, learning_rate=3e-3)
    trainer.train()
    trainer.save_model(str(out))
    return out


def val_rows(*sources: DataSource) -> PlannedRows:
    """The split val as flat rows."""
    table = read_mixture(list(sources), "val")
    return PlannedRows(table, [[[np.array([number])] for number in range(len(table))]], trees=False)


def log_of(trainer: RunTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def adapter_of(trainer: RunTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_every_row_is_counted_once_and_every_rank_makes_as_many_batches(rows: int, ranks: int, size: int) -> None:
    shares = [share_out(rows, rank, ranks, size) for rank in range(ranks)]
    numbers = [number for share in shares for batch in share for number in batch]
    assert sorted(numbers) == list(range(rows)) and len({len(share) for share in shares}) == 1
    assert max(len(batch) for share in shares for batch in share) <= size


@pytest.mark.parametrize("trees", [False, True])
def test_what_ranks_supervise_adds_up_to_the_split(trees: bool, tiny: Path, folder: Path, tmp_path: Path) -> None:
    trainer, _ = make_trainer(tiny, folder, tmp_path, TuningArguments(), image_trees=trees, **EVALUATED)
    rows, counts = trainer.eval_dataset, []
    for ranks, size in ((1, 1), (2, 3), (3, 4), (len(rows) + 1, 2)):
        batches = [
            batch
            for rank in range(ranks)
            for batch in read_batches(
                rows, share_out(len(rows), rank, ranks, size), trainer.data_collator, trainer.args
            )
        ]
        counts.append(sum(int((batch["labels"] != IGNORED).sum()) for batch in batches))
        if ranks > len(rows):
            assert not (batches[-1]["labels"] != IGNORED).any(), "a rank without rows"
    assert len(set(counts)) == 1 and counts[0] > 0


def test_the_loss_on_val_is_the_mean_over_tokens_or_answers_whatever_the_batches_and_packing(
    taught: Path, folder: Path, tmp_path: Path
) -> None:
    tuned = load_tuned(str(taught), None)
    collator = DialogueCollator(tuned.processor, QWEN, [])
    losses = []
    for row in val_rows(DataSource(str(folder))).dialogues:
        batch = collator([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logprobs = tuned.model(**batch).logits[0, :-1].log_softmax(-1)
        kept = labels != IGNORED
        losses.append(-logprobs[kept].gather(-1, labels[kept][:, None])[:, 0])
    wanted = {"token": torch.cat(losses).mean().item(), "answer": torch.stack([one.mean() for one in losses]).mean()}
    assert abs(wanted["token"] - wanted["answer"]) > 0.1 and len({len(one) for one in losses}) > 2
    for trees, sizes, workers in ((True, (1, 4, 50), 2), (False, (3, 16), 0)):
        trainer, _ = make_trainer(
            taught, folder, tmp_path, TuningArguments(), image_trees=trees, dataloader_num_workers=workers, **EVALUATED
        )
        for size in sizes:
            for weighting, loss in wanted.items():
                trainer.args.per_device_eval_batch_size, trainer.args.loss_weighting = size, weighting
                metrics = trainer.evaluate()
                assert metrics["eval_loss"] == pytest.approx(float(loss), abs=2e-5), (trees, size)
        assert metrics["eval_runtime"] > 0 and log_of(trainer, "eval_loss")[-1] == metrics["eval_loss"]


def recipe(model: Path, folder: Path, out: Path, rows: int) -> list[object]:
    """A run of one step that evaluates before and after it."""
    return [
        ROOT / "recipes/qwen_lora.py", "--model_name_or_path", model, "--data", folder, "--output_dir", out,
        "--max_steps", 1, "--per_device_train_batch_size", rows, "--per_device_eval_batch_size", 3,
        "--max_tokens_per_row", 600, "--dtype", "float32", "--use_cpu", "true", "--report_to", "none",
        "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", 1, "--eval_on_start", "true",
        "--val_questions", 47, "--val_max_new_tokens", 12, "--learning_rate", 1e-4, "--dataloader_num_workers", 0,
    ]  # fmt: skip


def evaluations(out: Path) -> list[dict[str, float]]:
    """What each evaluation of a finished run gave, but for its speed."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    speed = ("runtime", "per_second")
    return [{k: v for k, v in row.items() if not k.endswith(speed)} for row in history if "eval_loss" in row]


def lines(out: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (out / f"val_answers/step-{step:06}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(taught: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    output = run_script(*recipe(taught, folder, out, 2))
    assert output.count("val questions: 47 on") == 1
    return out


def test_evaluations_are_logged_and_every_answer_is_written(one_process: Path, folder: Path) -> None:
    rows = evaluations(one_process)
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        answers = lines(one_process, row["step"])
        verdicts = [answer["right"] for answer in answers if answer["task"] != "description"]
        assert row["eval_accuracy"] == pytest.approx(np.mean(verdicts)) and 0.2 < row["eval_accuracy"] < 1
        kinds = Counter(answer["task"] for answer in answers)
        assert kinds.total() == 47 and {f"eval_accuracy_{kind}" for kind in kinds} - row.keys() == {
            "eval_accuracy_description"
        }
        assert 0 < row["eval_cider"] < 10
    stored = {question.id: question for question in read_questions(folder, "val", [], [], None)}
    for answer in answers:
        question = stored[answer["id"]]
        assert set(answer) == {
            "id", "images", "subset", "task", "question", "label", "predict", "logprob", "right",
        }  # fmt: skip
        assert (answer["question"], answer["label"]) == (question.turns[-1]["question"], question.label)
        assert all(Path(image).is_absolute() and Path(image).is_file() for image in answer["images"])
        assert answer["logprob"] <= 0 and (answer["right"] is None) == (answer["task"] == "description")


@pytest.mark.parametrize("mode", ["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_ranks_evaluate_as_one_process_does(
    mode: str, one_process: Path, taught: Path, folder: Path, tmp_path: Path
) -> None:
    """Rows and images that two ranks cannot share evenly; under ZeRO-3 they meet in every layer."""
    if mode == "zero3" and not COMPILER:
        pytest.skip("no C++ compiler: DeepSpeed compiles its CPU communication kernels")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    words += recipe(taught, folder, tmp_path, 1)
    words += ["--deepspeed", ROOT / "deepspeed_configs/zero3.json"] if mode == "zero3" else []
    assert run_script(*words).count("val questions: 47 on") == 1
    for ours, reference in zip(evaluations(tmp_path), evaluations(one_process), strict=True):
        assert ours == pytest.approx(reference, abs=2e-4)
        for answer, same in zip(lines(tmp_path, ours["step"]), lines(one_process, ours["step"]), strict=True):
            assert answer == {**same, "logprob": pytest.approx(same["logprob"], abs=5e-3)}


def test_answers_are_those_of_generate(taught: Path, folder: Path, sample: Path, tmp_path: Path) -> None:
    tuned = load_tuned(str(taught), None)
    questions = read_questions(folder, "val", [], [], None)
    predict_to_file(tuned, questions, sample, tmp_path / "all.jsonl", Asking(16, 12), Crew())
    predictions = {row["id"]: row for row in map(json.loads, (tmp_path / "all.jsonl").read_text().splitlines())}
    questions = choose_questions(val_rows(DataSource(str(folder))), 10_000)
    assert len(questions) == len(predictions)
    for size in (5, 16):
        said = answer_sample(tuned, questions, ALL, size, 12, lambda: None, False)
        for place, question in enumerate(questions):
            text, logprob = said[place]
            assert text == predictions[question.id]["predict"], question
            assert logprob == pytest.approx(predictions[question.id]["logprob"], abs=1e-3)
    assert len({text for text, _ in said.values()}) > 10, "a model that says one thing could not tell"


def test_an_image_is_encoded_once(taught: Path, folder: Path) -> None:
    tuned = load_tuned(str(taught), None)
    questions = choose_questions(val_rows(DataSource(str(folder))), 47)
    encoded, begun = [], []
    tuned.model.model.visual.register_forward_hook(
        lambda m, args, kwargs, output: encoded.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    tuned.model.model.language_model.register_forward_hook(lambda m, inputs, output: begun.append(m))
    answer_sample(tuned, questions, ALL, 32, 12, lambda: None, False)
    assert sum(encoded) == len({question.images for question in questions})
    assert len(begun) <= len(make_batches(prompts_by_image(questions), 32)) * 13


@pytest.mark.parametrize("way", ["lora", "qlora"])
def test_training_goes_on_as_if_nothing_had_been_evaluated(
    way: str, taught: Path, folder: Path, tmp_path: Path
) -> None:
    """Dropout, shifted pictures, shuffled trees with turns drawn anew; activation checkpointing, which would switch
    the cache of answers off."""
    losses, adapters = [], []
    for options in ({}, {**EVALUATED, "val_questions": 20, "eval_on_start": True, "per_device_eval_batch_size": 2}):
        trainer, _ = make_trainer(
            taught, folder, tmp_path, TuningArguments(tuning=way, lora_dropout=0.2), max_steps=5, logging_steps=1,
            turns_per_image=4, image_ops=["shift:4"], gradient_checkpointing=True, **options,
        )  # fmt: skip
        trainer.train()
        losses.append(log_of(trainer, "loss"))
        adapters.append(adapter_of(trainer))
        flags = {
            module.gradient_checkpointing
            for module in trainer.model.modules()
            if "gradient_checkpointing" in vars(module)
        }
        assert flags == {True} and trainer.model.training
    torch.manual_seed(99)
    again = trainer.evaluate()
    for name in ("eval_loss", "eval_accuracy"):
        assert again[name] == log_of(trainer, name)[-2], "nothing is left to chance"
    trainer.state.log_history.pop()
    assert losses[0] == losses[1] and len(log_of(trainer, "eval_accuracy")) == 6
    assert all(torch.equal(adapters[0][name], value) for name, value in adapters[1].items())


def test_a_model_that_trains_with_flex_attention_answers_as_with_sdpa(taught: Path, folder: Path) -> None:
    questions = choose_questions(val_rows(DataSource(str(folder))), 30)
    processor, said = load_processor(str(taught), QWEN), {}
    for attention in ("sdpa", FLEX):
        kernels = {"text_config": attention, "vision_config": "sdpa"}
        model = with_adapters(
            QWEN.model_class.from_pretrained(taught, attn_implementation=kernels), QWEN, TuningArguments()
        ).eval()
        assert isinstance(model, PeftModel)
        with answering_attention(model, attention):
            tuned = TunedModel(model, processor, QWEN, [])
            said[attention] = answer_sample(tuned, questions, ALL, 16, 12, lambda: None, False)
        assert model.config.text_config._attn_implementation == attention
        assert model.config.vision_config._attn_implementation == "sdpa"
    assert said[FLEX] == said["sdpa"]


def test_the_best_checkpoint_is_chosen_on_val_and_nothing_of_test_is_opened(
    tiny: Path, folder: Path, sample: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample / "SARimages", tmp_path / "images/SARimages")
    used = {
        image for split in ("train", "val") for q in read_questions(folder, split, [], [], None) for image in q.images
    }
    for image in (tmp_path / "images/SARimages").iterdir():
        if f"SARimages/{image.name}" not in used:
            image.unlink()
    assert not (folder / "test.parquet").exists() and len(used) < 40
    trainer, _ = make_trainer(
        tiny, folder, tmp_path / "out", TuningArguments(tuning="full"), max_steps=20, learning_rate=3e-3,
        image_root=str(tmp_path / "images"), eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
        val_questions=40, val_max_new_tokens=8, load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    trainer.train()
    accuracies = log_of(trainer, "eval_accuracy")
    best = int(np.argmax(accuracies))
    assert accuracies[best] > accuracies[0] and trainer.state.best_global_step == 4 * (best + 1)
    assert trainer.state.best_metric == accuracies[best]
    assert trainer.evaluate()["eval_accuracy"] == accuracies[best]


def test_the_best_checkpoint_is_known_where_the_output_folder_was_moved_to(
    tiny: Path, folder: Path, tmp_path: Path
) -> None:
    def train(out: Path, steps: int) -> RunTrainer:
        trainer, _ = make_trainer(
            tiny, folder, out, TuningArguments(), max_steps=steps, learning_rate=0.0, eval_strategy="steps",
            eval_steps=1, save_strategy="steps", save_steps=1, save_total_limit=2, metric_for_best_model="loss",
        )  # fmt: skip
        trainer.train()
        return trainer

    train(tmp_path / "out", 2)
    (tmp_path / "out").rename(tmp_path / "moved")
    resumed = train(tmp_path / "moved", 4)  # nothing is learned: the first step stays the best
    assert resumed.state.best_model_checkpoint == str(tmp_path / "moved/checkpoint-1")
    assert [path.name for path in list_checkpoints(tmp_path / "moved")] == ["checkpoint-4", "checkpoint-1"]


def test_the_tracker_gets_the_answers_as_they_are_written(taught: Path, folder: Path, tmp_path: Path) -> None:
    class Shown:
        def log_answers(self, step: int, answers: list[Answer]) -> None:
            self.step, self.answers = step, answers

    trainer, _ = make_trainer(taught, folder, tmp_path, TuningArguments(), val_questions=20, **EVALUATED)
    trainer.tracker = Shown()
    trainer.evaluate()
    assert trainer.tracker.step == 0 and len(trainer.tracker.answers) == 20
    for answer, row in zip(trainer.tracker.answers, lines(tmp_path, 0), strict=True):
        shown = {**answer._asdict(), "images": [str(image) for image in answer.images]}
        assert shown == {name: row[name] for name in shown}


def test_the_sample_is_whole_images_and_the_same_however_the_folders_are_listed(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    counts = DataSource(str(folder), tasks=["counting", "identification"])
    captions = DataSource(str(folder), tasks=["description"], subsets=["caption_complex"])
    elsewhere = DataSource(str(data))
    listed = [counts, captions, elsewhere, DataSource(str(folder), tasks=["counting"])]
    questions = choose_questions(val_rows(*listed), 10_000)
    assert questions == choose_questions(val_rows(*reversed(listed)), 10_000)
    assert questions[:30] == choose_questions(val_rows(*reversed(listed)), 30)
    ours = choose_questions(val_rows(counts, captions), 10_000)
    assert {q.task for q in ours} == {"counting", "identification", "description"} == {q.task for q in ours}
    assert {q.subset for q in ours if q.task == "description"} == {"caption_complex"}
    assert len({q.id for q in ours}) == len(ours)
    images = [question.images for question in ours]
    changes = sum(before != after for before, after in pairwise(images))
    assert changes == len(set(images)) - 1 and images != sorted(images)


def test_batches_are_whole_images_where_they_fit_and_ask_every_prompt_once(folder: Path) -> None:
    questions = choose_questions(val_rows(DataSource(str(folder))), 100)
    images = prompts_by_image(questions)
    assert [len({questions[place].images for place in image}) for image in images] == [1] * len(images)
    prompts = [questions[place].prompt for image in images for place in image]
    assert len(prompts) == len(set(prompts)) < 100 and set(prompts) == {question.prompt for question in questions}
    sizes = list(map(len, images))
    batches = make_batches(images, max(sizes))
    assert list(chain(*batches)) == list(chain(*images)) and len(batches) <= len(images)
    assert all(set(image) <= set(batch) for image in images for batch in batches if set(image) & set(batch))
    assert list(map(len, make_batches([[0, 1, 2, 3, 4], [5], [6, 7]], 2))) == [2, 2, 2, 2]


def test_boxes_are_asked_about_in_the_models_words(tiny: Path, tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    turns = [Turn("What is in <box:0>?", "ship."), Turn("And where is it?", "left.")]
    record = Record(["a.png"], 200, 100, "made", "val", None, None, [Box("ship", [80.0, 20.0, 40.0, 30.0])],
                    [Dialogue("d", "boxes", "referring", turns)])  # fmt: skip
    train = Record(["a.png"], 200, 100, "made", "train", None, None, [], [Dialogue("t", "x", "others", turns[1:])])
    write_data_folder(tmp_path / "data", to_table([train, record]), [], tmp_path, {})
    trainer, _ = make_trainer(
        tiny, tmp_path / "data", tmp_path / "out", TuningArguments(), val_questions=9, **EVALUATED
    )
    trainer.evaluate()
    first, second = lines(tmp_path / "out", 0)
    assert first["question"] == "What is in [77, 19, 115, 48]?" and second["question"] == "And where is it?"
    assert trainer.questions[1].turns[0]["question"] == first["question"], "earlier turns are the context"


def question(number: int, task: str, images: tuple[str, ...] = ("a.png",)) -> ValQuestion:
    turns = [{"question": f"{task} {number}?", "answer": f"{number}. A ship."}]
    return ValQuestion(f"d{number}#0", Path("/root"), images, "made", task, turns)


def test_scores_are_those_of_the_scorers_and_unknown_where_nothing_was_answered() -> None:
    questions = [question(0, "counting"), question(1, "counting"), question(2, "others")]
    questions += [question(number, "description", (f"{number}.png",)) for number in (3, 4, 5)]
    said = {0: ("0. a ship", -1.0), 1: ("2. a ship", -1.0), 3: ("3. A ship.", -1.0), 5: ("A dog.", -1.0)}
    answers = judge(questions, said)
    assert [answer.right for answer in answers] == [True, False, None, None]
    assert answers[0].images == [Path("/root/a.png")]
    rows = [
        Row(a.id, tuple(map(str, a.images)), "", a.task, None, "", None, "", a.label, a.predict) for a in answers[2:]
    ]
    metrics = score(questions, answers)
    assert metrics["accuracy"] == metrics["accuracy_counting"] == 0.5 and math.isnan(metrics["accuracy_others"])
    assert metrics["cider"] == score_captions(rows, "official")["metrics"]["cider"] > 0
    assert score(questions, []).keys() == metrics.keys() and all(map(math.isnan, score(questions, []).values()))
    assert score(questions[:2], answers[:2]).keys() == {"accuracy", "accuracy_counting"}


def test_images_that_cannot_be_read_are_reported_once_and_their_questions_left_out(
    taught: Path, folder: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trainer, _ = make_trainer(taught, folder, tmp_path / "out", TuningArguments(), val_questions=47, **EVALUATED)
    shutil.copytree(sample, tmp_path / "sample")
    torn = trainer.questions[0].images
    (tmp_path / "sample" / torn[0]).write_bytes(b"torn")
    moved = [{**vars(one), "image_root": tmp_path / "sample"} for one in trainer.questions]
    trainer.questions = [ValQuestion(**one) for one in moved]
    lost = sum(one.images == torn for one in trainer.questions)
    capsys.readouterr()
    for _ in range(2):
        assert 0 < trainer.evaluate()["eval_accuracy"] < 1
    assert len(lines(tmp_path / "out", 0)) == 47 - lost < 47
    said = [line for line in capsys.readouterr().out.splitlines() if "val answers" in line]
    [line] = said
    assert f"{lost} questions are left out, since their images cannot be read: 1 (such as" in line and torn[0] in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_questions": 5}, "val_questions 5: nothing is evaluated; set --eval_strategy steps"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model loss: nothing is evaluated"),
        ({"eval_on_start": True}, "eval_on_start True: nothing is evaluated"),
        ({"val_questions": -1, **EVALUATED}, "val_questions -1: must be at least 0"),
        ({"val_batch_size": 0}, "val_batch_size 0: must be at least 1"),
        ({"val_max_new_tokens": 0}, "val_max_new_tokens 0: must be at least 1"),
        ({"metric_for_best_model": "accuracy", **EVALUATED}, "metric_for_best_model accuracy: needs answers"),
        ({"metric_for_best_model": "test_loss", **EVALUATED}, "metric_for_best_model test_loss: choose one of loss"),
        ({"metric_for_best_model": "test_accuracy", "val_questions": 5, **EVALUATED}, "test_accuracy: choose one of"),
        ({"metric_for_best_model": "accuracy_description", "val_questions": 5, **EVALUATED}, "choose one of loss"),
    ],
)
def test_what_no_evaluation_gives_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        TrainArguments(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("evaluated", "saved", "accepted"),
    [
        (("steps", 2000), ("steps", 500), True),
        (("steps", 300), ("steps", 500), False),
        (("steps", 250), ("steps", 500), False),
        (("steps", 0.3), ("steps", 0.1), True),
        (("steps", 0.1), ("steps", 0.3), False),
        (("steps", 100), ("steps", 0.1), False),
        (("epoch", 1), ("epoch", 1), True),
        (("epoch", 1), ("steps", 1), False),
        (("steps", 1), ("epoch", 1), False),
        (("steps", 7), ("best", 500), True),
        (("steps", 7), ("no", 500), True),
    ],
)
def test_the_best_step_must_have_a_checkpoint(
    evaluated: tuple[str, float], saved: tuple[str, float], accepted: bool, tmp_path: Path
) -> None:
    options = dict(zip(("eval_strategy", "eval_steps", "save_strategy", "save_steps"), evaluated + saved, strict=True))
    options |= {"output_dir": str(tmp_path), "metric_for_best_model": "loss"}
    if accepted:
        TrainArguments(**options)
    else:
        with pytest.raises(InputError, match="metric_for_best_model loss: the best step may have no checkpoint"):
            TrainArguments(**options)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("loss", False), ("eval_loss", False), ("accuracy", True), ("eval_accuracy_counting", True), ("cider", True)],
)
def test_whether_more_is_better_follows_from_the_metric(metric: str, greater: bool, tmp_path: Path) -> None:
    options = {"metric_for_best_model": metric, "val_questions": 5, "save_strategy": "no", **EVALUATED}
    assert TrainArguments(output_dir=str(tmp_path), **options).greater_is_better == greater


def test_a_metric_that_the_sample_cannot_give_is_refused_before_any_model_is_loaded(
    tiny: Path, folder: Path, tmp_path: Path
) -> None:
    questions = choose_questions(val_rows(DataSource(str(folder), tasks=["counting"])), 5)
    for metric in ("loss", "eval_loss", "accuracy", "eval_accuracy_counting"):
        check_metric(metric, questions)
    options = {"val_questions": 5, "metric_for_best_model": "eval_cider", "tasks": ["counting"], **EVALUATED}
    with pytest.raises(
        InputError, match="eval_cider: none of the 5 val_questions is of that kind; ask more, or choose"
    ):
        make_trainer(tiny, folder, tmp_path, TuningArguments(), **options)
