"""The planner's parameters against the real models, and its bytes against those that bitsandbytes allocates."""

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel

from sarlang_sft.arguments import ModelArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.planning.model import Batch, Setup, build_planned
from sarlang_sft.planning.published import PUBLISHED, find_architecture, published_config
from sarlang_sft.planning.sharding import Sharding
from sarlang_sft.planning.states import quantised_bytes, state_bytes
from sarlang_sft.trainable import count_components
from sarlang_sft.tuning import TuningArguments

# Billions of parameters as the models' pages state them, and tokens of an image of 512 x 512 pixels.
STATED = {
    "Qwen/Qwen2-VL-7B-Instruct": (8.29, 324),
    "Qwen/Qwen2.5-VL-3B-Instruct": (3.75, 324),
    "Qwen/Qwen2.5-VL-7B-Instruct": (8.29, 324),
    "Qwen/Qwen2.5-VL-32B-Instruct": (33.5, 324),
    "Qwen/Qwen2.5-VL-72B-Instruct": (73.4, 324),
    "Qwen/Qwen3-VL-4B-Instruct": (4.44, 256),
    "Qwen/Qwen3-VL-8B-Instruct": (8.77, 256),
    "llava-hf/llava-1.5-7b-hf": (7.06, 576),
    "llava-hf/llava-1.5-13b-hf": (13.4, 576),
    "llava-hf/llava-v1.6-mistral-7b-hf": (7.57, 2928),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (7.06, 2928),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (8.03, 3699),
}


def components(name: str, **tuning: object) -> dict[str, tuple[int, int]]:
    """Parameters of the base and of the adapters, by component."""
    architecture = find_architecture(ModelArguments(name), ["Is there a ship?"], None)
    setup = Setup(
        "bfloat16", TuningArguments(**tuning), True, (), Batch(1, 64, 0, 1, 1, 8), True, False, False, "adamw_torch",
        Sharding(), 1,
    )  # fmt: skip
    planned = build_planned(setup, architecture)
    counts = count_components(planned.model, architecture.backbone, planned.trainable)
    return {count.component: (count.base, count.adapter) for count in counts}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_stated_size_and_image_tokens(name: str) -> None:
    billions, tokens = STATED[name]
    with torch.device("meta"):
        model = BACKBONES[PUBLISHED[name][0]].model_class(published_config(name))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert float(f"{count:.3g}") == billions
    processor = find_architecture(ModelArguments(name), ["Is there a ship?"], None).processor
    assert processor._get_num_multimodal_tokens(image_sizes=[(512, 512)])["num_image_tokens"] == [tokens]


def test_the_7b_has_the_tensors_of_the_real_configuration(qwen_7b: PreTrainedModel) -> None:
    with torch.device("meta"):
        ours = type(qwen_7b)(published_config("Qwen/Qwen2.5-VL-7B-Instruct"))
    real = {name: parameter.shape for name, parameter in qwen_7b.named_parameters()}
    assert {name: parameter.shape for name, parameter in ours.named_parameters()} == real
    assert ours.config.get_text_config().max_position_embeddings == 128000


def test_trained_parameters_of_the_7b_are_counted_exactly() -> None:
    counted = components("Qwen/Qwen2.5-VL-7B-Instruct", lora_r=8)
    h, kv, m, v = 3584, 512, 18944, 152064
    layer = 2 * h * h + 2 * h * kv + 3 * h * m + h + 2 * kv + 2 * h
    assert counted["language_model"][0] == 28 * layer + 2 * v * h + h == 7_615_616_512
    assert counted["language_model"][1] == 28 * 8 * (4 * h + 2 * (h + kv) + 3 * (h + m)) == 20_185_088
    assert sum(base for base, _ in counted.values()) == 8_292_166_656


def test_trained_parameters_of_the_72b_are_counted_exactly() -> None:
    counted = components("Qwen/Qwen2.5-VL-72B-Instruct", tuning="qlora", lora_r=16)
    h, kv, m, v = 8192, 1024, 29568, 152064
    layer = 2 * h * h + 2 * h * kv + 3 * h * m + h + 2 * kv + 2 * h
    assert counted["language_model"][0] == 80 * layer + 2 * v * h + h == 72_706_203_648
    assert counted["language_model"][1] == 80 * 16 * (4 * h + 2 * (h + kv) + 3 * (h + m)) == 210_534_400
    assert sum(base for base, _ in counted.values()) == 73_410_777_344


@pytest.mark.parametrize(("rows", "columns"), [(128, 320), (96, 128), (1000, 77)])
def test_a_layer_of_four_bits_takes_what_bitsandbytes_allocates(rows: int, columns: int) -> None:
    layer = Linear4bit(columns, rows, bias=False, quant_type="nf4", compress_statistics=True).to("cpu")
    state = layer.weight.quant_state
    tensors = [layer.weight.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == quantised_bytes(rows, columns, 4)


def test_a_layer_of_eight_bits_takes_what_bitsandbytes_allocates() -> None:
    layer = Linear8bitLt(320, 128, bias=False, has_fp16_weights=False).to("cpu")
    layer(torch.randn(4, 320))
    tensors = [layer.weight.data, layer.state.SCB]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == quantised_bytes(128, 320, 8)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("name", "optimiser"),
    [
        ("adamw_torch", torch.optim.AdamW),
        ("adamw_8bit", bitsandbytes.optim.AdamW8bit),
        ("paged_adamw_8bit", bitsandbytes.optim.PagedAdamW8bit),
        ("paged_adamw_32bit", bitsandbytes.optim.PagedAdamW32bit),
    ],
)
def test_an_optimiser_keeps_the_bytes_that_were_planned(name: str, optimiser: type[torch.optim.Optimizer]) -> None:
    parameters = [nn.Parameter(torch.randn(numbers)) for numbers in (4095, 4096, 77_000, 120_000)]
    steps = optimiser(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    steps.step()
    for parameter in parameters:
        kept = {key: value for key, value in steps.state[parameter].items() if key not in ("step", "qmap1", "qmap2")}
        assert sum(value.numel() * value.element_size() for value in kept.values()) == state_bytes(
            parameter.numel(), name
        ), "beside the tables, which all parameters share"
