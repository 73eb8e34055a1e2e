"""Merging writes what PEFT's merge_and_unload would, streams it, and refuses what cannot come out right."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script, with_adapters
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel

from sarlang_sft.backbones import BACKBONES, Backbone
from sarlang_sft.combining import Blend
from sarlang_sft.errors import InputError
from sarlang_sft.inference import load_tuned
from sarlang_sft.loading import INDEX, load_processor, module_names, stored_shapes
from sarlang_sft.merging import Checkpoint, check_disk
from sarlang_sft.release import describe, merge_adapter, merge_adapters
from sarlang_sft.run_facts import base_fingerprint
from sarlang_sft.safetensors_stream import Stored
from sarlang_sft.trainable import own_name
from sarlang_sft.tuning import TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]


def move(tuned: PeftModel, seed: int = 0) -> PeftModel:
    """Everything that would have trained, moved as training moves it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            elif "lora_magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    return tuned


def save_adapter(tuned: PeftModel, base: Path, backbone: Backbone, out: Path) -> Path:
    tuned.save_pretrained(out)
    load_processor(str(base), backbone).save_pretrained(out)
    return out


def make_adapter(base: Path, out: Path, family: str = "qwen2_5_vl", seed: int = 0, **tuning: object) -> Path:
    """An adapter as training leaves it, on float32 weights as training keeps them."""
    backbone = BACKBONES[family]
    model = backbone.model_class.from_pretrained(base, dtype="float32")
    return save_adapter(move(with_adapters(model, backbone, TuningArguments(**tuning)), seed), base, backbone, out)


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def in_dtype(tiny: Path, family: str, dtype: str, out: Path) -> Path:
    """A tiny model in another dtype, in several shards."""
    backbone = BACKBONES[family]
    backbone.model_class.from_pretrained(tiny, dtype=dtype).save_pretrained(out, max_shard_size="700KB")
    load_processor(str(tiny), backbone).save_pretrained(out)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        ("qwen2_5_vl", {"vision_tower": "lora", "vision_tower_lora_r": 2}),
        ("llava", {"use_rslora": True, "projector": "lora", "projector_lora_r": 4}),
        ("qwen3_vl", {"use_dora": True, "vision_tower": "lora"}),
        ("llava_next", {"projector": "full", "modules_to_save": ["embed_tokens", "lm_head"]}),
    ],
)
def test_merged_is_what_peft_merges(
    family: str, tuning: dict[str, object], dtype: str, tinies: dict[str, Path], tmp_path: Path
) -> None:
    base = in_dtype(tinies[family], family, dtype, tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", family, **tuning)
    report = merge_adapter(str(base), str(adapter), tmp_path / "merged", logits_check=False)
    model = BACKBONES[family].model_class.from_pretrained(base, dtype=dtype)
    peft_model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    peft_model.save_pretrained(tmp_path / "peft")
    wanted, found, before = (all_tensors(tmp_path / name) for name in ("peft", "merged", "base"))
    assert list(json.loads((tmp_path / "merged" / INDEX).read_text())["weight_map"].items()) == list(
        json.loads((base / INDEX).read_text())["weight_map"].items()
    )
    assert wanted.keys() == found.keys() and report.dtype == dtype
    for key, tensor in found.items():
        assert tensor.dtype == wanted[key].dtype == getattr(torch, dtype)
        # Where W and the update nearly cancel, the order of the sums inside B @ A shows.
        steps = torch.finfo(tensor.dtype).eps * wanted[key].abs() + 1e-6 * wanted[key].abs().max()
        assert not ((tensor.double() - wanted[key].double()).abs() > steps).any(), f"{key}: more than rounding"
        if dtype == "bfloat16":
            assert (tensor != wanted[key]).double().mean() < 1e-3, key
    assert report.changed_tensors == sum(not torch.equal(found[key], before[key]) for key in before) > 3


def test_logits_are_compared_in_the_dtype_of_the_weights_and_in_float32(
    tinies: dict[str, Path], tmp_path: Path
) -> None:
    base = in_dtype(tinies["llava"], "llava", "bfloat16", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", "llava")
    report = merge_adapter(str(base), str(adapter), tmp_path / "merged")
    assert [parity.dtype for parity in report.logits] == ["bfloat16", "float32"]
    assert all(0 < parity.max_abs_diff < parity.effect / 2 for parity in report.logits)
    written = json.loads((tmp_path / "merged/merge_report.json").read_text())
    assert written["max_abs_diff"] == report.logits[0].max_abs_diff and written["dtype"] == "bfloat16"
    assert written["base_fingerprint"] == base_fingerprint(str(base)) and not written["not_checked"]


def test_a_merge_of_the_real_index_has_exactly_its_keys(real_data: Path, tmp_path: Path) -> None:
    """729 tensors under the released names, in the released files, with the real processor; widths are tiny."""
    real, base = real_data / "qwen2_5_vl_7b", tmp_path / "base"
    shutil.copytree(real, base, copy_function=shutil.copyfile)
    config = json.loads((real / "config.json").read_text())
    config |= {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config["rope_scaling"]["mrope_section"] = [1, 1, 2]
    config["vision_config"] |= {"hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
    (base / "config.json").write_text(json.dumps(config))
    model = QWEN.model_class(AutoConfig.from_pretrained(base)).to(torch.bfloat16)
    weight_map = json.loads((real / INDEX).read_text())["weight_map"]
    names, state = module_names(weight_map, model), model.state_dict()
    assert len(weight_map) == 729 and set(names.values()) == set(state)
    for file in set(weight_map.values()):
        held = {key: state[names[key]] for key in weight_map if weight_map[key] == file}
        save_file(held, base / file, {"format": "pt"})
    adapter = save_adapter(
        move(with_adapters(model, QWEN, TuningArguments(vision_tower="lora", projector="full"))),
        base, QWEN, tmp_path / "adapter",
    )  # fmt: skip
    report = merge_adapter(str(base), str(adapter), tmp_path / "merged", logits_check=False)
    merged = json.loads((tmp_path / "merged" / INDEX).read_text())["weight_map"]
    assert merged == weight_map and report.tensors == 729
    assert stored_shapes(tmp_path / "merged") == stored_shapes(base)
    assert report.changed_tensors == 28 * 7 + 32 * 5 + 3, "linear layers of both; the merger but for biases of 0"
    older = {"preprocessor_config.json", "chat_template.json", "vocab.json", "merges.txt", "generation_config.json"}
    assert older <= {path.name for path in (tmp_path / "merged").iterdir()}
    _, loading = QWEN.model_class.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading.values())


def test_several_adapters_are_the_weighted_sum_of_their_updates(tiny: Path, tmp_path: Path) -> None:
    """Of different ranks, scales and layers; PEFT would keep the first one's rsLoRA."""
    first = make_adapter(tiny, tmp_path / "a", use_rslora=True, lora_r=4, vision_tower="lora", vision_tower_lora_r=2)
    second = make_adapter(tiny, tmp_path / "b", seed=1, lora_r=8, lora_alpha=4)
    blend = Blend([str(first), str(second)], [0.75, -0.5])
    report = merge_adapters(str(tiny), blend, tmp_path / "merged")
    assert report.max_abs_diff < 1e-4 * report.logit_std and report.weights == [0.75, -0.5]
    wanted = {key: value.clone() for key, value in QWEN.model_class.from_pretrained(tiny).state_dict().items()}
    for adapter, weight in ((first, 0.75), (second, -0.5)):
        tuned = PeftModel.from_pretrained(QWEN.model_class.from_pretrained(tiny), str(adapter))
        for name, module in tuned.named_modules():
            if isinstance(module, LoraLayer):
                wanted[f"{own_name(name)}.weight"] += weight * module.get_delta_weight("default").detach()
    found = QWEN.model_class.from_pretrained(tmp_path / "merged").state_dict()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


@pytest.mark.parametrize("combine", ["ties", "dare_ties", "dare_linear"])
def test_ties_and_dare_are_those_of_peft_and_repeat(combine: str, tiny: Path, tmp_path: Path) -> None:
    adapters = [str(make_adapter(tiny, tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    for name in ("merged", "again"):
        blend = Blend(adapters, [0.6, 0.4], combine, 0.4)
        merge_adapters(str(tiny), blend, tmp_path / name, logits_check=False)
    found, again = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "again"))
    assert all(torch.equal(found[key], again[key]) for key in found)
    tuned = PeftModel.from_pretrained(QWEN.model_class.from_pretrained(tiny), adapters[0], "a")
    tuned.load_adapter(adapters[1], "b")
    torch.manual_seed(0)
    tuned.add_weighted_adapter(["a", "b"], [0.6, 0.4], "both", combine, density=0.4)
    if combine == "ties":  # DARE draws in the order of its calls
        tuned.set_adapter("both")
        for key in ("a", "b"):
            tuned.delete_adapter(key)
        tuned.merge_and_unload().save_pretrained(tmp_path / "peft")
        wanted = load_file(tmp_path / "peft/model.safetensors")
        assert all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)
    linear = merge_adapters(str(tiny), Blend(adapters, [0.6, 0.4]), tmp_path / "linear", logits_check=False)
    plain = load_file(tmp_path / "linear/model.safetensors")
    assert linear.changed_tensors == sum(not torch.equal(found[key], plain[key]) for key in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "DoRA's rows have one length each, .* merge it alone"),
        ({"projector": "full"}, r"holds modules trained in full \(.*merger.*\), .* merge it alone"),
        ({"lora_r": 4}, "--combine ties: PEFT cannot combine these adapters so: .*same r"),
    ],
)
def test_what_cannot_be_one_of_several_is_refused(
    options: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    adapters = [str(make_adapter(tiny, tmp_path / "a")), str(make_adapter(tiny, tmp_path / "b", **options))]
    with pytest.raises(InputError, match=message):
        merge_adapters(str(tiny), Blend(adapters, [1.0, 1.0], "ties"), tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ({"weights": [1.0]}, "--weights: 1 for 2 adapters"),
        ({"weights": [1.0, 0.0]}, "--weights: must be numbers other than 0"),
        ({"combine": "svd"}, "--combine svd: choose one of linear, ties"),
        ({"density": 0.5}, "--density: linear keeps every value"),
        ({"combine": "ties", "density": 1.5}, "--density 1.5: must be above 0"),
    ],
)
def test_a_wrong_blend_is_refused(blend: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Blend(**{"adapters": ["a", "b"], "weights": [0.5, 0.5], **blend})


def edit_adapter(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path, Path], None]:
    def edit(base: Path, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return edit


def widen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.ones(8, 256) if "lora_A" in key else tensor for key, tensor in tensors.items()}


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.replace("layers.1.", "layers.11."): tensor for key, tensor in tensors.items()}


def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor * float("nan") if "down_proj" in key else tensor for key, tensor in tensors.items()}


def record(**facts: object) -> Callable[[Path, Path], None]:
    def write(base: Path, adapter: Path) -> None:
        content = {"base": base_fingerprint(str(base)), "options": {"model_name_or_path": "org/model"}, **facts}
        (adapter / "run.json").write_text(json.dumps({"id": "a", "state": "finished", "facts": content}))

    return write


def cut(file: str) -> Callable[[Path, Path], None]:
    def shorten(base: Path, adapter: Path) -> None:
        path = (base if file.startswith("model") else adapter) / file
        path.write_bytes(path.read_bytes()[:-1000])

    return shorten


def configure(file: str, **values: object) -> Callable[[Path, Path], None]:
    def change(base: Path, adapter: Path) -> None:
        path = (adapter if file.startswith("adapter") else base) / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def remove_shard(base: Path, adapter: Path) -> None:
    sorted(base.glob("model-*.safetensors"))[1].unlink()


def point_outside(base: Path, adapter: Path) -> None:
    index = (base / INDEX).read_text()
    (base / INDEX).write_text(index.replace("model-00002", "../base/model-00002"))


def adapt(target: str) -> Callable[[Path, Path], None]:
    def write(base: Path, adapter: Path) -> None:
        tuned = get_peft_model(QWEN.model_class.from_pretrained(base), LoraConfig(target_modules=[target]))
        move(tuned).save_pretrained(adapter)

    return write


@pytest.mark.parametrize(
    ("spoil_input", "message"),
    [
        (edit_adapter(widen), r"does not fit the model: 21 of its tensors have another shape .* another base"),
        (edit_adapter(rename), r"does not fit the model: 14 of its tensors have no place, 14 are missing"),
        (edit_adapter(spoil), r"holds values that are no numbers"),
        (record(base="0" * 64), r"was trained on another base \(org/model, .*give the one it was trained on"),
        (cut("adapter_model.safetensors"), r"adapter_model.safetensors is no whole safetensors file"),
        (cut("model-00002-of-00002.safetensors"), r"model-00002-of-00002.safetensors is no whole safetensors file"),
        (remove_shard, r"model-00002-of-00002.safetensors is missing"),
        (point_outside, r"names the file '../base/model-00002-of-00002.safetensors', which does not lie in that"),
        (configure("config.json", quantization_config={"load_in_4bit": True}), r"stored quantised .* in 16 bits"),
        (configure("adapter_config.json", layer_replication=[[0, 2], [1, 2]]), r"repeats layers of the base"),
        (configure("adapter_config.json", init_lora_weights="pissa"), r"init_lora_weights pissa, .* convert it first"),
        (configure("adapter_config.json", peft_type="IA3"), r"is a .*IA3; LoRA, rsLoRA and DoRA can be merged"),
        (adapt("lm_head"), r"changes lm_head.weight, which this model ties to another"),
        (adapt("embed_tokens"), r"only LoRA, rsLoRA and DoRA of linear layers can be merged"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    spoil_input: Callable[[Path, Path], None], message: str, tiny: Path, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", make_adapter(tiny, tmp_path / "adapter")
    QWEN.model_class.from_pretrained(tiny).save_pretrained(base, max_shard_size="3MB")
    load_processor(str(tiny), QWEN).save_pretrained(base)
    spoil_input(base, adapter)
    with pytest.raises(InputError, match=message):
        merge_adapter(str(base), str(adapter), tmp_path / "merged", logits_check=False)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_a_quantised_base_of_the_hub_and_a_full_disk_are_refused_before_anything_is_fetched_or_written(
    tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"is stored quantised, by its name: .* original model in 16 bits"):
        merge_adapter("org/Qwen2.5-VL-7B-Instruct-bnb-4bit", "a", tmp_path / "merged")
    size = 1 << 60
    huge = Stored(tiny / "model.safetensors", "BF16", torch.Size([size // 2]), 0, size)
    with pytest.raises(InputError, match=r"needs 1152921504.\d GB, .* GB are free there"):
        check_disk(Checkpoint(tiny, {huge.path: {"w": huge}}, {}), {"w": "BF16"}, tmp_path / "a/b/merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tuning", [{"projector": "full"}, {"use_dora": True}])
def test_an_untrained_adapter_is_refused_without_a_look_at_logits(
    tuning: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    tuned = with_adapters(QWEN.model_class.from_pretrained(tiny), QWEN, TuningArguments(**tuning))
    save_adapter(tuned, tiny, QWEN, tmp_path / "adapter")
    record()(tiny, tmp_path / "adapter")  # the same base: that is not what is wrong
    with pytest.raises(InputError, match="changes no weight, and so changes no logit of the base"):
        merge_adapter(str(tiny), str(tmp_path / "adapter"), tmp_path / "merged", logits_check=False)


def test_where_a_base_was_recorded_otherwise_shapes_decide_and_bits_are_told(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "adapter")
    record(base="org/model@abc", options={"load_in_4bit": True})(tiny, adapter)
    report = merge_adapter(str(tiny), str(adapter), tmp_path / "merged", logits_check=False)
    assert "trained on the base in 4 bits" in describe(report) and "Measure scores" in describe(report)


def test_another_dtype_is_written_in_weights_and_configuration(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "adapter")
    report = merge_adapter(str(tiny), str(adapter), tmp_path / "merged", "float16", logits_check=False)
    assert report.dtype == "float16"
    assert {tensor.dtype for tensor in all_tensors(tmp_path / "merged").values()} == {torch.float16}
    assert load_tuned(str(tmp_path / "merged"), None).model.dtype == torch.float16
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "float16"


def test_a_value_beyond_float16_is_refused_where_no_adapter_is_too(tiny: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", make_adapter(tiny, tmp_path / "adapter")
    shutil.copytree(tiny, base)
    tensors = load_file(base / "model.safetensors")
    key = next(key for key in tensors if key.endswith("input_layernorm.weight"))
    tensors[key][0] = 1e5
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"input_layernorm.weight: merged in F16, .* Merge with --dtype float32"):
        merge_adapter(str(base), str(adapter), tmp_path / "merged", "float16", logits_check=False)
    assert not (tmp_path / "merged").exists()


def test_trained_biases_are_merged_too(tiny: Path, tmp_path: Path) -> None:
    tuned = get_peft_model(QWEN.model_class.from_pretrained(tiny), LoraConfig(target_modules=["q_proj"], bias="all"))
    with torch.no_grad():
        for name, parameter in move(tuned).named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.5)
    adapter = save_adapter(tuned, tiny, QWEN, tmp_path / "adapter")
    merge_adapter(str(tiny), str(adapter), tmp_path / "merged")
    before, after = all_tensors(tiny), all_tensors(tmp_path / "merged")
    biases = [key for key in before if key.endswith("bias")]
    assert any("q_proj" in key for key in biases)
    for key in biases:
        torch.testing.assert_close(after[key], before[key] + 0.5)


def test_what_older_servers_read_of_videos_is_kept(tinies: dict[str, Path], tmp_path: Path) -> None:
    base, backbone = tmp_path / "base", BACKBONES["qwen3_vl"]
    shutil.copytree(tinies["qwen3_vl"], base)
    load_processor(str(base), backbone).video_processor.save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", "qwen3_vl")
    merge_adapter(str(base), str(adapter), tmp_path / "merged", logits_check=False)
    name = "video_preprocessor_config.json"
    assert json.loads((tmp_path / "merged" / name).read_text()) == json.loads((base / name).read_text())


def test_a_killed_merge_leaves_nothing_under_its_name_and_the_next_one_is_whole(tiny: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(tiny, tmp_path / "adapter"), tmp_path / "merged"
    words = ["recipes/merge_adapter.py", "--base", tiny, "--adapter", adapter, "--out", out]
    merge = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".merged-*/*.safetensors")):
        assert merge.poll() is None, "ended before it could be killed"
        time.sleep(0.002)
    merge.kill()
    assert merge.wait() == -signal.SIGKILL and not out.exists()
    output = run_script(*words, "--no_logits_check")
    assert "NOT checked, since no model was loaded: the model loads from its folder alone" in output and out.is_dir()


PEAK = """
import sys
from pathlib import Path
from sarlang_sft.release import merge_adapter


def peak():  # a process starts with its parent's ru_maxrss, so not that
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))


before = peak()
merge_adapter(sys.argv[1], sys.argv[2], Path(sys.argv[3]), logits_check=False)
print("grew by", peak() - before)
"""


def write_wide(tiny: Path, out: Path, vocabulary: int) -> PreTrainedModel:
    """The tiny model with an untied head and many more tokens."""
    config = AutoConfig.from_pretrained(tiny)
    config.text_config.vocab_size, config.tie_word_embeddings = vocabulary, False
    model = QWEN.model_class(config).to(torch.bfloat16)
    model.save_pretrained(out)
    load_processor(str(tiny), QWEN).save_pretrained(out)
    return model


def test_memory_does_not_grow_with_the_model(tiny: Path, tmp_path: Path) -> None:
    """A file of 310 MB with two large tensors, and an adapter that holds one of them in full."""
    model = write_wide(tiny, tmp_path / "base", 600_000)
    assert (tmp_path / "base/model.safetensors").stat().st_size > 300e6
    tuned = move(with_adapters(model, QWEN, TuningArguments(modules_to_save=["lm_head"])))
    del model
    save_adapter(tuned, tmp_path / "base", QWEN, tmp_path / "adapter")
    folders = [tmp_path / name for name in ("base", "adapter", "merged")]
    output = run_script("-c", PEAK, *folders)
    print(output[-100:])
    assert int(output.rpartition("grew by ")[2].split()[0]) * 1024 < 150e6
