"""Question-answer pairs per second: stock TRL, our flat path, our image trees.

    python benchmarks/throughput.py                          # 9 questions an image, LoRA, a small model, on a CPU
    python benchmarks/throughput.py --real_processor DIR     # the same with the real Qwen tokenizer's token counts
    python benchmarks/throughput.py --shape qwen2_5_vl_7b --paths trl_stock trees --turns 1 4 16 --out FILE

Every path trains the same model from the same weights with the same optimiser on the same images (448 pixels) and
questions in every step, each in a process of its own. Stock TRL is `SFTTrainer` with its own collator on
prompt-completion rows, one question per sample. The first step (compilation, first allocations) is not timed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.adapters import lora_config
from sarlang_sft.arguments import TrainArguments
from sarlang_sft.attention import FLEX, choose_attention
from sarlang_sft.collate import DialogueCollator
from sarlang_sft.flops import PEAK_FLOPS, FlopCount, count_flops
from sarlang_sft.meter import Meter
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.packing import PlannedRows
from sarlang_sft.trainable import choose_trainable, freeze_all_but, run_frozen_without_gradient
from sarlang_sft.trainer import DialogueTrainer
from sarlang_sft.trees import TreeCollator
from sarlang_sft.tuning import TuningArguments

PATHS = ("trl_stock", "flat", "trees")


class Timed:
    """Counts what every step did; the same code for every path."""

    def start_timing(self, image_token_id: int) -> None:
        self.timed_token_id = image_token_id
        self.steps: list[Meter] = []

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        meter = Meter(time.perf_counter())
        batches, items = super().get_batch_samples(meter.timed(epoch_iterator), num_batches, device)
        for batch in batches:
            meter.add(batch, self.timed_token_id, scores_everything=device.type == "cpu")
        self.steps.append(meter)
        return batches, items


class TimedStock(Timed, SFTTrainer):
    """Stock TRL with counters."""


class TimedOurs(Timed, DialogueTrainer):
    """Our trainer with counters."""


class Ends(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def training_arguments(options: argparse.Namespace, kind: type[SFTConfig], batch: int, steps: int) -> SFTConfig:
    trees = options.path == "trees"
    per_step = options.images_per_step * (1 if trees else options.turns[0])
    per_pass = batch * (options.trees_per_row if trees else 1)
    if per_step % per_pass:
        raise SystemExit(f"{options.path}: a step of {per_step} does not divide into passes of {per_pass}")
    return kind(
        output_dir=str(options.folder / "run"), per_device_train_batch_size=batch, max_steps=steps, learning_rate=1e-4,
        gradient_accumulation_steps=per_step // per_pass,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", max_length=None,
        gradient_checkpointing=options.gradient_checkpointing, bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(), dataloader_num_workers=options.workers, disable_tqdm=True,
        remove_unused_columns=False, train_sampling_strategy="sequential", optim="adamw_torch",
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One path in this process."""
    data = setting.make_data(options.folder, options.images)
    turns, steps = options.turns[0], options.steps + 1
    groups = setting.draw_images(data, turns, steps * options.images_per_step)
    table = read_mixture([DataSource(str(data))], "train")
    processor = setting.make_processor(options.shape, setting.texts_of(data), options.real_processor)
    on_cuda = torch.cuda.is_available()
    attention = choose_attention("auto", options.path == "trees", on_cuda, half=on_cuda)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    kernels = "sdpa" if options.path == "trl_stock" else attention.by_config()
    model, backbone = setting.make_model(options.shape, processor, kernels, dtype)
    tuning = TuningArguments(language_model=options.tuning)
    trainable = choose_trainable(model, backbone, tuning)
    adapters = lora_config(model, backbone, trainable, tuning)
    if adapters is None:
        freeze_all_but(model, trainable)
    ends = Ends()
    common = {"model": model, "processing_class": processor, "peft_config": adapters, "callbacks": [ends]}
    batch = min(options.batch, options.images_per_step * turns)
    if options.path == "trl_stock":
        numbers = [int(number) for group in groups for number in group]
        rows = [table.slice(number, 1).to_pylist()[0] for number in numbers]
        dataset = datasets.Dataset.from_dict(
            {
                "images": [[str(Path(row["image_root"]) / name) for name in row["images"]] for row in rows],
                "prompt": [[{"role": "user", "content": row["turns"][0]["question"]}] for row in rows],
                "completion": [[{"role": "assistant", "content": row["turns"][0]["answer"]}] for row in rows],
            }
        ).cast_column("images", datasets.List(datasets.Image()))
        args = training_arguments(options, SFTConfig, batch, steps)
        trainer = TimedStock(args=args, train_dataset=dataset, **common)
        flops = count_flops(trainer.model, backbone)
    else:
        if options.path == "trees":
            size = options.trees_per_row
            planned = [[groups[start : start + size] for start in range(0, len(groups), size)]]
            collator = TreeCollator(processor, backbone, [])
            if attention.language_model == FLEX:
                lengths = [collator([row])["input_ids"].shape[1] for row in PlannedRows(table, planned, True)]
                collator.row_length = -(-max(lengths) // 128) * 128
            args = training_arguments(options, TrainArguments, options.rows, steps)
        else:
            planned = [[[group[place : place + 1]] for group in groups for place in range(turns)]]
            collator = DialogueCollator(processor, backbone, [])
            args = training_arguments(options, TrainArguments, batch, steps)
        rows = PlannedRows(table, planned, options.path == "trees")
        trainer = TimedOurs(args=args, train_dataset=rows.dialogues, data_collator=collator, **common)
        trainer.plan(rows, backbone, attention.language_model)
        run_frozen_without_gradient(trainer.model, backbone)
        flops = trainer.flops
    trainer.start_timing(processor.tokenizer.convert_tokens_to_ids(backbone.image_token))
    trainer.train()
    return summary(options, trainer, ends.times, flops)


def summary(options: argparse.Namespace, trainer: Timed, ends: list[float], flops: FlopCount) -> dict[str, Any]:
    """The figures of all steps but the first."""
    seconds, steps = ends[-1] - ends[0], trainer.steps[1:]
    answered, work = sum(step.answers() for step in steps), sum(flops(step.work()) for step in steps)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for name, value in PEAK_FLOPS.items() if name in gpu), None)
    return {
        "name": options.path,
        "shape": options.shape,
        "tuning": options.tuning,
        "turns_per_image": options.turns[0],
        "images_per_step": options.images_per_step,
        "qa_per_s": answered / seconds,
        "tokens_per_s": sum(step.work().tokens for step in steps) / seconds,
        "tokens_per_qa": sum(step.work().tokens for step in steps) / answered,
        "flop_per_qa": work / answered,
        "peak_memory_bytes": setting.peak_memory(),
        "mfu": work / seconds / peak if peak else None,
        "data_wait": sum(step.waited for step in steps) / seconds,
        "seconds_per_step": seconds / len(steps),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=setting.SHAPES, default="qwen_cpu", help="model, with random weights")
    parser.add_argument("--tuning", choices=("lora", "full"), default="lora", help="of the language model")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--turns", nargs="+", type=int, default=[9], help="questions per image")
    parser.add_argument("--images_per_step", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="timed steps; one more comes before them")
    parser.add_argument("--batch", type=int, default=9, help="stock and flat: samples per forward pass")
    parser.add_argument("--trees_per_row", type=int, default=1, help="trees: images in one row")
    parser.add_argument("--rows", type=int, default=1, help="trees: rows per forward pass")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--images", type=int, default=60, help="simulated scenes to draw from")
    parser.add_argument("--real_processor", type=Path, help="folder of Qwen2.5-VL's own tokenizer, for its counts")
    parser.add_argument("--folder", type=Path, help="where the sample is kept (a temporary one by default)")
    parser.add_argument("--out", type=Path, help="JSON file for the result; runs are added to it")
    parser.add_argument("--path", choices=PATHS, help=argparse.SUPPRESS)  # a single run, in a process of its own
    return parser.parse_args()


def table(runs: list[dict[str, Any]]) -> str:
    """The runs, and what each gains over stock TRL of its turns."""
    lines = [
        f"{'path':10} {'turns':>5} {'QA/s':>8} {'tokens/QA':>10} {'GFLOP/QA':>9} {'memory':>8} {'wait':>6}  ratio"
    ]
    for one in runs:
        line = (
            f"{one['name']:10} {one['turns_per_image']:5} {one['qa_per_s']:8.2f} {one['tokens_per_qa']:10.1f} "
            f"{one['flop_per_qa'] / 1e9:9.1f} {one['peak_memory_bytes'] / 1e9:6.1f}GB {one['data_wait']:6.1%}"
        )
        same = ("shape", "tuning", "turns_per_image", "images_per_step")
        alike = [run for run in runs if run["name"] == "trl_stock" and all(run[key] == one[key] for key in same)]
        if alike and one["name"] != "trl_stock":
            measured = one["qa_per_s"] / alike[0]["qa_per_s"]
            counted = alike[0]["flop_per_qa"] / one["flop_per_qa"]
            line += f"  {measured:.2f}x measured, {counted:.2f}x counted: {measured / counted:.0%} gained"
        lines.append(line + (f"  MFU {one['mfu']:.1%}" if one["mfu"] else ""))
    return "\n".join(lines)


def main() -> None:
    options = parse()
    if options.path:
        Path(options.out).write_text(json.dumps(run(options)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = options.folder or Path(scratch)
        setting.make_data(options.folder, options.images)
        runs = []
        for turns in options.turns:
            for path in options.paths:
                words = ["--path", path, "--turns", turns]
                words += ["--gradient_checkpointing"] * options.gradient_checkpointing
                for name in ("shape", "tuning", "images_per_step", "steps", "batch", "trees_per_row", "rows",
                             "workers", "images", "real_processor", "folder"):  # fmt: skip
                    if getattr(options, name) is not None:
                        words += [f"--{name}", getattr(options, name)]
                runs.append(setting.run_apart(__file__, words, Path(scratch) / "one.json"))
                print(table(runs[-1:]).splitlines()[1], flush=True)
    earlier = (
        json.loads(options.out.read_text(encoding="utf-8"))["runs"] if options.out and options.out.is_file() else []
    )
    print(table(earlier + runs))
    print("losses:")
    for one in runs:
        print(f"  {one['name']:10} {one['turns_per_image']:3}  " + " ".join(f"{loss:.4f}" for loss in one["losses"]))
    result = {
        "hardware": setting.hardware(),
        "versions": setting.versions(),
        "tokenizer": "Qwen2.5-VL's, cut to the words used" if options.real_processor else "trained on the sample",
        "runs": earlier + runs,
    }
    setting.write_result(options.out, result)


if __name__ == "__main__":
    main()
