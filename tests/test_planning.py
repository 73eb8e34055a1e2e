"""The planner as a program, what it reads, and the headers that it writes."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, run_here

from sarlang_sft.arguments import DataArguments
from sarlang_sft.errors import InputError
from sarlang_sft.planning.headers import planned_text
from sarlang_sft.planning.rows import FORMS, PUBLISHED_TRAIN, find_dialogues
from sarlang_sft.planning.sharding import SHIPPED, Sharding, read_sharding
from sarlang_sft.shard_writing import write_sharded

CONTRASTIVE = ("sarclip", "sarcap")  # which the planner does not know
CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "recipes" / "configs").rglob("*.yaml")
    if not path.name.startswith(CONTRASTIVE)
)
QUICK = ("demo.yaml", "qwen2_5_vl_3b.yaml")
WORDS = ("--output_dir", "unused", "--data", "none")


def test_deepspeed_configurations_are_read(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto", "sub_group_size": 1e8}
    path.write_text(json.dumps({"zero_optimization": zero, "train_batch_size": 16}))
    read = read_sharding(path, 16, 1)
    assert read == Sharding("ZeRO", 3, offload_optimiser=True, sub_group=100_000_000)
    assert str(read) == "ZeRO-3, optimiser on the CPU"


@pytest.mark.parametrize("name", SHIPPED)
def test_changes_are_planned_with_the_files_that_they_name(name: str) -> None:
    assert read_sharding(ROOT / "deepspeed_configs" / f"{name}.json", 8, 1) == SHIPPED[name]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "zero_optimization"),
        ('{"zero_optimization": {"stage": 4}}', "stage 4"),
        ('{"zero_optimization": {"stage": 2}, "train_batch_size": 12}', "train_batch_size 12 is not the 16"),
    ],
)
def test_a_deepspeed_configuration_that_cannot_be_meant_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_sharding(path, 16, 2)


@pytest.mark.parametrize(
    "config",
    [pytest.param(path, id=path.name, marks=[] if path.name in QUICK else pytest.mark.slow) for path in CONFIGS],
)
def test_headers_are_what_the_planner_says_now(config: Path) -> None:
    assert planned_text(ROOT, config) == (ROOT / config).read_text(encoding="utf-8"), "run `make plans`"


def test_a_published_model_is_planned_from_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["--config", ROOT / "recipes/configs/qwen2_5_vl_3b_lora.yaml", "--gpus", 2, "--gpu_memory", 14]
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    run_here(monkeypatch, "recipes/plan.py", *words, "--price", 2, "--out", out)
    screen, plan = capsys.readouterr().out, json.loads(out.read_text())
    assert "trainable: 14,966,784 of 3,769,589,760" in screen and "published counts" in screen
    assert plan["rows"]["image_tokens"] == 18 * 18, "512 pixels are rounded to 504, 28 for every token"
    assert plan["fits"] and not plan["changes"], "it fits, but not easily"
    needed = plan["memory"]["needed"] / 1e9
    run_here(monkeypatch, "recipes/plan.py", *words[:-1], needed * 1.05)
    assert "MAY NOT FIT" in capsys.readouterr().out, "as far as the planner was wrong, it would not"
    with pytest.raises(SystemExit):
        run_here(monkeypatch, "recipes/plan.py", *words, "--global_batch_size", 7)
    assert "2 ranks x per_device_train_batch_size 1 = 2 rows at once do not divide it" in capsys.readouterr().err
    assert plan["speed"]["mfu_source"] == "assumed"
    assert plan["speed"]["cost"] == pytest.approx(2 * 2 * plan["speed"]["hours"])
    assert plan["memory"]["allocated"] == sum(plan["memory"]["parts"].values())


def test_rows_come_from_the_data_folder_where_there_is_one(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["--model_name_or_path", tiny, "--data", data, "--output_dir", tmp_path, "--gpus", 1, "--out", out]
    run_here(monkeypatch, "recipes/plan.py", *words, "--gpu_memory", 0.01, "--num_train_epochs", 1, "--mfu", 0.5)
    plan, screen = json.loads(out.read_text()), capsys.readouterr().out
    assert str(data) in plan["rows"]["source"] and plan["rows"]["dialogues_per_image"] > 1
    assert not plan["fits"] and plan["changes"] and "DOES NOT FIT" in screen
    assert any(name.startswith("and ") for name in plan["changes"]), "none is enough: they are added up"
    assert plan["changes"]["--tuning qlora"]["needed"] < plan["memory"]["needed"]
    assert plan["speed"]["mfu_source"] == "given"


def test_rows_come_from_a_data_folder_on_a_store(data: Path, sample: Path, tmp_path: Path) -> None:
    write_sharded(data, tmp_path / "shards", sample, 100_000, 0)
    here, url = DataArguments(str(data)), f"file://{tmp_path}/shards"
    there = DataArguments(url, shard_cache=str(tmp_path / "cache"))
    assert find_dialogues(there).source.startswith(url)
    assert find_dialogues(there).count == find_dialogues(here).count


def test_flat_rows_are_planned_as_long_as_the_longest_one(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plan.json"
    words = ["--model_name_or_path", tiny, "--data", data, "--output_dir", tmp_path, "--gpus", 1, "--out", out]
    run_here(monkeypatch, "recipes/plan.py", *words, "--image_trees", "false", "--per_device_train_batch_size", 2)
    plan = json.loads(out.read_text())
    rows, tokens, images, *_ = plan["setup"]["batch"].values()
    assert tokens == plan["rows"]["longest"] > plan["rows"]["tokens_per_row"] + 1
    assert rows == images == 2


def test_weights_and_caps_of_a_mixture_change_what_an_epoch_takes(data: Path) -> None:
    whole = find_dialogues(DataArguments(data=str(data)))
    twice = find_dialogues(DataArguments(data=[{"path": str(data), "weight": 2.0}]))
    capped = find_dialogues(DataArguments(data=[{"path": str(data), "caps": {"identification": 0}}]))
    assert twice.count == 2 * whole.count and capped.count < whole.count
    assert whole.per_image == twice.per_image


def test_published_counts_follow_the_tasks() -> None:
    counting = next(form for form in FORMS if form.task == "counting")
    found = find_dialogues(DataArguments(data="none", tasks=["counting"]))
    assert found.count == round(PUBLISHED_TRAIN * counting.texts / sum(form.texts for form in FORMS))
    assert set(found.texts) == {counting.question, counting.answer}
    with pytest.raises(InputError, match="grounding"):
        find_dialogues(DataArguments(data="none", tasks=["grounding"]))


def test_a_model_planned_is_not_loaded_and_nothing_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    (model / "model.safetensors").unlink()
    words = ["--model_name_or_path", model, "--data", tmp_path / "none", "--output_dir", tmp_path / "run"]
    run_here(monkeypatch, "recipes/plan.py", *words, "--gpus", 1)
    assert not (tmp_path / "run").exists()
    assert "fits easily" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "recipes/configs/none.yaml"], "no such file"),
        (["--model_name_or_path", "none/such-model", *WORDS], "none/such-model"),
        (["--model_name_or_path", "tests", *WORDS], "tests: neither a folder with a config.json"),
        (["--gpus", "0"], "gpus 0: must be at least 1"),
        (["--gpu_memory", "-80"], "gpu_memory -80.0: must be above 0"),
        (["--mfu", "35"], "mfu 35.0"),
        (["--price", "nan"], "price nan"),
        (["--gpu", "V100"], "choose one of H100"),
        (["--optim", "adafactor"], "optim adafactor"),
        (["--attn_implementation", "eager"], "attn_implementation eager"),
        (["--measured", "benchmarks/results/cpu_throughput.json"], "no mfu"),
        (["--measured", "Makefile"], "no file of benchmarks/throughput.py"),
        (["--deepspeed", "none.json"], "deepspeed none.json"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, "recipes/plan.py", *words)
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert stopped.value.code == 2 and said in line
