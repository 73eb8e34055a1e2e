"""What the project promises at full length: `make demo` and the MSTAR walk-through (only in `make test-all`)."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, run_script

pytestmark = pytest.mark.slow


def test_the_demo_shows_seeing_not_luck() -> None:
    subprocess.run(["make", "demo"], cwd=ROOT, check=True)
    summary = json.loads((ROOT / "outputs/demo/summary.json").read_text())
    after = summary["after_accuracy"]
    assert after >= 0.15 + max(summary["majority_accuracy"], summary["blind_accuracy"])
    assert after >= 0.10 + summary["before_accuracy"]
    assert summary["merge_max_abs_diff"] < 1e-4 and (ROOT / "outputs/demo/samples.png").is_file()


def test_real_mstar_chips_are_told_apart(real_data: Path) -> None:
    out = "outputs/mstar"
    subprocess.run(["rm", "-rf", out], cwd=ROOT, check=True)
    source = ["--root", real_data / "mstar10", "--source", "MSTAR"]
    run_script("data_prep/convert_folders.py", *source, "--out", f"{out}/data")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_script(*torchrun, "recipes/qwen_full.py", "--config", "recipes/configs/mstar_tiny.yaml")
    tasks = ["--data", f"{out}/data", "--tasks", "classification", "--out"]
    run_script("eval/generate.py", "--model", f"{out}/base", *tasks, out)
    scored = ["--predictions", f"{out}/predictions.jsonl", "--confusion", f"{out}/confusion.png"]
    run_script("eval/score_vqa.py", *scored, *tasks, f"{out}/scores.json")
    assert json.loads((ROOT / out / "scores.json").read_text())["overall"]["value"] >= 0.80
