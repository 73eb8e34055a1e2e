"""Models from their folders: what is refused, and what a checkpoint brings back."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_trainer
from transformers import AutoConfig, PreTrainedModel

from sarlang_sft.backbones import BACKBONES, REFUSED, find_backbone
from sarlang_sft.errors import InputError
from sarlang_sft.loading import build_skeleton, module_names
from sarlang_sft.tuning import TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]


def test_the_released_7bs_tensors_are_exactly_the_models(qwen_7b: PreTrainedModel, real_data: Path) -> None:
    index = json.loads((real_data / "qwen2_5_vl_7b/model.safetensors.index.json").read_text())["weight_map"]
    names = module_names(index, qwen_7b)
    assert len(names) == 729 and set(names.values()) == set(qwen_7b.state_dict())
    assert names["visual.merger.ln_q.weight"] == "model.visual.merger.ln_q.weight"


def test_families_without_a_row_are_refused_by_name_and_recipes_by_family(
    tinies: dict[str, Path], tmp_path: Path
) -> None:
    for family, why in REFUSED.items():
        (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
        with pytest.raises(InputError) as refused:
            find_backbone(str(tmp_path))
        assert f"family `{family}` is not supported ({why})" in str(refused.value)
    with pytest.raises(InputError, match=r"is a llava_next; tune it with recipes/llava_lora.py"):
        find_backbone(str(tinies["llava_next"]), recipes="qwen")


def test_a_checkpoint_of_another_model_is_refused_before_its_weights_are_read(
    tinies: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((tinies["qwen2_5_vl"] / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tinies["qwen2_vl"] / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"does not fit its config.json: \d+ tensors are missing, unknown or"):
        build_skeleton(str(tmp_path), QWEN)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing; only safetensors are read, never pickled"):
        build_skeleton(str(tmp_path), QWEN)
    for family, folder in tinies.items():
        build_skeleton(str(folder), BACKBONES[family])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2_5_vl", {"tuning": "pissa", "projector": "full", "projector_lr": 1e-4}),
        ("qwen2_5_vl", {"tuning": "qlora", "use_dora": True, "vision_tower": "lora", "loraplus_lr_ratio": 4.0}),
        ("qwen2_5_vl", {"init_lora_weights": "eva", "eva_rows": 4}),
        ("qwen2_5_vl", {"tuning": "full"}),
        ("llava", {"tuning": "language_model"}),
        ("llava_next", {"tuning": "projector"}),
        ("qwen3_vl", {"tuning": "full"}),
    ],
)
def test_resumed_equals_uninterrupted(
    family: str, options: dict, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Where the base's weights, the copies or the starting point belong to what a checkpoint must bring back."""
    results = []
    for name, resume in (("whole", "auto"), ("resumed", str(tmp_path / "whole/checkpoint-2"))):
        trainer, _ = make_trainer(
            tinies[family], data, tmp_path / name, TuningArguments(**options), max_steps=4,
            save_strategy="steps", save_steps=2, lr_scheduler_type="linear", resume=resume,
        )  # fmt: skip
        trainer.train()
        results.append({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
    for parameter, value in results[0].items():
        assert torch.allclose(value, results[1][parameter], atol=1e-7), parameter


@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_best_model_is_brought_back_at_the_end(
    way: str, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """The highest loss counts as best here, so that it is not the last."""
    trainer, _ = make_trainer(
        tinies["qwen2_5_vl"], data, tmp_path, TuningArguments(tuning=way), max_steps=3, save_strategy="steps",
        save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, greater_is_better=True,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), abs=1e-5) and max(losses) == losses[0]


def test_a_model_stored_in_4_bits_is_refused(tinies: dict[str, Path], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tinies["qwen2_5_vl"])
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="its weights are stored quantised; give the whole model, and `tuning: qlora`"
    ):
        build_skeleton(str(tmp_path), QWEN)
