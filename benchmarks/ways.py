"""Speed and memory of every named way to tune, side by side on image trees.

    python benchmarks/ways.py                                          # a small model, on a CPU
    python benchmarks/ways.py --real_processor DIR --out FILE          # with the real Qwen tokenizer's token counts
    python benchmarks/ways.py --shape qwen2_5_vl_7b --dtype bfloat16   # on a GPU

Every way trains a model with the same random weights on the same images and questions, each in a process of its own,
through the library's own steps. The first step is not timed. Memory is the highest of the process (or of the GPU)
beyond what it had before the model was loaded.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import find_backbone
from sarlang_sft.loading import build_skeleton, load_processor, load_weights
from sarlang_sft.runs import open_run
from sarlang_sft.training import build_trainer, make_collator, plan_rows, prepare_attention, prepare_tuning
from sarlang_sft.tuning import TUNINGS, TuningArguments


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One way in this process."""
    folder = str(options.folder / "model")
    tuning = TuningArguments(tuning=options.way, lora_r=options.lora_r, lora_alpha=2 * options.lora_r)
    model = ModelArguments(folder, dtype=options.dtype)
    data = DataArguments(data=str(setting.make_data(options.folder, options.images)), max_tokens_per_row=options.row)
    training = TrainArguments(
        output_dir=str(options.folder / "run"), max_steps=options.steps + 1, logging_first_step=True,
        logging_steps=options.steps + 1, save_strategy="no", report_to="none", disable_tqdm=True,
        bf16=options.dtype == "bfloat16", gradient_checkpointing=options.gradient_checkpointing,
    )  # fmt: skip
    backbone = find_backbone(folder)
    processor = load_processor(folder, backbone)
    skeleton = build_skeleton(folder, backbone)
    attention = prepare_attention(model, data, training)
    trainable, quantisation = prepare_tuning(skeleton, backbone, model, tuning, training)
    opened = open_run(model, tuning, data, training)
    plan = plan_rows(processor, backbone, skeleton.config, data, training)
    collator = make_collator(processor, backbone, data, attention, opened)
    before = setting.peak_memory()
    weights = load_weights(folder, backbone, options.dtype, attention.by_config(), quantisation)
    trainer = build_trainer(weights, collator, plan, attention, trainable, tuning, data, training, opened)
    trainer.train()
    *_, timed = [entry for entry in trainer.state.log_history if "qa_per_s" in entry]
    return {
        "way": options.way,
        "qa_per_s": timed["qa_per_s"],
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "memory_bytes": setting.peak_memory() - before,
        "loss": timed["loss"],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=setting.SHAPES, default="qwen_cpu", help="model, with random weights")
    parser.add_argument("--ways", nargs="+", choices=list(TUNINGS), default=list(TUNINGS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lora_r", type=int, default=8)
    parser.add_argument("--row", type=int, default=1024, help="tokens of a row, one row a step")
    parser.add_argument("--steps", type=int, default=12, help="timed steps; one more comes before them")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--images", type=int, default=30, help="simulated scenes to draw from")
    parser.add_argument("--real_processor", type=Path, help="folder of Qwen2.5-VL's own tokenizer, for its counts")
    parser.add_argument("--folder", type=Path, help="where model and sample are kept (a temporary one by default)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--way", choices=list(TUNINGS), help=argparse.SUPPRESS)  # one of them, in a process of its own
    return parser.parse_args()


def table(runs: list[dict[str, Any]]) -> str:
    """The runs beside plain LoRA."""
    lines = [f"{'way':16} {'QA/s':>8} {'of LoRA':>8} {'trainable':>12} {'memory':>9}"]
    for one in runs:
        plain = next((run["qa_per_s"] for run in runs if run["way"] == "lora"), None)
        lines.append(
            f"{one['way']:16} {one['qa_per_s']:8.2f} {one['qa_per_s'] / plain if plain else float('nan'):8.2f} "
            f"{one['trainable']:12,} {one['memory_bytes'] / 1e9:7.2f}GB"
        )
    return "\n".join(lines)


def main() -> None:
    options = parse()
    if options.way:
        Path(options.out).write_text(json.dumps(run(options)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = options.folder or Path(scratch)
        data = setting.make_data(options.folder, options.images)
        processor = setting.make_processor(options.shape, setting.texts_of(data), options.real_processor)
        model, _ = setting.make_model(options.shape, processor, "sdpa", getattr(torch, options.dtype))
        model.save_pretrained(options.folder / "model")
        processor.save_pretrained(options.folder / "model")
        del model
        runs = []
        for way in options.ways:
            words = ["--way", way, *["--gradient_checkpointing"] * options.gradient_checkpointing]
            for name in ("dtype", "lora_r", "row", "steps", "images", "folder"):
                words += [f"--{name}", getattr(options, name)]
            runs.append(setting.run_apart(__file__, words, Path(scratch) / "one.json"))
            print(table(runs).splitlines()[-1], flush=True)
    print(table(runs))
    of_all = {"shape": options.shape, "dtype": options.dtype, "lora_r": options.lora_r, "row": options.row}
    of_all |= {"gradient_checkpointing": options.gradient_checkpointing, "steps": options.steps}
    setting.write_result(
        options.out, {"hardware": setting.hardware(), "versions": setting.versions(), **of_all, "runs": runs}
    )


if __name__ == "__main__":
    main()
