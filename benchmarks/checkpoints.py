"""What checkpoints cost: the part of a run's time that writing them takes, beside the same run without any.

    python benchmarks/checkpoints.py --out benchmarks/results/cpu_checkpoints.json

A tiny Qwen2.5-VL trains on simulated scenes with the recipes, in turn: LoRA with a checkpoint every `save_steps` steps
(the default of 500), with one every 20, and without any; and the language model in full with the default. The part is
what every run writes into its own train_results.json: seconds spent in writing over seconds of training.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.mixture import DataSource, read_mixture

ROOT = Path(__file__).parent.parent
RUNS = {
    "lora, every 500 steps": ["recipes/qwen_lora.py", "--save_strategy", "steps"],
    "lora, every 20 steps": ["recipes/qwen_lora.py", "--save_strategy", "steps", "--save_steps", "20"],
    "lora, off": ["recipes/qwen_lora.py", "--save_strategy", "no"],
    "full, every 500 steps": ["recipes/qwen_full.py", "--save_strategy", "steps", "--tuning", "language_model"],
}


def measure(name: str, words: list[str], folder: Path, data: Path, steps: int) -> dict[str, Any]:
    """One run; its figures."""
    out = folder / name.replace(", ", "_").replace(" ", "_")
    options = {
        "model_name_or_path": folder / "model", "data": data, "output_dir": out, "max_steps": steps,
        "dtype": "float32", "use_cpu": "true", "gradient_checkpointing": "false", "report_to": "none",
        "disable_tqdm": "true", "logging_steps": 50, "max_tokens_per_row": 1024, "learning_rate": 1e-4,
        "dataloader_num_workers": 1,
    }  # fmt: skip
    words = [sys.executable, *words, *(str(word) for item in options.items() for word in (f"--{item[0]}", item[1]))]
    finished = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{name} failed:\n{finished.stderr[-4000:]}")
    result = json.loads((out / "train_results.json").read_text())
    checkpoints = list(out.glob("checkpoint-*"))
    size = sum(path.stat().st_size for path in checkpoints[0].rglob("*")) if checkpoints else 0
    seconds, whole = result["checkpoint_seconds"], result["train_runtime"]
    return {
        "run": name,
        "train_seconds": whole,
        "checkpoint_seconds": seconds,
        "part": seconds / whole,
        "checkpoints": len(checkpoints),
        "checkpoint_bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="of every run (default: %(default)s)")
    parser.add_argument("--images", type=int, default=60, help="simulated scenes (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = setting.make_data(folder, options.images)
        turns = read_mixture([DataSource(str(data))], "train")["turns"].to_pylist()
        texts = [text for dialogue in turns for turn in dialogue for text in turn.values()]
        BACKBONES["qwen2_5_vl"].build_tiny(folder / "model", texts, 0)
        for name, words in RUNS.items():
            runs.append(measure(name, words, folder, data, options.steps))
            one = runs[-1]
            print(
                f"{name:24} {one['train_seconds']:7.1f} s, {one['checkpoints']:3} checkpoints of "
                f"{one['checkpoint_bytes'] / 1e6:5.1f} MB in {one['checkpoint_seconds']:6.2f} s: {one['part']:.2%}",
                flush=True,
            )
    setting.write_result(
        options.out,
        {"hardware": setting.hardware(), "versions": setting.versions(), "steps": options.steps, "runs": runs},
    )


if __name__ == "__main__":
    main()
