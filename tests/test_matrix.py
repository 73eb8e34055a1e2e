"""Every backbone with every named way to tune: what the configuration says is what trains, is saved, and is merged."""

from pathlib import Path

import pytest
import torch
from conftest import make_trainer
from peft import PeftModel
from safetensors.torch import load_file

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.inference import load_tuned
from sarlang_sft.release import merge_adapter
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.trainable import own_name
from sarlang_sft.training import save_result
from sarlang_sft.tuning import TUNINGS, TuningArguments

FAMILIES, WAYS = list(BACKBONES), list(TUNINGS)
# `make test` runs each way on one family and each family in two ways; `make test-all` runs all of them.
SAMPLED = {(FAMILIES[number % len(FAMILIES)], way) for number, way in enumerate(WAYS)}
MATRIX = [
    pytest.param(family, way, marks=() if (family, way) in SAMPLED else pytest.mark.slow)
    for family in FAMILIES
    for way in WAYS
]


def moved(trainer: RunTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize(("family", "way"), MATRIX)
def test_family_and_way(family: str, way: str, tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tiny, out = tinies[family], tmp_path / "out"
    trainer, trainable = make_trainer(tiny, data, out, TuningArguments(tuning=way))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    save_result(trainer, DataArguments(data=str(data)), trainer.train().metrics)

    changed = moved(trainer, before)
    adapters = {name for name in changed if ".lora_" in name}
    assert {own_name(name) for name in changed - adapters} == trainable.full
    assert {own_name(name).partition(".lora_")[0] for name in adapters} == set(trainable.adapted)
    assert adapters == {name for name in before if ".lora_" in name}, "A and B, and DoRA's magnitudes"

    adapted = bool(trainable.adapted)
    assert isinstance(trainer.model, PeftModel) == adapted
    if adapted:
        report = merge_adapter(str(tiny), str(out), tmp_path / "merged")
        assert report.max_abs_diff < 1e-4 * report.logit_std < report.effect
        bits = TuningArguments(tuning=way).bits()  # an adapter on a quantised base belongs to that
        tuned = load_tuned(str(tiny), str(out), bits=bits)  # refuses any missing or unexpected key
    else:
        stored, base = load_file(out / "model.safetensors"), load_file(tiny / "model.safetensors")
        assert {key: value.shape for key, value in stored.items()} == {key: value.shape for key, value in base.items()}
        tuned = load_tuned(str(out), None)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    with torch.inference_mode():
        trained, loaded = (model.eval()(**batch).logits for model in (trainer.model, tuned.model))
    assert (loaded - trained).abs().max() < 1e-4 * trained.std()
