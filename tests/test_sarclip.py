"""recipes/sarclip.py and recipes/sarcap.py on tiny models."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, run_script
from PIL import Image
from safetensors.torch import load_file

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.arguments import PairDataArguments, PairModelArguments, PairTrainArguments, split_stages
from sarlang_sft.contrastive.batches import EpochPairs
from sarlang_sft.contrastive.models import WEIGHTS, load_model
from sarlang_sft.contrastive.pairs import make_pairs
from sarlang_sft.contrastive.tuning import PairTuning
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder

KINDS = ("ship", "tank", "bridge", "harbor")
QUICK = [
    "--per_device_train_batch_size", 8, "--learning_rate", 1e-3, "--warmup_steps", 0, "--max_steps", 4,
    "--use_cpu", "true", "--dataloader_num_workers", 0, "--report_to", "none", "--save_strategy", "no",
    "--logging_steps", 1,
]  # fmt: skip


def write_pairs(
    folder: Path, split_counts: dict[str, int], source: str = "shapes", bad: tuple[int, ...] = (), said: str = ""
) -> Path:
    """A data folder of small pictures, each with two captions; those of a kind have the same ones.

    Args:
        bad: Training images that are no pictures.
        said: Before every caption.
    """
    rng, records = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for split, count in split_counts.items():
        for number in range(count):
            kind, name = number % len(KINDS), f"images/{split}_{number}.png"
            pixels = rng.integers(0, 40, (32, 32), np.uint8)
            pixels[8 * kind : 8 * kind + 8] += 160
            Image.fromarray(pixels).save(folder / name)
            if split == "train" and number in bad:
                (folder / name).write_bytes(b"no picture")
            texts = (f"{said}A SAR image of a {KINDS[kind]}.", f"{said}This shows one {KINDS[kind]}.")
            dialogues = [
                Dialogue(
                    f"{source}{split}{number}:{n}", "caption", "description", [Turn("Describe.", text)], "General"
                )
                for n, text in enumerate(texts)
            ]
            records.append(Record([name], 32, 32, source, split, dialogues=dialogues))
    write_data_folder(folder / "data", to_table(records), [], folder, {})
    return folder / "data"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("shapes") / "made", {"train": 24, "val": 8, "test": 8})


@pytest.fixture
def train(run: Callable[..., str], shapes: Path) -> Callable[..., str]:
    def train(out: Path, *words: object, model: object = "sar-vit-tiny", data: Path = shapes, code: int = 0) -> str:
        named = ["--model_name_or_path", model, "--data", data, "--output_dir", out]
        recipe = "sarcap" if "coca" in str(model) else "sarclip"
        return run(f"recipes/{recipe}.py", *named, *QUICK, *words, code=code)

    return train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def logged(folder: Path, name: str = "loss") -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [line[name] for line in state["log_history"] if name in line]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sarlang_sft.contrastive.models import save_model

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("base") / "vit"
    save_model(load_model("sar-vit-tiny"), folder)
    return folder


def test_every_parameter_moves_the_loss_falls_and_retrieval_on_val_is_scored(
    train: Callable[..., str], base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--max_steps", 30, "--eval_strategy", "steps", "--eval_steps", 15, "--image_ops", "fixed", "shift:2"]
    output = train(out, *words, model=base)
    assert "8 different captions, 48 pairs of shapes; an epoch has 3 batches of 8, and 0 pairs" in output
    unmoved = weights(base).keys() - moved(weights(base), weights(out))
    assert not {name for name in unmoved if "attn_mask" not in name}
    losses = logged(out)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3 and len(logged(out, "pairs_per_s")) == 30
    recalls = logged(out, "eval_mean_recall")
    assert len(recalls) == 2 and recalls[-1] > 0.5  # 4 kinds of 8 images, each image has 2 of 8 texts
    assert (out / "image_ops.json").is_file() and load_model(str(out)).image_ops == ["fixed", "shift:2"]
    lines = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines() if line]
    assert [line["step"] for line in lines] == [15, 30] and lines[0]["eval_mean_recall"] == recalls[0]
    assert "this run is finished" in train(out, *words, model=base)


def test_lora_moves_the_layers_that_have_adapters_and_the_result_is_merged(
    train: Callable[..., str], base: Path, tmp_path: Path
) -> None:
    output = train(tmp_path / "out", "--tuning", "lora", model=base)
    changed = moved(weights(base), weights(tmp_path / "out"))
    assert {name.replace("in_proj_weight", "in_proj.weight") for name in changed} == {
        "logit_scale",
        *(
            f"{tower}transformer.resblocks.{block}.{layer}.weight"
            for tower, blocks in (("visual.", 4), ("", 2))
            for block in range(blocks)
            for layer in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        ),
    }
    assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()
    assert "image tower 147,456 of 990,464" in output  # 4 blocks of 4 x 16 (128 + 128) + 2 x 16 (128 + 512)


def test_a_locked_image_tower_stays_as_it_is(train: Callable[..., str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(tmp_path / "start", model="sar-resnet-tiny")
    before = weights(tmp_path / "start")
    train(tmp_path / "out", "--tuning", "locked_image", model=tmp_path / "start")
    changed = moved(before, weights(tmp_path / "out"))
    assert changed and not {name for name in changed if name.startswith("visual.")}  # batch statistics neither
    assert {"logit_scale", "text_projection", "token_embedding.weight"} <= changed


@pytest.mark.parametrize(
    ("model", "tuning"),
    [
        ("sar-resnet-tiny", "full"),
        ("sar-vit-tiny", "lora"),
        pytest.param("sar-coca-tiny", "lora", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_an_undisturbed_one(
    train: Callable[..., str], tmp_path: Path, model: str, tuning: str
) -> None:
    words = ["--tuning", tuning, "--lora_dropout", 0.1, "--save_strategy", "steps", "--save_steps", 2]
    words += ["--micro_batch_size", 3, "--image_ops", "fixed", "shift:3"]
    words += ["--caption_loss_weight", 1] if "coca" in model else []
    train(tmp_path / "whole", *words, model=model)
    output = train(tmp_path / "rest", *words, "--resume", tmp_path / "whole/checkpoint-2", model=model)
    assert "Resuming from" in output
    assert not moved(weights(tmp_path / "whole"), weights(tmp_path / "rest"))
    assert logged(tmp_path / "whole") == logged(tmp_path / "rest")


@pytest.mark.slow  # gradients of two ranks are compared in test_contrastive_loss.py
def test_two_ranks_learn_what_one_learns(train: Callable[..., str], shapes: Path, tmp_path: Path) -> None:
    words = ["--global_batch_size", 8, "--eval_strategy", "steps", "--eval_steps", 4]
    train(tmp_path / "one", *words)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    named = ["--model_name_or_path", "sar-vit-tiny", "--data", shapes, "--output_dir", tmp_path / "two"]
    run_script(*torchrun, "recipes/sarclip.py", *named, *QUICK, *words, "--micro_batch_size", 2)
    assert logged(tmp_path / "one") == pytest.approx(logged(tmp_path / "two"), abs=1e-4)
    assert logged(tmp_path / "one", "eval_mean_recall") == pytest.approx(logged(tmp_path / "two", "eval_mean_recall"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3


def test_stages_go_on_from_each_other_and_where_they_were_stopped(
    run: Callable[..., str], train: Callable[..., str], shapes: Path, tmp_path: Path
) -> None:
    optical = write_pairs(tmp_path / "optical", {"train": 16}, "optical")
    stages = [
        {"name": "first", "data": str(optical), "learning_rate": "2e-3", "max_steps": 2},
        {"name": "second", "negatives": "plain", "tuning": "lora"},
    ]
    config = {
        "model_name_or_path": "sar-vit-tiny", "data": str(shapes), "output_dir": str(tmp_path / "out"),
        "stages": stages, "per_device_train_batch_size": 8, "learning_rate": "1e-3", "warmup_steps": 0, "max_steps": 3,
        "use_cpu": True,
        "dataloader_num_workers": 0, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = run("recipes/sarclip.py", "--config", tmp_path / "config.yaml")
    assert "16 images" in output and "24 images" in output
    first, second = tmp_path / "out/first", tmp_path / "out/second"
    assert (len(logged(first)), len(logged(second))) == (2, 3)
    changed = moved(weights(first), weights(second))
    assert changed and not {name for name in changed if "resblocks" not in name} - {"logit_scale"}
    assert max(logged(first, "learning_rate")) == 2e-3 and max(logged(second, "learning_rate")) == 1e-3
    facts = json.loads((second / "run.json").read_text())["facts"]["options"]
    assert facts["model_name_or_path"] == str(first) and facts["negatives"] == "plain" and facts["stages"] is None

    kept = weights(second)
    for path in second.iterdir():  # as if it had been killed there
        path.unlink() if path.is_file() else None
    again = run("recipes/sarclip.py", "--config", tmp_path / "config.yaml")
    assert f"{first}: this run is finished" in again and not moved(kept, weights(second))


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"name": ".."}, "needs a `name` of its own"),
        ({"name": ""}, "needs a `name` of its own"),
        ({"name": "first"}, "needs a `name` of its own"),
        ({"name": "b", "negatives": "all"}, "stages: b: negatives `all`"),
        ({"name": "b", "lr_scheduler_type": "foo"}, "lr_scheduler_type `foo`"),
        ({"name": "b", "max_steps": "many"}, "`max_steps: many` is not of the type int"),
        ({"name": "b", "lora_r": [1]}, "`lora_r: [1]` is not of the type int"),
        ({"name": "b", "leave_out": "shapes"}, "`leave_out: shapes` is not of the type list"),
        ({"name": "b", "leave_out": ["nope"]}, "stages: b: leave_out nope: no source"),
        ({"name": "b", "data": "missing"}, "stages: b: --data missing: no data folder"),
        ({"name": "b", "learning_rates": 1}, "did you mean `learning_rate`"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_before_the_first_one_trains(
    run: Callable[..., str], shapes: Path, tmp_path: Path, stage: dict[str, object], told: str
) -> None:
    config = {"model_name_or_path": "sar-vit-tiny", "data": str(shapes), "output_dir": str(tmp_path / "out")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"stages": [{"name": "first"}, stage]}))
    assert told in run("recipes/sarclip.py", "--config", tmp_path / "config.yaml", *QUICK, code=2)
    assert not (tmp_path / "out").exists()


def test_a_model_keeps_how_it_sees_and_is_not_trained_in_its_own_folder(
    train: Callable[..., str], base: Path, tmp_path: Path
) -> None:
    train(tmp_path / "first", "--image_ops", "log", "crop:32", "--resize_mode", "squash", model=base)
    train(tmp_path / "second", "--max_steps", 1, model=tmp_path / "first")
    kept = load_model(str(tmp_path / "second"))
    assert (kept.image_ops, kept.preprocess.resize_mode) == (["log", "crop:32"], "squash")
    before = weights(base)
    assert "is the model to start from" in train(base, model=base, code=2)
    assert not moved(before, weights(base))


def test_checkpointed_activations_and_smaller_micro_batches_change_nothing(
    train: Callable[..., str], base: Path, tmp_path: Path
) -> None:
    saved = ["--save_strategy", "steps", "--save_steps", 2]
    train(tmp_path / "plain", *saved, model=base)
    train(tmp_path / "again", "--gradient_checkpointing", "true", model=base)
    resumed = ["--resume", tmp_path / "plain/checkpoint-2", "--micro_batch_size", 3, *saved]
    assert "micro_batch_size: None then, 3 now" in train(tmp_path / "smaller", *resumed, model=base)
    for other in ("again", "smaller"):
        assert logged(tmp_path / "plain") == pytest.approx(logged(tmp_path / other), abs=1e-4)
    refused = train(tmp_path / "resnet", "--gradient_checkpointing", "true", model="sar-resnet-tiny", code=2)
    assert "a ResNet is not checkpointed" in refused


def test_captions_that_are_too_long_are_told(train: Callable[..., str], tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "made", {"train": 8}, said="word " * 50)
    assert "train: 8 of 8 different texts are cut at the model's 48 tokens" in train(tmp_path / "out", data=data)


@pytest.mark.slow
def test_ranks_evaluate_the_statistics_that_are_saved(shapes: Path, run: Callable[..., str], tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    named = ["--model_name_or_path", "sar-resnet-tiny", "--data", shapes, "--output_dir", tmp_path / "two"]
    evaluated = ["--eval_strategy", "steps", "--eval_steps", 4, "--micro_batch_size", 4]
    run_script(*torchrun, "recipes/sarclip.py", *named, *QUICK, *evaluated)
    model = ["--model", tmp_path / "two", "--data", shapes, "--split", "val", "--out", tmp_path / "val.json"]
    run("eval/retrieval.py", *model)
    saved = json.loads((tmp_path / "val.json").read_text())["figures"]["MeanRecall"]["value"]
    assert logged(tmp_path / "two", "eval_mean_recall")[-1] == pytest.approx(saved, abs=1e-6)


def test_sarcap_learns_to_caption_and_to_retrieve(train: Callable[..., str], tmp_path: Path) -> None:
    words = ["--caption_loss_weight", 1, "--max_steps", 5, "--learning_rate", 3e-3]
    train(tmp_path / "out", *words, model="sar-coca-tiny")
    captions = logged(tmp_path / "out", "caption_loss")
    assert len(captions) == 5 and captions[-1] < captions[0] - 2  # ln 49,408 is 10.8
    total = np.array(captions) + logged(tmp_path / "out", "contrastive_loss")
    assert np.allclose(total, logged(tmp_path / "out"), atol=1e-3)
    assert load_model(str(tmp_path / "out")).captions


def test_unreadable_images_are_left_out_of_the_loss_and_counted(train: Callable[..., str], tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "made", {"train": 16}, bad=(3, 7))
    output = train(tmp_path / "out", data=data)
    assert "Left out 2 images that cannot be read" in output and np.isfinite(logged(tmp_path / "out")).all()
    assert "max_bad_images is 1" in train(tmp_path / "strict", "--max_bad_images", 1, data=data, code=2)


def test_an_epoch_has_a_caption_of_every_image_or_every_pair() -> None:
    paths = [Path(f"{n // 3}") for n in range(30)]
    pairs = make_pairs(paths, [f"text {n}" for n in range(30)], ["x"] * 30)
    one = EpochPairs(pairs, "one", seed=0)
    drawn = set()
    for epoch in range(20):
        one.set_epoch(epoch)
        rows = [one[row] for row in range(len(one))]
        assert sorted(row.image for row in rows) == list(range(10))
        assert all(row.text // 3 == row.image for row in rows)
        drawn |= {row.text for row in rows}
    assert drawn == set(range(30))
    again = EpochPairs(pairs, "one", seed=0)
    again.set_epoch(19)
    assert [again[row] for row in range(10)] == rows
    assert sorted(row.text for row in map(EpochPairs(pairs, "all", 0).__getitem__, range(30))) == list(range(30))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--per_device_train_batch_size", 25], "an epoch has 24 pairs (captions: one), less than one batch of 25"),
        (["--leave_out", "MSTAR"], "leave_out MSTAR: no source of"),
        (["--leave_out", "shapes"], "leave_out shapes"),
        (["--caption_loss_weight", 1], "writes no captions; choose a CoCa"),
        (["--gradient_accumulation_steps", 2], "set micro_batch_size"),
        (["--negatives", "none"], "choose one of masked"),
        (["--weights", "absent.safetensors"], "no such file"),
        (["--eval_strategy", "steps", "--metric_for_best_model", "loss"], "choose one of mean_recall"),
        (["--stages", "first"], "is a list in a YAML file"),
        (["--image_ops", "log", "fixed"], "must come first"),
        (["--neftune_noise_alpha", 5], "is for language models"),
        (["--lr_scheduler_type", "cosin"], "did you mean `cosine`"),
        (["--image_size", 60], "must be a multiple of 8"),
        (["--resize_mode", "crop"], "choose one of longest"),
        (["--load_best_model_at_end", "true"], "nothing is evaluated"),
    ],
)
def test_what_cannot_be_is_said_before_training(
    train: Callable[..., str], tmp_path: Path, words: list[object], told: str
) -> None:
    assert told in train(tmp_path / "out", *words, code=2)


def test_a_coca_and_weights_of_another_model_are_refused(
    train: Callable[..., str], base: Path, run: Callable[..., str], shapes: Path, tmp_path: Path
) -> None:
    coca = ["--model_name_or_path", "sar-coca-tiny", "--data", shapes, "--output_dir", tmp_path / "out", *QUICK]
    assert "set --caption_loss_weight 1" in run("recipes/sarclip.py", *coca, code=2)
    other = train(tmp_path / "out", "--weights", base / WEIGHTS, model="sar-resnet-tiny", code=2)
    assert "visual.conv1.weight is (128, 3, 8, 8), not (8, 3, 3, 3)" in other


@pytest.mark.parametrize(
    "config", sorted((ROOT / "recipes/configs").glob("sarc[la]*p_[!e]*.yaml")), ids=lambda p: p.stem
)
def test_a_config_is_what_its_header_says(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    assert f"recipes/configs/{config.name}" in text and "# Hardware:" in text
    kinds = [PairModelArguments, PairTuning, PairDataArguments, PairTrainArguments]
    words = ["--config", str(config), "--output_dir", str(tmp_path), "--report_to", "none"]
    stages = split_stages(*parse_arguments(kinds, "", args=words))
    for stage in stages:
        options = stage.training
        if "mstar" in config.stem or "demo" in config.stem:
            continue
        assert (options.num_train_epochs, options.warmup_steps, options.max_grad_norm) == (10, 1000, 1.0)
        rates = {"sarclip": (5e-5, 0.01), "sarcap": (1e-5, 0.1)}[config.stem.split("_")[0]]
        assert (options.learning_rate, options.weight_decay) == rates
    assert [stage.name for stage in stages] == (["optical", "sar"] if len(stages) == 2 else [""])
