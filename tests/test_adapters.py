"""What training makes of adapters: rates and ranks, where they start, how they are kept."""

from pathlib import Path

import pytest
import torch
from conftest import make_trainer, with_adapters
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES, component_of
from sarlang_sft.errors import InputError
from sarlang_sft.inference import load_tuned
from sarlang_sft.release import merge_adapter
from sarlang_sft.trainable import (
    count_components,
    own_name,
)
from sarlang_sft.training import save_result
from sarlang_sft.tuning import TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]


def test_chosen_layers_get_adapters_and_no_others(tinies: dict[str, Path]) -> None:
    tuning = TuningArguments(lora_target_modules=r"model\.language_model\.layers\.[02]\..*(q|v)_proj")
    model = with_adapters(QWEN.model_class.from_pretrained(tinies["qwen2_5_vl"]), QWEN, tuning)
    layers = [f"model.language_model.layers.{n}.self_attn.{kind}_proj" for n in (0, 2) for kind in "qv"]
    assert set(model.targeted_module_names) == set(layers)


def test_every_component_has_its_own_rank_and_rate(tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tuning = TuningArguments(
        vision_tower="lora", projector="full", vision_tower_lora_r=2, vision_tower_lr=2e-6, projector_lr=1e-5,
        lora_r=8, lora_alpha=16, loraplus_lr_ratio=4,
    )  # fmt: skip
    trainer, _ = make_trainer(tinies["qwen2_5_vl"], data, tmp_path, tuning, learning_rate=1e-4, weight_decay=0.1)
    for name, parameter in trainer.model.named_parameters():
        if ".lora_A." in name:
            assert parameter.shape[0] == (2 if "visual" in name else 8)
    scales = {module.scaling["default"] for module in trainer.model.modules() if isinstance(module, LoraLayer)}
    assert scales == {2.0}
    stable = TuningArguments(vision_tower="lora", vision_tower_lora_r=2, lora_r=8, lora_alpha=16, use_rslora=True)
    model = with_adapters(QWEN.model_class.from_pretrained(tinies["qwen2_5_vl"]), QWEN, stable)
    scales = [module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)]
    assert scales == pytest.approx([16 / 8**0.5] * len(scales))
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group for group in trainer.optimizer.param_groups for p in group["params"]}
    assert set(rates) == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    decaying = trainer.get_decay_parameter_names(trainer.model)
    for name, group in rates.items():
        rate = {"vision_tower": 2e-6, "projector": 1e-5, "language_model": 1e-4}[component_of(own_name(name), QWEN)]
        assert group["lr"] == pytest.approx(rate * (4 if ".lora_B." in name else 1)), name
        assert group["weight_decay"] == (0.1 if name in decaying else 0.0), name
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-4, "which is logged"
    trainer.train()


def test_modules_to_save_train_are_saved_and_merged(tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """New words: embedding and head of an untied model, in full beside the adapters."""
    tuning, tiny = TuningArguments(modules_to_save=["embed_tokens", "lm_head"]), tinies["llava"]
    trainer, trainable = make_trainer(tiny, data, tmp_path / "out", tuning)
    words = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert trainable.full == words
    assert sum(isinstance(module, ModulesToSaveWrapper) for module in trainer.model.modules()) == 2
    counts = count_components(trainer.model, BACKBONES["llava"], trainable)
    assert counts[2].state == "adapted, partly trained"
    save_result(trainer, DataArguments(data=str(data)), trainer.train().metrics)
    report = merge_adapter(str(tiny), str(tmp_path / "out"), tmp_path / "merged")
    assert report.max_abs_diff < 1e-4 * report.logit_std
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith(tuple(words)))


def test_eva_starts_from_what_the_layers_see(tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tuning = TuningArguments(
        init_lora_weights="eva", vision_tower="lora", vision_tower_lora_r=2, projector="full", lora_r=4, eva_rows=8
    )
    trainer, _ = make_trainer(tinies["qwen2_5_vl"], data, tmp_path, tuning)
    seen: list[torch.Tensor] = []
    layer = trainer.model.get_submodule("base_model.model.model.language_model.layers.1.mlp.gate_proj")
    for name, parameter in trainer.model.named_parameters():
        if ".lora_A." in name:
            rank = 2 if "visual" in name else 4
            assert torch.allclose(parameter @ parameter.T, torch.eye(rank), atol=1e-4), f"{name}: directions"
        assert ".lora_B." not in name or not parameter.any()
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(0, -2)))
    explained = []
    with torch.no_grad():
        for row in range(8):
            trainer.model(**trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[row]])))
    inputs = torch.cat(seen)
    inputs = inputs - inputs.mean(dim=0)
    best = torch.linalg.svdvals(inputs)[:4].square().sum()
    explained = (inputs @ layer.lora_A["default"].weight.T).square().sum() / best
    assert explained > 0.8, "they hold most of what four directions can"
    save_result(trainer, DataArguments(data=str(data)), trainer.train().metrics)
    load_tuned(str(tinies["qwen2_5_vl"]), str(tmp_path))


def test_eva_says_where_it_would_never_end(tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """PEFT goes round and round where a layer sees fewer tokens than its rank."""
    tuning = TuningArguments(init_lora_weights="eva", projector="lora", projector_lora_r=64, eva_rows=1)
    with pytest.raises(
        InputError, match=r"do not settle in 30 rounds over 1 rows; .* lower lora_r, or raise eva_rows"
    ):
        make_trainer(tinies["qwen2_5_vl"], data, tmp_path, tuning, image_trees=False)


def test_pissa_is_released_as_a_lora_that_fits_the_untouched_base(
    tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    tiny = tinies["qwen2_5_vl"]
    tuning = TuningArguments(tuning="pissa", lora_r=4, projector="full", vision_tower="lora", vision_tower_lora_r=4)
    trainer, trainable = make_trainer(tiny, data, tmp_path, tuning, save_strategy="steps", save_steps=3)
    base = load_file(tiny / "model.safetensors")
    layer = trainer.model.get_submodule("base_model.model.model.language_model.layers.0.mlp.up_proj")
    stored = next(value for key, value in base.items() if key.endswith("layers.0.mlp.up_proj.weight"))
    start = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(layer.base_layer.weight + start, stored, atol=1e-5)
    assert torch.linalg.matrix_norm(start) > 0.2 * torch.linalg.matrix_norm(stored), "the largest directions"
    save_result(trainer, DataArguments(data=str(data)), trainer.train().metrics)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {value.shape[0] for key, value in tensors.items() if "lora_A" in key} == {8}
    assert (
        len(tensors) == 2 * len(trainable.adapted) + len(trainable.full)
        and not (tmp_path / "initial_adapter").exists()
    )
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    with torch.inference_mode():
        trained = trainer.model.eval()(**batch).logits
        for folder in (tmp_path, tmp_path / "checkpoint-3"):
            assert torch.allclose(load_tuned(str(tiny), str(folder)).model(**batch).logits, trained, atol=1e-4)


def test_noise_on_the_embeddings_is_there_in_training_alone(
    tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    trained, evaluated = [], []
    for alpha in (None, 5.0):
        trainer, _ = make_trainer(
            tinies["qwen2_5_vl"], data, tmp_path, TuningArguments(), neftune_noise_alpha=alpha, logging_steps=1,
            max_steps=1, learning_rate=1e-9,
        )  # fmt: skip
        trainer.train()
        trained += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        evaluated.append(trainer.evaluate(trainer.train_dataset)["eval_loss"])
    plain, noisy = trained
    assert noisy != plain and abs(noisy - plain) < 0.5
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_small_optimisers_train_with_a_rate_for_every_component(
    optim: str, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    tuning = TuningArguments(projector="full", projector_lr=1e-4, lora_r=64)
    trainer, _ = make_trainer(tinies["qwen2_5_vl"], data, tmp_path, tuning, optim=optim)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    inner = trainer.optimizer.optimizer
    assert type(inner).__module__.startswith("bitsandbytes") and inner.is_paged == optim.startswith("paged")
    states = {state["state1"].dtype for state in inner.state.values() if state["state1"].numel() >= 4096}
    assert states == {torch.uint8 if "8bit" in optim else torch.float32}
    assert {group["lr"] for group in inner.param_groups} == {1e-3, 1e-4}
    assert all(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)


def test_an_optimiser_that_groups_parameters_by_itself_takes_no_rates(
    tinies: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = make_trainer(tinies["qwen2_5_vl"], data, tmp_path, TuningArguments())
    grouping = torch.optim.SGD, {"lr": 1e-3, "params": []}  # as GaLore's handler in transformers returns
    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", lambda args, model: grouping)
    trainer.set_learning_rates(QWEN, TuningArguments())
    with pytest.raises(InputError, match="cannot give components a learning rate; use adamw_torch"):
        trainer.set_learning_rates(QWEN, TuningArguments(language_model_lr=1e-5))


def test_a_quantised_model_trains_on_after_an_evaluation(tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tuning = TuningArguments(tuning="qlora")
    trainer, _ = make_trainer(
        tinies["qwen2_5_vl"], data, tmp_path, tuning, eval_strategy="steps", eval_steps=1, eval_on_start=True
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("way", ["lora_projector", "qlora", "dora", "projector", "full"])
def test_what_trains_of_a_bfloat16_model_keeps_small_steps(
    way: str, autocast: bool, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    tuning = TuningArguments(tuning=way)
    options = {"dtype": "bfloat16", "bf16": autocast, "learning_rate": 1e-7}
    if not autocast and not tuning.adapts():
        with pytest.raises(InputError, match="dtype bfloat16: weights of 16 bits round small steps away; set --bf16"):
            make_trainer(tinies["qwen2_5_vl"], data, tmp_path, tuning, **options)
        return
    trainer, _ = make_trainer(tinies["qwen2_5_vl"], data, tmp_path, tuning, **options)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == (name in before)
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32 and not torch.equal(parameter, before[name]), name
        elif parameter.dtype.is_floating_point:
            assert parameter.dtype == torch.bfloat16, name
