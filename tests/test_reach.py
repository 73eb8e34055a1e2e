"""What the project promises at full length: `make demo`, the MSTAR walk-through, and that every family learns.

Only in `make test-all`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.reporting.tables import accuracy_by_task, right_answers
from sarlang_sft.scoring.baselines import majority_verdicts, read_training_answers
from sarlang_sft.scoring.predictions import join_predictions

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
    source = ["--root", real_data / "mstar10", "--source", "MSTAR", "--captions", 1]
    run_script("data_prep/convert_folders.py", *source, "--out", f"{out}/data")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_script(*torchrun, "recipes/qwen_full.py", "--config", "recipes/configs/mstar_tiny.yaml")
    tasks = ["--data", f"{out}/data", "--tasks", "classification", "--out"]
    run_script("eval/generate.py", "--model", f"{out}/base", *tasks, out)
    scored = ["--predictions", f"{out}/predictions.jsonl", "--confusion", f"{out}/confusion.png"]
    run_script("eval/score_vqa.py", *scored, *tasks, f"{out}/scores.json")
    assert json.loads((ROOT / out / "scores.json").read_text())["overall"]["value"] >= 0.80


def test_the_contrastive_demo_goes_from_optical_to_radar() -> None:
    subprocess.run(["make", "demo-sarclip"], cwd=ROOT, check=True)
    out = ROOT / "outputs/demo_sarclip"
    before, after = (json.loads((out / f"retrieval_{stage}.json").read_text()) for stage in ("optical", "sar"))
    assert after["figures"]["MeanRecall"]["low"] > 0.3 + before["figures"]["MeanRecall"]["high"]
    assert (out / "gallery.png").is_file() and (out / "ensemble/frontier.png").is_file()


def test_a_contrastive_model_learns_real_mstar_chips_by_their_captions(real_data: Path) -> None:
    chips, out = real_data / "mstar10", ROOT / "outputs/sarclip_mstar"
    shutil.rmtree(out, ignore_errors=True)
    run_script("data_prep/convert_folders.py", "--root", chips, "--source", "MSTAR", "--out", out / "data")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run_script(*torchrun, "recipes/sarclip.py", "--config", "recipes/configs/sarclip_mstar.yaml")
    model = ["--model", out / "model"]
    run_script("eval/zero_shot.py", *model, "--root", chips / "test", "--out", out / "zero_shot.json")
    chips_of = ["--train", chips / "train", "--test", chips / "test"]
    run_script("eval/linear_probe.py", *model, *chips_of, "--out", out / "linear_probe.json")
    for name, least in (("zero_shot", 0.85), ("linear_probe", 0.92)):
        assert json.loads((out / f"{name}.json").read_text())["figures"]["top1"]["value"] >= least


def test_texts_built_from_real_boxes_teach_to_see(real_data: Path, tmp_path: Path) -> None:
    words = ["--scenes", real_data / "mstar_scenes", "--work", tmp_path / "work", "--out", tmp_path / "result.json"]
    subprocess.run([sys.executable, "benchmarks/mstar_scenes.py", *map(str, words)], cwd=ROOT, check=True)
    for task, figures in json.loads((tmp_path / "result.json").read_text())["tasks"].items():
        assert figures["model"]["low"] > max(figures["blind"], figures["majority"], 0.5 * (task == "identification"))


@pytest.fixture(scope="module")
def scenes() -> Path:
    """The demo's scenes as data folders of optical and of radar images."""
    out = ROOT / "outputs/families"
    if not (out / "data/manifest.json").is_file():
        run_script("data_prep/make_sample.py", "--out", out / "sample", "--images", 2000, "--test_fraction", 0.1)
        convert = ["data_prep/convert_sarlang.py", "--root", out / "sample", "--class_prefix", "never"]
        run_script(*convert, "--out", out / "data")
        run_script(*convert, "--image_root", out / "sample/RGBimages", "--out", out / "data_optical")
    return out


@pytest.mark.parametrize("family", list(BACKBONES))
def test_default_lora_of_every_family_learns_to_see(family: str, scenes: Path) -> None:
    """The demo's two stages, 600 steps of teaching and 300 of LoRA; figures go to outputs/families/FAMILY."""
    out, kind = scenes / family, BACKBONES[family].recipes
    shutil.rmtree(out, ignore_errors=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    teach = ["--tiny_family", family, "--tiny_folder", out / "tiny", "--model_name_or_path", out / "tiny"]
    teach += ["--config", "recipes/configs/demo_base.yaml", "--data", scenes / "data_optical", "--max_steps", 600]
    run_script(*torchrun, f"recipes/{kind}_full.py", *teach, "--output_dir", out / "base")
    tune = ["--config", "recipes/configs/demo.yaml", "--data", scenes / "data", "--model_name_or_path", out / "base"]
    run_script(*torchrun, f"recipes/{kind}_lora.py", *tune, "--max_steps", 300, "--output_dir", out / "lora")
    answer = ["eval/generate.py", "--model", out / "base", "--data", scenes / "data", "--subsets", "vqa1", "vqa2"]
    adapted = ["--adapter", out / "lora", "--out", out]
    run_script(*answer, "--out", out, "--name", "before")
    run_script(*answer, *adapted, "--name", "after")
    run_script(*answer, *adapted, "--name", "blind", "--exchange_images")
    names = ("before", "after", "blind")
    rows = {
        name: join_predictions(out / f"{name}.jsonl", scenes / "data", "test", captions=False).rows for name in names
    }
    columns = {"majority": majority_verdicts(read_training_answers(scenes / "data"), rows["after"])}
    columns |= {name: right_answers(rows[name]) for name in names}
    accuracy = accuracy_by_task(rows["after"], columns)["all"]
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    assert accuracy["after"] > 0.05 + max(accuracy["majority"], accuracy["blind"], accuracy["before"])
