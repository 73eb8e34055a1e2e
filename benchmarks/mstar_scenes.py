"""What a tiny model learns of texts built from boxes: real scenes with MSTAR vehicles, never seen scenes asked about.

    python benchmarks/mstar_scenes.py --scenes mstar_scenes --chips MSTAR --work outputs/mstar_scenes
    python benchmarks/mstar_scenes.py ... --out benchmarks/results/cpu_mstar_scenes.json

`--scenes` holds `images/` and `instances.json` (COCO), `--chips` class folders of MSTAR (docs/mstar.md). A Qwen2.5-VL
of 1.2 million parameters with random weights learns in two stages: MSTAR's ten vehicles from chips, then texts that
build_from_boxes.py builds of windows cut from the training scenes: narrow ones (the vehicle nearly fills them) for
identification, wide ones for positions. Then it is asked about windows of held-out scenes, once as they are and once
with the windows exchanged (blind).

The scenes paste some chips several times: split_apart.py keeps scenes that share one on one side, and chips that a
held-out scene shows are left out of the first stage.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import setting
from split_apart import ALIKE, INNER, OUTER, around, correlations

from sarlang_sft.imagery import read_image
from sarlang_sft.scoring.baselines import majority_verdicts, read_training_answers
from sarlang_sft.scoring.predictions import join_predictions

ROOT = Path(__file__).parent.parent
TRAIN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "recipes/qwen_full.py"]
WINDOWS = {"narrow": 144, "wide": 224}  # pixels of a side
ASKED = {"narrow": ("classification", "identification"), "wide": ("positioning",)}
PICTURE = ["resize:112", "standardise:4"]
COMMON = {
    "dtype": "float32", "tuning": "full", "image_trees": False, "per_device_train_batch_size": 16, "adam_beta2": 0.98,
    "weight_decay": 0.05, "lr_scheduler_type": "cosine", "gradient_checkpointing": False, "use_cpu": True,
    "ddp_find_unused_parameters": False, "logging_steps": 100, "save_strategy": "no", "dataloader_num_workers": 0,
    "report_to": "none", "seed": 0,
}  # fmt: skip


def run(*words: object) -> None:
    """A program of the repository; what it prints is shown."""
    print("python", *words, flush=True)
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def copy_other_chips(chips: Path, scenes: Path, held_out: Path, out: Path) -> int:
    """Copy class folders without the chips that a held-out scene shows; returns how many these are."""
    coco = json.loads(held_out.read_text())
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    pixels = {name: np.log1p(read_image(scenes / "images" / name)[..., 0]) for name in names.values()}
    shown = np.stack([around(pixels[names[box["image_id"]]], box["bbox"], INNER) for box in coco["annotations"]])
    left_out = 0
    for folder in sorted(path for path in chips.glob("*/*") if path.is_dir()):
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        images = [np.log1p(read_image(path)[..., 0]) for path in paths]
        whole = np.stack([around(image, [0, 0, *image.shape[::-1]], OUTER) for image in images])
        alike = (correlations(shown, whole) >= ALIKE).any(axis=0)
        (out / folder.relative_to(chips)).mkdir(parents=True)
        for path in np.array(paths)[~alike]:
            shutil.copy(path, out / path.relative_to(chips))
        left_out += int(alike.sum())
    return left_out


def prepare(scenes: Path, chips: Path, work: Path) -> int:
    """Data folders `chips`, `narrow_train`, `narrow_test`, `wide_train`, `wide_test`; returns the chips left out."""
    images = scenes / "images"
    run("benchmarks/split_apart.py", "--annotations", scenes / "instances.json", "--image_root", images,
        "--out", work / "split")  # fmt: skip
    left_out = copy_other_chips(chips, scenes, work / "split/test.json", work / "other_chips")
    run("data_prep/convert_folders.py", "--root", work / "other_chips", "--out", work / "chips", "--source", "MSTAR",
        "--captions", 1, "--val_fraction", 0)  # fmt: skip
    for name, side in WINDOWS.items():
        for split, count, seed in (("train", 50, 0), ("test", 5, 1)):
            cut = work / f"{name}_{split}_windows"
            run("benchmarks/cut_windows.py", "--annotations", work / f"split/{split}.json", "--image_root", images,
                "--out", cut, "--windows", count, "--side", side, "--seed", seed)  # fmt: skip
            run("data_prep/build_from_boxes.py", "--annotations", f"{split}={cut / 'instances.json'}", "--image_root",
                cut / "images", "--out", work / f"{name}_{split}", "--texts", "vqa", "--val_fraction", 0)  # fmt: skip
    return left_out


def train(work: Path, steps: tuple[int, int]) -> None:
    """The two stages."""
    tiny, first, second = (str(work / name) for name in ("tiny", "first", "second"))
    chips = [{"path": str(work / "chips"), "tasks": ["classification", "description"]}]
    windows = [
        {"path": str(work / "narrow_train"), "tasks": list(ASKED["narrow"])},
        {"path": str(work / "wide_train"), "tasks": list(ASKED["wide"]), "weight": 0.8},
    ]
    stages = (
        {"model_name_or_path": tiny, "tiny_folder": tiny, "data": chips, "image_ops": ["crop:144", *PICTURE],
         "output_dir": first, "learning_rate": 1e-3, "max_steps": steps[0], "warmup_steps": 0.1},
        {"model_name_or_path": first, "tiny_folder": first, "data": windows, "image_ops": PICTURE,
         "output_dir": second, "learning_rate": 5e-4, "max_steps": steps[1], "warmup_steps": 0.05},
    )  # fmt: skip
    for number, stage in enumerate(stages, 1):
        config = work / f"stage_{number}.yaml"
        config.write_text(yaml.safe_dump(COMMON | stage))
        run(*TRAIN, "--config", config)


def ask(work: Path) -> dict[str, Any]:
    """Accuracy by task on windows of held-out scenes, of the model, the blind model and the majority answer."""
    figures = {}
    for name, tasks in ASKED.items():
        data, training = work / f"{name}_test", work / f"{name}_train"
        common = ["--data", data, "--split", "test", "--tasks", *tasks]
        for way, more in (("model", []), ("blind", ["--exchange_images"])):
            out = work / f"answers_{name}"
            run("eval/generate.py", "--model", work / "second", *common, "--out", out, "--name", way, *more)
            run("eval/score_vqa.py", "--predictions", out / f"{way}.jsonl", *common, "--protocol", "exact",
                "--out", out / f"{way}.json")  # fmt: skip
        scores = {way: json.loads((out / f"{way}.json").read_text())["by_task"] for way in ("model", "blind")}
        rows = join_predictions(out / "model.jsonl", data, "test", captions=False).rows
        rows = [row for row in rows if row.task in tasks]
        majority = majority_verdicts(read_training_answers(training), rows)
        for task in tasks:
            of_task = [verdict for row, verdict in zip(rows, majority, strict=True) if row.task == task]
            figures[task] = {
                "n": len(of_task),
                "model": {key: scores["model"][task][key] for key in ("value", "low", "high")},
                "blind": scores["blind"][task]["value"],
                "majority": float(np.mean(of_task)),
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder with images/ and instances.json")
    parser.add_argument("--chips", type=Path, required=True, help="MSTAR: train/ and test/ of class folders")
    parser.add_argument("--work", type=Path, required=True, help="new folder for everything that is made")
    parser.add_argument("--steps", type=int, nargs=2, default=(2000, 1000), help="of the two stages")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    left_out = prepare(options.scenes.resolve(), options.chips.resolve(), work)
    start = time.perf_counter()
    train(work, tuple(options.steps))
    seconds = time.perf_counter() - start
    figures = ask(work)
    for task, one in figures.items():
        print(f"{task:16} n {one['n']:4} model {one['model']['value']:.3f} ({one['model']['low']:.3f} to "
              f"{one['model']['high']:.3f}) blind {one['blind']:.3f} majority {one['majority']:.3f}")  # fmt: skip
    setting.write_result(
        options.out,
        {"hardware": setting.hardware(), "versions": setting.versions(), "steps": list(options.steps),
         "chips_left_out": left_out, "training_seconds": seconds, "tasks": figures},
    )  # fmt: skip


if __name__ == "__main__":
    main()
