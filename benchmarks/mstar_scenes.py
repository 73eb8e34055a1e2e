"""What a tiny model learns of texts built from boxes: real scenes with MSTAR vehicles, held-out scenes asked about.

    python benchmarks/mstar_scenes.py --scenes mstar_scenes --work outputs/mstar_scenes
    python benchmarks/mstar_scenes.py ... --out benchmarks/results/cpu_mstar_scenes.json

`--scenes` holds `images/` and `instances.json` (COCO). Windows are cut from the scenes, half of them around vehicles
and half without any, and build_from_boxes.py builds texts of their boxes. From those of the training scenes a
Qwen2.5-VL of 1.2 million parameters with random weights learns whether there is a vehicle (identification) and where
(positioning). It is asked about windows of held-out scenes, once as they are and once with the windows exchanged
(blind).

The scenes paste some chips several times: split_apart.py keeps scenes that share one on one side.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.scoring.baselines import majority_verdicts, read_training_answers
from sarlang_sft.scoring.predictions import join_predictions

ROOT = Path(__file__).parent.parent
TRAIN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "recipes/qwen_full.py"]
TASKS = ("identification", "positioning")
# Windows around every box, windows without any of every scene, and the seed of their places.
WINDOWS = {"train": (40, 70, 0), "test": (5, 9, 1)}
OPTIONS = {
    "dtype": "float32", "tuning": "full", "image_ops": ["resize:112", "standardise:4"], "image_trees": False,
    "per_device_train_batch_size": 16, "learning_rate": 1e-3, "adam_beta2": 0.98, "weight_decay": 0.05,
    "warmup_steps": 0.1, "lr_scheduler_type": "cosine", "gradient_checkpointing": False, "use_cpu": True,
    "ddp_find_unused_parameters": False, "logging_steps": 100, "save_strategy": "no", "dataloader_num_workers": 0,
    "report_to": "none", "seed": 0,
}  # fmt: skip


def run(*words: object) -> None:
    """A program of the repository; what it prints is shown."""
    print("python", *words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def prepare(scenes: Path, work: Path) -> None:
    """Data folders `train` and `test` of windows, in which every class is called a vehicle."""
    annotations, images = scenes / "instances.json", scenes / "images"
    run("benchmarks/split_apart.py", "--annotations", annotations, "--image_root", images, "--out", work / "split")
    names = [one["name"] for one in json.loads(annotations.read_text())["categories"]]
    words = {"extends": "en", "classes": {name: {"say": "vehicle"} for name in names}}
    (work / "vehicle.yaml").write_text(yaml.safe_dump(words))
    for split, (windows, empty, seed) in WINDOWS.items():
        cut = work / f"{split}_windows"
        run("benchmarks/cut_windows.py", "--annotations", work / f"split/{split}.json", "--image_root", images,
            "--out", cut, "--windows", windows, "--empty", empty, "--seed", seed)  # fmt: skip
        run("data_prep/build_from_boxes.py", "--annotations", f"{split}={cut / 'instances.json'}", "--image_root",
            cut / "images", "--out", work / split, "--texts", "vqa", "--wording", work / "vehicle.yaml",
            "--val_fraction", 0)  # fmt: skip


def train(work: Path, steps: int) -> None:
    """A tiny model from random weights, on the questions of both tasks."""
    tiny, data = str(work / "tiny"), [{"path": str(work / "train"), "tasks": list(TASKS)}]
    places = {"model_name_or_path": tiny, "tiny_folder": tiny, "data": data, "output_dir": str(work / "model")}
    (work / "config.yaml").write_text(yaml.safe_dump(OPTIONS | places | {"max_steps": steps}))
    run(*TRAIN, "--config", work / "config.yaml")


def ask(work: Path) -> dict[str, Any]:
    """Accuracy by task on windows of held-out scenes: the model, the blind model, and the most frequent answer."""
    data, out = work / "test", work / "answers"
    common = ["--data", data, "--split", "test", "--tasks", *TASKS]
    for way, more in (("model", []), ("blind", ["--exchange_images"])):
        run("eval/generate.py", "--model", work / "model", *common, "--out", out, "--name", way, *more)
        run("eval/score_vqa.py", "--predictions", out / f"{way}.jsonl", *common, "--protocol", "exact",
            "--out", out / f"{way}.json")  # fmt: skip
    scores = {way: json.loads((out / f"{way}.json").read_text())["by_task"] for way in ("model", "blind")}
    rows = [
        row for row in join_predictions(out / "model.jsonl", data, "test", captions=False).rows if row.task in TASKS
    ]
    majority = majority_verdicts(read_training_answers(work / "train"), rows)
    figures = {}
    for task in TASKS:
        of_task = [verdict for row, verdict in zip(rows, majority, strict=True) if row.task == task]
        model = {key: scores["model"][task][key] for key in ("value", "low", "high")}
        figures[task] = {
            "n": len(of_task),
            "model": model,
            "blind": scores["blind"][task]["value"],
            "majority": float(np.mean(of_task)),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder with images/ and instances.json")
    parser.add_argument("--work", type=Path, required=True, help="new folder for everything that is made")
    parser.add_argument("--steps", type=int, default=1500, help="of training, 32 questions each")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    prepare(options.scenes.resolve(), work)
    start = time.perf_counter()
    train(work, options.steps)
    seconds = time.perf_counter() - start
    figures = ask(work)
    for task, one in figures.items():
        value, low, high = one["model"].values()
        print(f"{task:15} of {one['n']}: {value:.1%} ({low:.1%} to {high:.1%}), blind {one['blind']:.1%}, "
              f"majority {one['majority']:.1%}")  # fmt: skip
    result = {
        "hardware": f"{setting.hardware()}, in each of 2 processes",
        "versions": setting.versions(),
        "steps": options.steps,
    }
    setting.write_result(options.out, {**result, "training_seconds": seconds, "tasks": figures})


if __name__ == "__main__":
    main()
