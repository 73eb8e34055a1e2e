"""What two stages, and true pairs that are no negatives, are worth to a small SARCLIP: each over three seeds.

    python benchmarks/contrastive.py two_stages --work outputs/two_stages --out benchmarks/results/cpu_two_stages.json
    python benchmarks/contrastive.py negatives --work outputs/negatives --data outputs/sarclip_mstar/data \
        --out benchmarks/results/cpu_negatives.json

`two_stages`: many simulated scenes as optical pictures, few other ones as SAR. A model that learns the optical ones
first is compared with one that learns the SAR ones alone, for as many steps on them, and for as many steps in all.
`negatives`: the captions of a data folder with several captions an image, with the published loss and with the two
that know which pairs are true; everything else is equal. Figures are mean recall of retrieval on the test split,
protocol all-positives.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import setting

ROOT = Path(__file__).parent.parent
OPTIONS = {
    "model_name_or_path": "sar-resnet-tiny", "learning_rate": 1e-3, "weight_decay": 0.05, "adam_beta2": 0.999,
    "adam_epsilon": 1e-8, "warmup_steps": 0.1, "use_cpu": True, "logging_steps": 20, "save_strategy": "no",
    "report_to": "none", "dataloader_num_workers": 0,
}  # fmt: skip
SCENES = {"optical": (1500, 0, 0.02), "sar": (600, 1, 0.8)}  # scenes, their seed, the share of the test split


def run(*words: object) -> None:
    """A program of the repository, on one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)}:\n{finished.stdout[-2000:]}{finished.stderr[-4000:]}")


def two_stages(work: Path, data: Path | None, steps: int) -> dict[str, dict[str, Any]]:
    """Configurations by name; makes the data."""
    for kind, (images, seed, test) in SCENES.items():
        sample, folder = work / f"{kind}_sample", "RGBimages" if kind == "optical" else "SARimages"
        run("data_prep/make_sample.py", "--out", sample, "--images", images, "--seed", seed, "--test_fraction", test)
        run("data_prep/convert_sarlang.py", "--root", sample, "--image_root", sample / folder, "--out", work / kind,
            "--val_fraction", 0, "--class_prefix", "never")  # fmt: skip
    sar = {"data": str(work / "sar"), "per_device_train_batch_size": 60}
    optical = {"name": "optical", "data": str(work / "optical"), "max_steps": 2 * steps}
    return {
        "two stages": {**sar, "stages": [optical, {"name": "sar", "max_steps": steps}]},
        "SAR alone, as many steps on SAR": {**sar, "max_steps": steps},
        "SAR alone, as many steps in all": {**sar, "max_steps": 3 * steps},
    }


def negatives(work: Path, data: Path | None, steps: int) -> dict[str, dict[str, Any]]:
    """Configurations by name."""
    if data is None:
        sys.exit("--data: name a data folder with several captions an image")
    ops = ["fixed", "log", "standardise", "shift:6", "crop:64"]
    common = {"data": str(data), "per_device_train_batch_size": 128, "captions": "all", "image_ops": ops}
    return {kind: {**common, "negatives": kind, "max_steps": steps} for kind in ("plain", "masked", "multi_positive")}


EXPERIMENTS = {"two_stages": (two_stages, "sar"), "negatives": (negatives, None)}


def learn(config: dict[str, Any], seed: int, folder: Path, test: Path) -> dict[str, Any]:
    """The figures of one run, with its seconds."""
    folder.mkdir(parents=True)
    options = {**OPTIONS, **config, "seed": seed, "output_dir": str(folder / "model")}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    start = time.perf_counter()
    run("recipes/sarclip.py", "--config", folder / "config.yaml")
    seconds = time.perf_counter() - start
    stages = {}
    for stage in config.get("stages", [{"name": ""}]):
        out = folder / f"retrieval{stage['name']}.json"
        model = folder / "model" / stage["name"]
        run("eval/retrieval.py", "--model", model, "--data", test, "--split", "test", "--out", out)
        content = json.loads(out.read_text())
        stages[stage["name"]] = content["figures"]["MeanRecall"]["value"]
    chance = content["chance"]["MeanRecall"]
    return {"seconds": seconds, "figures": content["figures"], "after_stages": stages, "chance": chance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--work", type=Path, required=True, help="new folder for everything that is made")
    parser.add_argument("--data", type=Path, help="data folder with captions, for negatives")
    parser.add_argument("--steps", type=int, default=150, help="of training, on SAR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at_once", type=int, default=2, help="runs side by side, each on one core")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True)
    prepare, folder = EXPERIMENTS[options.experiment]
    configs = prepare(work, options.data and options.data.resolve(), options.steps)
    test = work / folder if folder else options.data.resolve()
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = {
            (name, seed): pool.submit(learn, config, seed, work / f"run-{number}-{seed}", test)
            for seed in range(options.seeds)
            for number, (name, config) in enumerate(configs.items())
        }
        found = {key: run.result() for key, run in runs.items()}
    summary = {}
    for name in configs:
        of_name = [found[name, seed] for seed in range(options.seeds)]
        values = [one["figures"]["MeanRecall"]["value"] for one in of_name]
        summary[name] = {"mean": float(np.mean(values)), "values": values, "runs": of_name}
        intervals = ", ".join(
            f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"
            for figure in (one["figures"]["MeanRecall"] for one in of_name)
        )
        print(f"{name:34} {100 * summary[name]['mean']:.1f}: {intervals}")
        for stage in list(of_name[0]["after_stages"])[:-1]:
            print(f"  after {stage:26} {100 * np.mean([one['after_stages'][stage] for one in of_name]):.1f}")
    print(f"{'chance':34} {100 * of_name[0]['chance']:.1f}")
    result = {"hardware": f"{setting.hardware()}, one core a run", "versions": setting.versions()}
    setting.write_result(options.out, {**result, "steps": options.steps, "mean_recall": summary})


if __name__ == "__main__":
    main()
