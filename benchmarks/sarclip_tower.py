"""Does a tower that SARCLIP taught on radar images help a LLaVA? Beside a random tower, frozen both, at equal steps.

    python benchmarks/sarclip_tower.py --work outputs/sarclip_tower
    python benchmarks/sarclip_tower.py ... --out benchmarks/results/cpu_sarclip_tower.json

On simulated scenes: a tiny CLIP learns images and captions of the training split; its tower, and that of the same CLIP
before its first step, are put into a tiny LLaVA that has learned nothing (recipes/put_tower.py). Projector and
language model of both learn from the same rows of the training split, the tower stays as it is, and both are asked
the test split's questions, once with the images exchanged (blind). A random tower is no strawman on such scenes: a
transformer's random features keep much of the picture, and the layers behind them learn to read it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.contrastive.models import load_model, save_model
from sarlang_sft.records import read_dialogue_table
from sarlang_sft.reporting.tables import right_answers
from sarlang_sft.scoring.baselines import majority_verdicts, read_training_answers
from sarlang_sft.scoring.predictions import join_predictions
from sarlang_sft.tiny import build_tiny_llava

ROOT = Path(__file__).parent.parent
COMMON = [
    "--use_cpu", "true", "--save_strategy", "no", "--report_to", "none", "--dataloader_num_workers", 0, "--adam_beta2",
    0.98, "--warmup_steps", 0.1, "--lr_scheduler_type", "cosine", "--logging_steps", 25, "--resume", "never",
]  # fmt: skip


def call(*words: object) -> None:
    """A program of the repository; what it prints is shown."""
    print("python", *words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def prepare(work: Path, images: int) -> Path:
    """The data folder of a sample, and a tiny LLaVA with random weights whose tokenizer knows its words."""
    data = work / "data"
    call("data_prep/make_sample.py", "--out", work / "sample", "--images", images, "--seed", 0)
    call("data_prep/convert_sarlang.py", "--root", work / "sample", "--out", data, "--class_prefix", "never")
    dialogues = read_dialogue_table(data, "train")["turns"].to_pylist()
    texts = [text for dialogue in dialogues for turn in dialogue for text in turn.values()]
    build_tiny_llava(work / "untaught", texts, 0)
    return data


def teach_towers(work: Path, data: Path, steps: int) -> dict[str, Path]:
    """Folders of the CLIP before its training and after it."""
    towers = {"random": work / "random_clip", "sarclip": work / "sarclip"}
    save_model(load_model("sar-vit-tiny", resize_mode="longest", image_ops=["fixed"]), towers["random"])
    words = ["--model_name_or_path", towers["random"], "--data", data, "--output_dir", towers["sarclip"]]
    words += ["--max_steps", steps, "--global_batch_size", 64, "--learning_rate", 1e-3, "--weight_decay", 0.05]
    call("recipes/sarclip.py", *words, *COMMON)
    return towers


def measure(work: Path, data: Path, name: str, tower: Path, steps: int) -> dict[str, Any]:
    """Put a tower in, train what is behind it, answer the test split."""
    base, out = work / f"{name}_base", work / f"{name}_llava"
    call("recipes/put_tower.py", "--tower", tower, "--base", work / "untaught", "--out", base)
    words = ["--model_name_or_path", base, "--data", data, "--output_dir", out, "--max_steps", steps]
    words += ["--tuning", "language_model", "--projector", "full", "--image_ops", "fixed", "--learning_rate", 1e-3]
    words += ["--turns_per_image", 6, "--max_tokens_per_row", 1024, "--gradient_checkpointing", "false"]
    call("recipes/llava_full.py", *words, *COMMON)
    figures: dict[str, Any] = {"tower": name}
    for way, more in (("accuracy", []), ("blind", ["--exchange_images"])):
        asked = ["--data", data, "--subsets", "vqa1", "vqa2", "--out", out, "--name", way, *more]
        call("eval/generate.py", "--model", out, *asked)
        rows = join_predictions(out / f"{way}.jsonl", data, "test", captions=False).rows
        right = right_answers(rows)
        figures |= {way: sum(right) / len(right), "n": len(right)}
    majority = majority_verdicts(read_training_answers(data), rows)
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    figures["majority"] = sum(majority) / len(majority)
    figures["last_losses"] = [entry["loss"] for entry in history if "loss" in entry][-3:]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and models; must not exist")
    parser.add_argument("--images", type=int, default=800, help="scenes, a fifth of them in test")
    parser.add_argument("--contrastive_steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=300, help="of what stands behind the tower")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    data = prepare(work, options.images)
    towers = teach_towers(work, data, options.contrastive_steps)
    runs = [measure(work, data, name, tower, options.steps) for name, tower in towers.items()]
    for run in runs:
        print(f"{run['tower']:10} {run['accuracy']:.1%}, blind {run['blind']:.1%}, majority {run['majority']:.1%}")
    given = {name: vars(options)[name] for name in ("images", "contrastive_steps", "steps")}
    setting.write_result(
        options.out, {"hardware": setting.hardware(), "versions": setting.versions(), **given, "runs": runs}
    )


if __name__ == "__main__":
    main()
