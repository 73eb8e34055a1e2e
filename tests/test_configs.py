"""Every config file, as its header says to run it, on a tiny model of its family."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assemble

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import find_backbone
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.tuning import TuningArguments

CONTRASTIVE = ("sarclip", "sarcap")  # of other recipes, which have tests of their own
CONFIGS = sorted(path for path in (ROOT / "recipes/configs").rglob("*.yaml") if not path.name.startswith(CONTRASTIVE))
FAMILIES = {
    "Qwen/Qwen2-VL": "qwen2_vl",
    "Qwen/Qwen2.5-VL": "qwen2_5_vl",
    "Qwen/Qwen3-VL": "qwen3_vl",
    "llava-hf/llava-1.5": "llava",
    "llava-hf/llava-v1.6": "llava_next",
    "llava-hf/llava-onevision": "llava_onevision",
    "runs/llava_sarclip": "llava",  # of recipes/put_tower.py
}
WANTED = [
    "qwen2_vl_7b_lora",
    "qwen2_5_vl_3b_lora",
    "qwen2_5_vl_7b_lora",
    "qwen2_5_vl_7b_full",
    "qwen2_5_vl_32b_qlora",
    "qwen2_5_vl_72b_qlora",
    "qwen3_vl_4b_lora",
    "qwen3_vl_8b_lora",
    "llava_1_5_7b_lora",
    "llava_1_5_13b_lora",
    "llava_next_7b_lora",
    "llava_onevision_7b_lora",
    "llava_sarclip_projector",
    "llava_sarclip_lora",
    "paper/qwen2_vl_7b",
    "paper/qwen2_5_vl_7b",
    "paper/qwen2_5_vl_3b",
    "paper/llava_1_5_7b",
    "paper/llava_1_5_13b",
]
Arguments = tuple[ModelArguments, TuningArguments, DataArguments, TrainArguments]


def name_of(config: Path) -> str:
    return str(config.relative_to(ROOT / "recipes/configs").with_suffix(""))


def read(config: Path, *words: object) -> Arguments:
    """The config through the argument classes of the recipe that its header names."""
    recipe = re.search(r"^#   .*recipes/(\w+)\.py", config.read_text(), re.MULTILINE)[1]
    names = runpy.run_path(str(ROOT / f"recipes/{recipe}.py"))
    model, tuning = (names.get(f"Full{kind.__name__}", kind) for kind in (ModelArguments, TuningArguments))
    args = ["--config", str(config), *map(str, words)]
    return parse_arguments([model, tuning, DataArguments, TrainArguments], "", args=args)


def test_the_configs_that_users_expect_are_there() -> None:
    assert set(WANTED) <= {name_of(config) for config in CONFIGS}


# Configs that differ from another one in the size of the model, or in the base that they name, alone.
ALIKE = {
    "qwen2_5_vl_3b_lora", "qwen2_5_vl_32b_qlora", "qwen3_vl_8b_lora", "llava_1_5_13b_lora", "paper/qwen2_5_vl_3b",
    "paper/llava_1_5_13b", "llava_sarclip_lora",
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [pytest.param(one, marks=pytest.mark.slow) if name_of(one) in ALIKE else one for one in CONFIGS],
    ids=[name_of(one) for one in CONFIGS],
)
def test_config_trains_a_tiny_model_of_its_family(
    config: Path, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    model, *_ = read(config)
    hub = [family for prefix, family in FAMILIES.items() if model.model_name_or_path.startswith(prefix)]
    [family] = hub or [model.tiny_family]
    overrides = {
        "model_name_or_path": tinies[family], "data": data, "output_dir": tmp_path, "max_steps": 1,
        "gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "report_to": "none", "save_strategy": "no",
        "use_cpu": "true",
    }  # fmt: skip
    words = [word for name, value in overrides.items() for word in (f"--{name}", value)]
    model, tuning, data_args, training = read(config, *words)
    trainer, trainable = assemble(model, tuning, data_args, training, plan=None)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[-1]["train_loss"]))
    assert bool(trainable.adapted) == tuning.adapts()


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_header_says_what_it_is_and_how_to_run_it(config: Path, tinies: dict[str, Path]) -> None:
    text = config.read_text()
    name = name_of(config)
    recipe, named = re.search(
        r"^#   .*recipes/(\w+)\.py(?:.* --config recipes/configs/(\S+)\.yaml)?", text, re.M
    ).groups()
    assert "# Hardware:" in text or "on one A100" in text
    model, tuning, data, training = read(config)
    if not name.startswith("demo"):
        assert named == name
        assert Path(training.output_dir).name == name.replace("/", "_") or "outputs" in training.output_dir
    assert recipe.endswith("_full") == (not tuning.adapts())
    for prefix, family in FAMILIES.items():
        if model.model_name_or_path.startswith(prefix):
            assert find_backbone(str(tinies[family])).recipes == recipe.split("_")[0]
            trains_language_model = tuning.modes()["language_model"] == "full"
            assert model.dtype == ("float32" if trains_language_model else "bfloat16") and training.bf16
            assert family.startswith("qwen") == (data.max_pixels is not None)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.parent.name == "paper"], ids=name_of)
def test_published_recipe_is_what_the_paper_says(config: Path) -> None:
    model, tuning, data, training = read(config)
    assert (tuning.lora_r, list(tuning.modes().values())) == (8, ["frozen", "frozen", "lora"])
    assert (training.learning_rate, training.num_train_epochs, training.warmup_steps) == (1e-4, 3, 0.1)
    assert not data.image_trees and training.per_device_train_batch_size * training.gradient_accumulation_steps == 8
    assert training.lr_scheduler_type == "cosine" and training.bf16 and model.dtype == "bfloat16"


@pytest.mark.parametrize("path", sorted((ROOT / "deepspeed_configs").glob("*.json")), ids=lambda path: path.stem)
def test_a_deepspeed_file_states_its_sizes_and_is_explained(path: Path) -> None:
    """`auto` would read a `hidden_size` that models of several parts do not have (LlamaFactory#4754)."""
    config = json.loads(path.read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == int(path.stem[4]) and zero["reduce_bucket_size"] > 0 and "auto" not in zero.values()
    assert ("offload_optimizer" in zero) == ("offload" in path.stem)
    assert ("stage3_gather_16bit_weights_on_model_save" in zero) == (zero["stage"] == 3)
    assert f"| `{path.name}` |" in (path.parent / "README.md").read_text()
