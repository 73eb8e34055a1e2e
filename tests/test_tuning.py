import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_trainer, with_adapters
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.adapters import lora_config
from sarlang_sft.backbones import (
    BACKBONES,
    REFUSED,
    build_skeleton,
    component_of,
    find_backbone,
    linear_modules,
    module_names,
)
from sarlang_sft.errors import InputError
from sarlang_sft.flops import count_flops
from sarlang_sft.inference import load_tuned
from sarlang_sft.quantisation import quantisation
from sarlang_sft.release import merge_adapter
from sarlang_sft.trainable import (
    check_trainable,
    choose_trainable,
    component_table,
    count_components,
    freeze_all_but,
    own_name,
)
from sarlang_sft.training import DataArguments, save_result
from sarlang_sft.tuning import TUNINGS, TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]
FULL = {"vision_tower": "full", "projector": "full", "language_model": "full"}


@pytest.fixture(scope="module")
def qwen_7b(real_data: Path) -> PreTrainedModel:
    """The real 7B model without storage for its weights."""
    config = AutoConfig.from_pretrained(real_data / "qwen2_5_vl_7b")
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def skeleton_of(family: str, tinies: dict[str, Path]) -> PreTrainedModel:
    return build_skeleton(str(tinies[family]), BACKBONES[family])


def test_published_recipe_adapts_exactly_the_7b_language_models_linear_layers(qwen_7b: PreTrainedModel) -> None:
    tuning = TuningArguments(lora_r=8)
    trainable = choose_trainable(qwen_7b, QWEN, tuning)
    config = qwen_7b.config.get_text_config()
    peft_config = lora_config(qwen_7b, QWEN, trainable, tuning)
    assert len(peft_config.target_modules) < 600, "readable: one pattern per kind of layer"
    with torch.device("meta"):
        tuned = get_peft_model(qwen_7b, peft_config)
    adapted = {name for name, module in tuned.named_modules() if "default" in getattr(module, "lora_A", {})}
    expected = {
        f"base_model.model.model.language_model.layers.{layer}.{name}"
        for layer in range(28)
        for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    }  # fmt: skip
    assert adapted == expected and len(adapted) == 196
    h, m = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * (h // config.num_attention_heads)
    shapes = [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]
    counts = count_components(tuned, QWEN, trainable)
    assert sum(count.adapter for count in counts) == 28 * sum(8 * (i + o) for i, o in shapes) == 20_185_088
    assert {count.component: count.state for count in counts} == {
        "vision_tower": "frozen",
        "projector": "frozen",
        "language_model": "adapted",
    }
    assert sum(count.base for count in counts) == 8_292_166_656
    check_trainable(tuned, trainable)
    table = component_table(counts, trainable, tuning)
    assert "20,185,088" in table and "language_model  adapted" in table
    tuned.unload()


def test_qlora_leaves_the_7bs_tower_projector_and_head_as_they_are(qwen_7b: PreTrainedModel) -> None:
    kept = quantisation(qwen_7b, QWEN, 4, "auto").llm_int8_skip_modules
    assert quantisation(qwen_7b, QWEN, 4, "auto").bnb_4bit_compute_dtype == torch.bfloat16
    assert quantisation(qwen_7b, QWEN, 4, "float16").bnb_4bit_compute_dtype == torch.float16
    assert len(kept) == 32 * 5 + 2 + 1 and all(name.startswith(("model.visual.", "lm_head")) for name in kept)
    assert len(choose_trainable(qwen_7b, QWEN, TuningArguments(tuning="qlora")).quantised) == 196


def test_the_released_7bs_tensors_are_exactly_the_models(qwen_7b: PreTrainedModel, real_data: Path) -> None:
    index = json.loads((real_data / "qwen2_5_vl_7b/model.safetensors.index.json").read_text())["weight_map"]
    names = module_names(index, qwen_7b)
    assert len(names) == 729 and set(names.values()) == set(qwen_7b.state_dict())
    assert names["visual.merger.ln_q.weight"] == "model.visual.merger.ln_q.weight"


@pytest.mark.parametrize(
    ("modes", "states"),
    [
        ({}, ["frozen", "frozen", "adapted"]),
        ({"projector": "lora"}, ["frozen", "adapted", "adapted"]),
        ({"vision_tower": "lora", "projector": "lora"}, ["adapted", "adapted", "adapted"]),
        ({"vision_tower": "lora", "language_model": "frozen"}, ["adapted", "frozen", "frozen"]),
        ({"language_model": "full"}, ["frozen", "frozen", "fully trained"]),
        ({"projector": "full", "language_model": "frozen"}, ["frozen", "fully trained", "frozen"]),
        ({"projector": "full"}, ["frozen", "fully trained", "adapted"]),
        ({"vision_tower": "full", "projector": "full"}, ["fully trained", "fully trained", "adapted"]),
        ({"vision_tower": "full", "projector": "lora"}, ["fully trained", "adapted", "adapted"]),
        (
            {"vision_tower": "lora", "projector": "full", "language_model": "frozen"},
            ["adapted", "fully trained", "frozen"],
        ),
        (FULL, ["fully trained", "fully trained", "fully trained"]),
    ],
)
@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next"])
def test_what_a_mode_says_is_what_trains(
    family: str, tinies: dict[str, Path], modes: dict[str, str], states: list[str]
) -> None:
    backbone = BACKBONES[family]
    model = backbone.model_class.from_pretrained(tinies[family])
    tuning = TuningArguments(**modes)
    trainable = choose_trainable(skeleton_of(family, tinies), backbone, tuning)
    if tuning.adapts():
        expected = {n for c, m in tuning.modes().items() if m == "lora" for n in linear_modules(model, backbone, c)}
        unused = [n for n in expected if n.startswith(backbone.unused(model.config))]
        model = get_peft_model(model, lora_config(model, backbone, trainable, tuning))
        assert set(model.targeted_module_names) == expected - set(unused)
        assert bool(unused) == (family == "llava_next" and modes.get("vision_tower") == "lora")
    else:
        freeze_all_but(model, trainable)
    assert [count.state for count in count_components(model, backbone, trainable)] == states
    check_trainable(model, trainable)
    if tuning.modes() != FULL:
        everything = choose_trainable(skeleton_of(family, tinies), backbone, TuningArguments(**FULL))
        with pytest.raises(RuntimeError, match="of those it names are missing"):
            check_trainable(model, everything)


def test_a_tower_of_which_a_part_is_never_run_says_so(tinies: dict[str, Path]) -> None:
    """The last CLIP layer and norm of LLaVA stand behind the image features: without gradient, DDP would wait."""
    backbone, tuning = BACKBONES["llava"], TuningArguments(tuning="full")
    model = backbone.model_class.from_pretrained(tinies["llava"])
    trainable = choose_trainable(model, backbone, tuning)
    behind = "model.vision_tower.encoder.layers.2", "model.vision_tower.post_layernorm"
    assert trainable.idle == {name for name, _ in model.named_parameters() if name.startswith(behind)}
    freeze_all_but(model, trainable)
    table = component_table(count_components(model, backbone, trainable), trainable, tuning)
    idle = sum(p.numel() for name, p in model.named_parameters() if name in trainable.idle)
    assert f"vision_tower: {idle:,} parameters behind the image features are never run" in table


def test_explicit_options_win_over_the_named_way() -> None:
    for way, options in TUNINGS.items():
        tuning = TuningArguments(tuning=way)
        assert all(vars(tuning)[name] == value for name, value in options.items())
    tuning = TuningArguments(tuning="lora_tower", projector="lora", vision_tower="frozen", use_dora=True)
    assert list(tuning.modes().values()) == ["frozen", "lora", "lora"] and tuning.use_dora


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": "loraplus"}, "tuning `loraplus`: choose one of lora, lora_tower"),
        ({"language_model": "frozen"}, "every component is frozen"),
        ({"language_model": "adapter"}, "language_model: `adapter` is no mode"),
        ({"vision_tower": "lora", "language_model": "full"}, "full beside lora: an adapter would have to hold"),
        ({"tuning": "qlora", "language_model": "full"}, "quantised weights cannot be trained in full; set"),
        (
            {"tuning": "qlora", "language_model": "frozen", "projector": "full"},
            "a quantised model trains adapters only",
        ),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit: choose one"),
        ({"lora_r": 0}, "lora_r 0"),
        ({"vision_tower": "lora", "vision_tower_lora_r": 0}, "vision_tower_lora_r 0: must be at least 1"),
        ({"vision_tower_lora_r": 4}, "vision_tower_lora_r: vision_tower is frozen; leave it out or set"),
        ({"projector": "full", "projector_lora_r": 4}, "projector_lora_r: projector is full"),
        ({"projector_lr": 1e-4}, "projector_lr: projector is frozen"),
        ({"language_model_lr": 0.0}, "language_model_lr 0.0: must be above 0"),
        ({"tuning": "projector", "use_dora": True}, "use_dora: no component has adapters"),
        ({"tuning": "full", "modules_to_save": ["norm"]}, "modules_to_save: no component has adapters"),
        ({"tuning": "pissa", "load_in_4bit": True}, "init_lora_weights pissa: changes the weights it starts from"),
        ({"tuning": "pissa", "use_rslora": True, "language_model_lora_r": 4}, "all components need one rank"),
        ({"init_lora_weights": "svd"}, "init_lora_weights `svd`: choose one of"),
        ({"loraplus_lr_ratio": 0.5}, "loraplus_lr_ratio 0.5"),
    ],
)
def test_contradictory_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuningArguments(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_target_modules": "q_proj"}, "matches no linear layer that is run .*; one is model.language_model"),
        ({"lora_target_modules": r".*\.(qkv|q_proj)"}, r"matches 3 layers of the vision_tower \(such as .*blocks.0"),
        ({"lora_target_modules": r".*q_proj", "projector": "lora"}, "matches no layer of the projector, whose mode"),
        ({"lora_target_modules": "*"}, "is no regular expression"),
        ({"lora_target_modules": "lm_head"}, "matches no linear layer that is run and may be adapted"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save `classifier`: the model has no module of this name"),
        ({"modules_to_save": ["merger"]}, "lies in the projector, whose mode is frozen"),
        ({"modules_to_save": ["layers"]}, "holds adapters or no weights"),
        ({"modules_to_save": ["model"]}, "holds adapters or no weights"),
        ({"modules_to_save": ["embed_tokens"]}, "embedding and head are one weight"),
    ],
)
def test_names_that_do_not_fit_the_model_are_refused(options: dict, message: str, tinies: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=message):
        choose_trainable(skeleton_of("qwen2_5_vl", tinies), QWEN, TuningArguments(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lora_target_modules": r".*vision_tower.*layers\.2\..*", "language_model": "frozen"},
            "no linear layer that is run",
        ),
        ({"lora_target_modules": r".*layers\.2\..*"}, "matches no layer of the vision_tower, whose mode is lora"),
        ({"modules_to_save": ["post_layernorm"]}, "the model never runs model.vision_tower.post_layernorm"),
    ],
)
def test_layers_that_are_never_run_are_refused(options: dict, message: str, tinies: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=message):
        choose_trainable(
            skeleton_of("llava", tinies), BACKBONES["llava"], TuningArguments(**{"vision_tower": "lora", **options})
        )


@pytest.mark.parametrize("family", list(BACKBONES))
def test_exactly_the_parameters_said_to_be_never_run_get_no_gradient(
    family: str, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    trainer, trainable = make_trainer(tinies[family], data, tmp_path, TuningArguments(tuning="full"))
    trainer.model.requires_grad_(True)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    trainer.model(**batch).logits.square().sum().backward()
    assert {name for name, p in trainer.model.named_parameters() if p.grad is None} == trainable.idle


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


def note(seen: list[str], component: str, *_: object) -> None:
    seen.append(component)


def test_checkpointing_recomputes_the_chosen_component_and_changes_nothing(
    tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    gradients, runs = {}, {}
    for checkpointed in ("none", "vision_tower", "language_model", "both"):
        options = {"gradient_checkpointing": checkpointed != "none"}
        if checkpointed != "none":
            options["checkpointed"] = checkpointed
        trainer, _ = make_trainer(
            tinies["qwen2_5_vl"], data, tmp_path, TuningArguments(tuning="full"), max_steps=1, **options
        )
        count: list[str] = []
        for name, module in trainer.model.named_modules():
            if isinstance(module, GradientCheckpointingLayer):
                # a layer's own norm runs again where the layer is computed again
                norm = module.get_submodule("norm1" if "visual" in name else "input_layernorm")
                norm.register_forward_hook(partial(note, count, component_of(name, QWEN)))
        trainer.train()
        runs[checkpointed] = count.count("vision_tower"), count.count("language_model")
        gradients[checkpointed] = load = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        for name, value in gradients["none"].items():
            assert torch.allclose(load[name], value, atol=1e-6), (checkpointed, name)
    assert runs == {"none": (3, 3), "vision_tower": (6, 3), "language_model": (3, 6), "both": (6, 6)}


def test_counted_operations_are_the_conventions_and_near_torchs_own_count(tiny: Path) -> None:
    """4 FLOP per parameter and token under LoRA, 6 fully trained, 2 for a frozen tower, also if ZeRO-3 holds them."""
    backbone, widths = BACKBONES["qwen2_5_vl"], (128, 320, 3, 64)  # model, feed-forward, layers, keys and values
    layer = 2 * widths[0] * (widths[0] + widths[3]) + 3 * widths[0] * widths[1]
    full = backbone.model_class.from_pretrained(tiny)
    freeze_all_but(full, choose_trainable(full, backbone, TuningArguments(language_model="full")))
    head = full.lm_head.weight.numel()
    count = count_flops(full, backbone)
    assert count.per_token == 6 * 3 * layer and count.per_scored == 6 * head
    tower = sum(p.numel() for n, p in full.model.visual.named_parameters() if p.dim() > 1 and "merger" not in n)
    merger = sum(p.numel() for n, p in full.model.visual.merger.named_parameters() if p.dim() > 1)
    assert count.per_image_token == 4 * 2 * tower + 2 * merger
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        full.model.language_model(torch.arange(8)[None])
    assert counter.get_total_flops() == pytest.approx(2 * 8 * 3 * layer, rel=0.02), "but for attention scores"
    for way, per_token, per_merger in (("lora", 4, 2), ("lora_projector", 4, 6), ("qlora", 4, 2)):
        tuning = TuningArguments(tuning=way)
        quantised = quantisation(full, backbone, tuning.bits(), "float32")
        base = backbone.model_class.from_pretrained(tiny, quantization_config=quantised)
        adapted = with_adapters(base, backbone, tuning)
        count = count_flops(adapted, backbone)
        assert count.per_token == per_token * 3 * layer and count.per_scored == 4 * head
        assert count.per_image_token == 4 * 2 * tower + per_merger * merger
    base = backbone.model_class.from_pretrained(tiny)
    adapted = with_adapters(base, backbone, TuningArguments())
    count = count_flops(adapted, backbone)
    for parameter in adapted.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert count_flops(adapted, backbone) == count


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
    for name, checkpoint in (("whole", None), ("resumed", tmp_path / "whole/checkpoint-2")):
        trainer, _ = make_trainer(
            tinies[family], data, tmp_path / name, TuningArguments(**options), max_steps=4,
            save_strategy="steps", save_steps=2, lr_scheduler_type="linear",
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
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


def test_a_model_stored_in_4_bits_is_refused(tinies: dict[str, Path], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tinies["qwen2_5_vl"])
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="its weights are stored quantised; give the whole model, and `tuning: qlora`"
    ):
        build_skeleton(str(tmp_path), QWEN)
