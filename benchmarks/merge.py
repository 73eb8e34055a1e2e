"""Time and memory of merging a LoRA adapter into a base of many GB, beside copying the base's files.

    python benchmarks/merge.py --size_gb 14 --work /scratch --out benchmarks/results/cpu_merge.json

The base has the published widths of Qwen2.5-VL-7B in bfloat16, random weights, files of up to 5 GB, and as many layers
as the size asks for; the adapter has rank 16 on every linear layer of the language model. Copy and merge begin with
the base's files dropped from the page cache. Merging is the whole program with --no_logits_check, from its start to
its end; seconds of computing tell how much of it was waiting, for the disk or for other programs. Sampled layers are
compared with what PEFT's merge_and_unload makes of them, all others with the base.
Needs twice the size on the disk; everything is removed at the end.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.backbones import BACKBONES, linear_modules
from sarlang_sft.loading import INDEX
from sarlang_sft.merging import Checkpoint, read_checkpoint
from sarlang_sft.safetensors_stream import Stored, write_header

RECIPE = Path(__file__).parent.parent / "recipes/merge_adapter.py"
SHARD = 5e9
RANK = 16
SAMPLED = 8
BACKBONE = BACKBONES["qwen2_5_vl"]


def skeleton_of(config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights."""
    with torch.device("meta"):
        return BACKBONE.model_class(config)


def with_layers(config: PretrainedConfig, count: int) -> PreTrainedModel:
    """The model with so many layers in its language model; the configuration says so from then on."""
    config.text_config.num_hidden_layers = count
    config.text_config.layer_types = ["full_attention"] * count
    return skeleton_of(config)


def bytes_of(model: PreTrainedModel) -> int:
    """In bfloat16, without tied tensors."""
    return 2 * sum(parameter.numel() for parameter in model.parameters())


def write_base(shape: str, size: float, out: Path) -> None:
    """A model of about `size` bytes with random weights and a processor; one block of random values fills it."""
    out.mkdir()
    processor = setting.make_processor(shape, ["Where are the ships?", "user\n", "assistant\n"], None)
    config = setting.make_config(shape, processor)
    config.dtype = torch.bfloat16
    one, two = (bytes_of(with_layers(config, count)) for count in (1, 2))
    model = with_layers(config, max(1, 1 + round((size - one) / (two - one))))
    tied = model.all_tied_weights_keys
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    released = revert_weight_conversion(model, state)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in released.items():
        if 2 * sum(one.numel() for one in [*shards[-1].values(), tensor]) > SHARD:
            shards.append({})
        shards[-1][name] = tensor
    noise = (torch.randn(1 << 25, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    noise = memoryview(noise.view(torch.uint8).numpy())
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        path = out / f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(shard, path.name)
        stored, end = {}, 0
        for name, tensor in shard.items():
            stored[name] = Stored(path, "BF16", tensor.shape, end, 2 * tensor.numel())
            end += stored[name].size
        with open(path, "wb") as file:
            write_header(file.fileno(), stored, dict.fromkeys(stored, "BF16"), {"format": "pt"})
            file.seek(0, os.SEEK_END)
            while end:
                end -= file.write(noise[: min(end, len(noise))])
    index = {"metadata": {"total_size": bytes_of(model)}, "weight_map": weight_map}
    (out / INDEX).write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)


def write_adapter(base: Path, out: Path) -> None:
    """A LoRA on every linear layer of the language model, with the base's processor."""
    model = skeleton_of(BACKBONE.model_class.config_class.from_pretrained(base))
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=linear_modules(model, BACKBONE, "language_model"))
    tuned = PeftModel(model, config, low_cpu_mem_usage=True)
    torch.manual_seed(0)
    tensors = get_peft_model_state_dict(tuned).items()
    out.mkdir()
    save_file({name: 0.02 * torch.randn(tensor.shape) for name, tensor in tensors}, out / "adapter_model.safetensors")
    config.save_pretrained(out)
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in ("config.json", INDEX):
            shutil.copyfile(path, out / path.name)


def forget(folder: Path) -> None:
    """Drop its files from the page cache."""
    os.sync()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def time_copy(base: Path, out: Path) -> tuple[float, float]:
    """Seconds, and seconds of computing."""
    forget(base)
    start, computed = time.perf_counter(), time.process_time()
    out.mkdir()
    for path in base.iterdir():
        shutil.copyfile(path, out / path.name)
    took = time.perf_counter() - start, time.process_time() - computed
    shutil.rmtree(out)
    return took


def time_merge(base: Path, adapter: Path, out: Path) -> tuple[float, float, int]:
    """Seconds, seconds of computing, and the most resident memory in bytes, of the recipe in its own process."""
    forget(base)
    command = [sys.executable, RECIPE, "--base", base, "--adapter", adapter, "--out", out, "--no_logits_check"]
    start, peak = time.perf_counter(), 0
    merge = subprocess.Popen(list(map(str, command)))
    status = Path(f"/proc/{merge.pid}/status")
    while merge.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, 1024 * int(line.split()[1]))
        time.sleep(0.02)
    if merge.returncode:
        raise SystemExit("the merge failed")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, peak


def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor of a checkpoint."""
    with safe_open(checkpoint.tensors[name].path, "pt") as file:
        return file.get_tensor(name)


def merged_by_peft(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What merge_and_unload makes of one linear layer."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight.clone()
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"])
    tuned = get_peft_model(nn.Sequential(layer), config)
    tuned.base_model.model[0].lora_A["default"].weight.data = a
    tuned.base_model.model[0].lora_B["default"].weight.data = b
    return tuned.merge_and_unload()[0].weight.data


def compare(base: Path, adapter: Path, merged: Path) -> dict[str, int | bool]:
    """Sampled layers against PEFT; every tensor without an adapter against the base."""
    before, after = read_checkpoint(base), read_checkpoint(merged)
    factors = load_file(adapter / "adapter_model.safetensors")
    layers = sorted({name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in factors})
    released = {name.replace("model.language_model.", "model."): name for name in layers}
    sampled = sorted(released)[:: max(1, len(released) // SAMPLED)]
    unequal = values = furthest = 0
    for key in sampled:
        own = f"base_model.model.{released[key]}"
        wanted = merged_by_peft(
            read(before, f"{key}.weight"), factors[f"{own}.lora_A.weight"], factors[f"{own}.lora_B.weight"]
        )
        found = read(after, f"{key}.weight")
        steps = (found.view(torch.int16).int() - wanted.view(torch.int16).int()).abs()
        unequal, values = unequal + int((steps > 0).sum()), values + steps.numel()
        furthest = max(furthest, int(steps.max()))
    untouched = [name for name in before.tensors if name.removesuffix(".weight") not in released]
    same = all(torch.equal(read(before, name), read(after, name)) for name in untouched)
    return {
        "layers_compared": len(sampled),
        "values_compared": values,
        "values_unequal": unequal,
        "furthest_in_steps_of_bfloat16": furthest,
        "untouched_tensors": len(untouched),
        "untouched_equal": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size_gb", type=float, default=14.0, help="size of the base's weights")
    parser.add_argument("--shape", default="qwen2_5_vl_7b", choices=setting.QWEN_SHAPES, help="widths of the base")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure; default: the system's temporary one")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        base, adapter, merged = (Path(scratch) / name for name in ("base", "adapter", "merged"))
        if shutil.disk_usage(scratch).free < 2.1e9 * options.size_gb:
            raise SystemExit(f"{scratch}: {2.1 * options.size_gb:.0f} GB are needed there")
        load = os.getloadavg()[0]
        write_base(options.shape, 1e9 * options.size_gb, base)
        write_adapter(base, adapter)
        copy_seconds, copy_cpu = time_copy(base, Path(scratch) / "copy")
        merge_seconds, merge_cpu, peak = time_merge(base, adapter, merged)
        sizes = [tensor.size for tensor in read_checkpoint(base).tensors.values()]
        result = {
            "hardware": setting.hardware().removesuffix(", float32"),
            "versions": setting.versions(),
            "size_bytes": sum(sizes),
            "tensors": len(sizes),
            "largest_tensor_bytes": max(sizes),
            "copy_seconds": copy_seconds,
            "copy_cpu_seconds": copy_cpu,
            "merge_seconds": merge_seconds,
            "merge_cpu_seconds": merge_cpu,
            "load_average_before": load,
            "merge_over_copy": merge_seconds / copy_seconds,
            "peak_bytes": peak,
            "allowed_bytes": int(2e9) + 2 * max(sizes),
            "beside_peft": compare(base, adapter, merged),
        }
    print(
        f"{result['size_bytes'] / 1e9:.1f} GB: copied in {copy_seconds:.1f} s, merged in {merge_seconds:.1f} s "
        f"({result['merge_over_copy']:.2f} x), {peak / 1e9:.2f} GB of memory at most "
        f"(allowed {result['allowed_bytes'] / 1e9:.2f})"
    )
    setting.write_result(options.out, result)


if __name__ == "__main__":
    main()
