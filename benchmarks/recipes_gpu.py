"""The LoRA recipe on one GPU at full size: Qwen2.5-VL-7B's shape with random weights, nothing downloaded.

    python benchmarks/recipes_gpu.py --out benchmarks/results/recipes_h200.json

Trains a few steps of the published recipe as a plain process, under torchrun, and with DeepSpeed ZeRO-2 and ZeRO-3 over
nccl on one rank, and merges the adapter. Speed, memory and losses are real; what the model answers is not.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sarlang_sft.backbones import QWEN_SPECIAL_TOKENS, build_tiny_qwen2_5_vl, find_backbone, load_processor
from sarlang_sft.records import read_dialogue_table, write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert

ROOT = Path(__file__).parent.parent
# Shapes of the released config.json of Qwen2.5-VL-7B-Instruct.
TEXT = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
}  # fmt: skip


def build_7b(out: Path, data: Path) -> None:
    """Write the 7B shape in bf16 with random weights, and a processor of 14-pixel patches with a small tokenizer."""
    turns = [turn for dialogue in read_dialogue_table(data, "train")["turns"].to_pylist() for turn in dialogue]
    build_tiny_qwen2_5_vl(out, [text for turn in turns for text in turn.values()], 0)
    processor = load_processor(str(out), find_backbone(str(out)))
    for part in (processor.image_processor, processor.video_processor):
        part.patch_size = 14
        part.size = {"shortest_edge": 56 * 56, "longest_edge": 512 * 512}
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config=TEXT
        | {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]},
        vision_config=VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def run(name: str, command: list[str], out: Path) -> dict:
    """Run one training; its losses, speed and peak memory as the trainer reports them."""
    started = time.monotonic()
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result = {
        "name": name,
        "seconds_with_start": round(time.monotonic() - started, 1),
        "exit_code": finished.returncode,
    }
    if finished.returncode:
        print(name, finished.stdout[-1500:], finished.stderr[-2500:], flush=True)
        return result
    metrics = json.loads((out / "train_results.json").read_text())
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    result["losses"] = [round(entry["loss"], 5) for entry in history if "loss" in entry]
    result["qa_per_s"] = round(metrics["train_samples_per_second"], 3)
    result["peak_memory_bytes"] = sum(
        metrics.get(key, 0)
        for key in ("init_mem_gpu_alloc_delta", "train_mem_gpu_alloc_delta", "train_mem_gpu_peaked_delta")
    )
    result["adapter_bytes"] = (out / "adapter_model.safetensors").stat().st_size
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--work", type=Path, default=Path("/tmp/recipes_gpu"), help="folder for the model (35 GB)")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps of each run")
    args = parser.parse_args()

    shutil.rmtree(args.work, ignore_errors=True)
    sample, data, model = args.work / "sample", args.work / "data", args.work / "model"
    write_sample(sample, images=60, seed=0, size=448)
    records, rejections, inputs = convert(sample, sample, 0.02, Prompts())
    write_data_folder(data, records, rejections, sample, inputs)
    build_7b(model, data)
    torch.cuda.empty_cache()

    versions = {
        p: importlib.metadata.version(p) for p in ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
    }
    report = {"hardware": torch.cuda.get_device_name(), "versions": versions, "steps": args.steps, "runs": []}
    recipe = [
        str(ROOT / "recipes/qwen_lora.py"), "--config", str(ROOT / "recipes/configs/qwen2_5_vl_7b_lora.yaml"),
        "--model_name_or_path", str(model), "--data", str(data), "--max_steps", str(args.steps), "--logging_steps", "1",
        "--save_strategy", "no", "--skip_memory_metrics", "false",
    ]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    starts = {
        "python": [sys.executable, *recipe],
        "torchrun": [*torchrun, *recipe],
        "torchrun zero2": [*torchrun, *recipe, "--deepspeed", str(ROOT / "deepspeed_configs/zero2.json")],
        "torchrun zero3": [*torchrun, *recipe, "--deepspeed", str(ROOT / "deepspeed_configs/zero3.json")],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, command in starts.items():
        out = args.work / name.replace(" ", "_")
        report["runs"].append(run(name, [*command, "--output_dir", str(out)], out))
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    merge = [str(ROOT / "recipes/merge_adapter.py"), "--base", str(model), "--adapter", str(args.work / "python")]
    merged = args.work / "merged"
    finished = subprocess.run(
        [sys.executable, *merge, "--out", str(merged)], capture_output=True, text=True, env=os.environ, cwd=ROOT
    )
    print(finished.stdout[-500:], finished.stderr[-1500:] if finished.returncode else "", flush=True)
    if finished.returncode == 0:
        report["merge"] = json.loads((merged / "merge_report.json").read_text())
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
