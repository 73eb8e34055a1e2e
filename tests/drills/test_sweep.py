"""Sweeps of real trainings, killed at random moments."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_script
from sweep_driver import Driver, family_of, has_checkpoint, wait_until
from wandb_server import seclude_wandb, wandb_server

from sarlang_sft.run_files import holder_of
from sarlang_sft.trials import FINISHED, Trials


@pytest.fixture
def sweep(tiny: Path, data: Path, tmp_path: Path) -> Path:
    """A sweep file of short trainings of the tiny model."""
    options = {
        "model_name_or_path": str(tiny), "data": str(data), "dtype": "float32", "use_cpu": True, "max_steps": 12,
        "logging_steps": 3, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps",
        "eval_steps": 4, "gradient_checkpointing": False, "turns_per_image": 4, "max_tokens_per_row": 600,
        "dataloader_num_workers": 0, "report_to": "none",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    content = {
        "program": "recipes/qwen_lora.py", "method": "random", "run_cap": 8,
        "metric": {"name": "eval/loss", "goal": "minimize"},
        "parameters": {
            "config": {"value": str(tmp_path / "config.yaml")},
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
            "lora_r": {"values": [2, 4]},
        },
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "sweep.yaml"


def resumed(out: Path) -> list[str]:
    """The trials whose logs say that they went on from a checkpoint."""
    return [log.parent.name for log in sorted(out.glob("trials/*/trial.log")) if "Resuming from" in log.read_text()]


@pytest.mark.slow
def test_a_trial_whose_rank_was_killed_goes_on_and_none_is_repeated(sweep: Path) -> None:
    content = yaml.safe_load(sweep.read_text())
    sweep.write_text(yaml.safe_dump({**content, "run_cap": 3}))
    driver = Driver(sweep, sweep.parent / "out")
    process = driver.start()
    wait_until(has_checkpoint(driver.out), process)
    family_of(process)[2].kill()
    assert process.wait(600) == 0, (driver.out / "output").read_text()
    trials = driver.all()
    assert [(trial.state, list(trial.evaluations)) for trial in trials] == [(FINISHED, [4, 8, 12])] * 3
    assert len({json.dumps(trial.params) for trial in trials}) == 3 and len(resumed(driver.out)) == 1
    assert len({trial.best("eval_loss", False) for trial in trials}) == 3


@pytest.mark.slow
def test_an_eight_trial_sweep_killed_twice_has_eight_distinct_trials_and_is_known_from_its_store(sweep: Path) -> None:
    rng = random.Random(time.time())
    out = sweep.parent / "out"
    words = [sys.executable, "recipes/sweep.py", "--sweep", sweep, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        with (sweep.parent / "output").open("ab") as log:
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, process_group=0)
        wait_until(lambda: any(holder_of(folder) for folder in out.glob("trials/*")), process, 300)
        time.sleep(rng.uniform(0, 40))
        family = family_of(process)
        for one in rng.sample(family, rng.randint(1, len(family))):  # of the sweep, torchrun and rank, while there are
            one.kill()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
    output = run_script("recipes/sweep.py", "--sweep", sweep, "--out", out, cwd=ROOT)
    trials = Trials(out / "sweep.sqlite").all()
    assert [trial.state for trial in trials] == [FINISHED] * 8, output
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 8
    assert all(list(trial.evaluations) == [4, 8, 12] for trial in trials)
    runs = [json.loads((out / "trials" / trial.id / "run.json").read_text())["id"] for trial in trials]
    assert len(set(runs)) == 8
    for trial in trials:  # every training began once, and the ends of those that were finished are their only ones
        log = (out / "trials" / trial.id / "trial.log").read_text()
        assert log.count("Done: ") == 1
    best, table = (out / "best.yaml").read_bytes(), (out / "sweep.csv").read_bytes()
    for path in out.iterdir():
        if path.name != "sweep.sqlite":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sweep.unlink()
    (sweep.parent / "config.yaml").unlink()
    run_script("recipes/sweep.py", "--report_only", "--out", out, cwd=ROOT)
    assert (out / "best.yaml").read_bytes() == best and (out / "sweep.csv").read_bytes() == table
    lowest = min(trials, key=lambda trial: trial.best("eval_loss", False))
    assert next(csv.DictReader((out / "sweep.csv").open()))["trial"] == lowest.id
    assert yaml.safe_load(best)["learning_rate"] == lowest.params["learning_rate"]
    output = run_script(
        "recipes/qwen_lora.py", "--config", out / "best.yaml", "--output_dir", sweep.parent / "anew", cwd=ROOT
    )
    history = json.loads((sweep.parent / "anew/trainer_state.json").read_text())["log_history"]
    losses = [line["eval_loss"] for line in history if "eval_loss" in line]
    assert losses == list(lowest.history("eval_loss").values()), output


@pytest.mark.slow
def test_both_ranks_of_a_trial_are_one_run_under_the_id_that_wandbs_agent_gave(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seclude_wandb(sweep.parent, monkeypatch)
    out = sweep.parent / "out"
    words = ["--sweep", sweep, "--out", out, "--backend", "wandb", "--nproc_per_node", "2"]
    with wandb_server() as server:
        for name, value in {**server.environment(), "WANDB_MODE": "online"}.items():
            monkeypatch.setenv(name, value)
        config = str(sweep.parent / "config.yaml")
        server.planned = [{"config": config, "learning_rate": 1e-3, "lora_r": 2, "report_to": "wandb"}]
        output = run_script("recipes/sweep.py", *words, cwd=ROOT)
        assert list(server.runs) == server.handed == ["run0"], output
        steps = [line["train/global_step"] for line in server.history("run0") if "eval/loss" in line]
    assert steps == [4, 8, 12]
    [trial] = Trials(out / "sweep.sqlite").all()
    assert (trial.id, trial.state, list(trial.evaluations)) == ("run0", FINISHED, steps)
    assert json.loads((out / "trials/run0/run.json").read_text())["id"] == "run0"
