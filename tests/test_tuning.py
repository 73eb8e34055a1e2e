from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from sarlang_sft.backbones import BACKBONES, linear_modules
from sarlang_sft.errors import InputError
from sarlang_sft.flops import count_flops
from sarlang_sft.tuning import (
    TuningArguments,
    check_components,
    component_table,
    count_components,
    freeze_components,
    lora_config,
)

QWEN = BACKBONES["qwen2_5_vl"]


@pytest.fixture(scope="module")
def qwen_7b(real_data: Path) -> nn.Module:
    """The real 7B model without storage for its weights."""
    config = AutoConfig.from_pretrained(real_data / "qwen2_5_vl_7b")
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def test_published_recipe_adapts_exactly_the_7b_language_models_linear_layers(qwen_7b: nn.Module) -> None:
    tuning = TuningArguments(lora_r=8)
    config = qwen_7b.config.get_text_config()
    with torch.device("meta"):
        tuned = get_peft_model(qwen_7b, lora_config(qwen_7b, QWEN, tuning))
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
    counts = count_components(tuned, QWEN)
    assert sum(count.trainable for count in counts) == 28 * sum(8 * (i + o) for i, o in shapes) == 20_185_088
    assert {count.component: count.state for count in counts} == {
        "vision_tower": "frozen",
        "projector": "frozen",
        "language_model": "adapted",
    }
    assert sum(count.base for count in counts) == 8_292_166_656
    check_components(counts, tuning)
    table = component_table(counts)
    assert "20,185,088" in table and "language_model  adapted" in table
    tuned.unload()


@pytest.mark.parametrize(
    ("modes", "states"),
    [
        ({}, ["frozen", "frozen", "adapted"]),
        ({"projector": "lora"}, ["frozen", "adapted", "adapted"]),
        ({"vision_tower": "lora", "projector": "lora"}, ["adapted", "adapted", "adapted"]),
        ({"vision_tower": "lora", "language_model": "frozen"}, ["adapted", "frozen", "frozen"]),
        ({"language_model": "full"}, ["frozen", "frozen", "fully trained"]),
        ({"projector": "full", "language_model": "frozen"}, ["frozen", "fully trained", "frozen"]),
    ],
)
def test_what_a_mode_says_is_what_moves(tiny: Path, modes: dict[str, str], states: list[str]) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny)
    tuning = TuningArguments(**modes)
    config = lora_config(model, QWEN, tuning)
    if config is None:
        freeze_components(model, QWEN, tuning)
    else:
        expected = [n for c, m in tuning.modes().items() if m == "lora" for n in linear_modules(model, QWEN, c)]
        model = get_peft_model(model, config)
        assert set(model.targeted_module_names) == set(expected)
    counts = count_components(model, QWEN)
    assert [count.state for count in counts] == states
    check_components(counts, tuning)
    with pytest.raises(RuntimeError, match="but its mode is"):
        check_components(counts, TuningArguments(vision_tower="full", projector="full", language_model="full"))


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ({"language_model": "frozen"}, "every component is frozen"),
        ({"language_model": "adapter"}, "language_model: `adapter` is no mode"),
        ({"projector": "full"}, "cannot be mixed"),
        ({"lora_r": 0}, "lora_r 0"),
    ],
)
def test_contradictory_modes_are_refused(modes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuningArguments(**modes)


def test_counted_operations_are_the_conventions_and_near_torchs_own_count(tiny: Path) -> None:
    """4 FLOP per parameter and token under LoRA, 6 fully trained, 2 for a frozen tower, also if ZeRO-3 holds them."""
    backbone, widths = BACKBONES["qwen2_5_vl"], (128, 320, 3, 64)  # model, feed-forward, layers, keys and values
    layer = 2 * widths[0] * (widths[0] + widths[3]) + 3 * widths[0] * widths[1]
    full = backbone.model_class.from_pretrained(tiny)
    freeze_components(full, backbone, TuningArguments(language_model="full"))
    head = full.lm_head.weight.numel()
    count = count_flops(full, backbone)
    assert count.per_token == 6 * 3 * layer and count.per_scored == 6 * head
    tower = sum(p.numel() for n, p in full.model.visual.named_parameters() if p.dim() > 1 and "merger" not in n)
    merger = sum(p.numel() for n, p in full.model.visual.merger.named_parameters() if p.dim() > 1)
    assert count.per_image_token == 4 * 2 * tower + 2 * merger
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        full.model.language_model(torch.arange(8)[None])
    assert counter.get_total_flops() == pytest.approx(2 * 8 * 3 * layer, rel=0.02), "but for attention scores"
    plain = backbone.model_class.from_pretrained(tiny)
    adapted = get_peft_model(plain, lora_config(plain, backbone, TuningArguments()))
    count = count_flops(adapted, backbone)
    assert count.per_token == 4 * 3 * layer and count.per_scored == 4 * head
    for parameter in adapted.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert count_flops(adapted, backbone) == count
