from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_trainer, with_adapters
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.adapters import lora_config
from sarlang_sft.backbones import BACKBONES, component_of, linear_modules
from sarlang_sft.errors import InputError
from sarlang_sft.flops import count_flops
from sarlang_sft.loading import build_skeleton
from sarlang_sft.quantisation import quantisation
from sarlang_sft.trainable import (
    check_trainable,
    choose_trainable,
    component_table,
    count_components,
    freeze_all_but,
)
from sarlang_sft.tuning import TUNINGS, TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]
FULL = {"vision_tower": "full", "projector": "full", "language_model": "full"}


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
