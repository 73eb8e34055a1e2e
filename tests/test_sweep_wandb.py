"""Sweeps of W&B's agents, against a stand-in server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from sweep_driver import (
    DRIVER,
    TORCHRUN_SAYS,
    Driver,
    family_of,
    has_checkpoint,
    store_of,
    sweep_of,
    wait_until,
    write,
)
from tqdm import tqdm
from wandb_server import seclude_wandb, wandb_server

from sarlang_sft.sweep_local import Follower
from sarlang_sft.sweep_wandb import close_all, watch
from sarlang_sft.trials import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY, Trials

WANDB_DRIVER = DRIVER.replace("run_local", "run_wandb").replace("sweep_local", "sweep_wandb")
WANDB_DRIVER = WANDB_DRIVER.replace(", 0, lambda trial: {})", ")")


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seclude_wandb(tmp_path, monkeypatch)


def test_wandbs_agents_run_a_sweep_that_is_rejoined_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyperband = {"early_terminate": {"type": "hyperband", "min_iter": 100}}
    driver = Driver(write(tmp_path / "sweep.yaml", {"run_cap": 3, **hyperband}), tmp_path / "out")
    driver.words[2] = WANDB_DRIVER
    fixed = {"max_steps": 40, "config": "c.yaml", "lora_r": 4}
    with wandb_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.planned = [{**fixed, "learning_rate": 0.1}, {**fixed, "learning_rate": 0.2}]
        server.stops.add("run1")
        process = driver.start()
        wait_until(has_checkpoint(driver.out), process)
        for one in family_of(process)[:2]:  # the sweep and its agent
            one.kill()
        process.wait()
        driver.finish()
        assert server.sweep["metric"]["name"] == "eval/accuracy" and server.handed == ["run0", "run1"]
        assert Trials(driver.out / "sweep.sqlite").wandb == "me/sarlang-sft/s1"
        server.state = "FINISHED"
        server.refused.add("CreateAgent")  # as W&B does then
        driver.finish()
        assert "wandb agent me/sarlang-sft/s1" in (driver.out / "output").read_text()
    first, second = driver.all()
    assert [(first.id, first.state), (second.id, second.state)] == [("run0", FINISHED), ("run1", STOPPED_EARLY)]
    assert [trial.params["learning_rate"] for trial in (first, second)] == [0.1, 0.2]
    assert len(first.evaluations) == 40 > len(second.evaluations) > 0
    (begun, gone_on), again = ([int(line.split()[0]) for line in lines] for lines in driver.starts().values())
    assert begun == 0 < gone_on and again == [0]


def test_a_trial_whose_agent_was_killed_goes_on_and_one_that_failed_is_told_at_once(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    trials = store_of(sweep, tmp_path)
    follower, folders = Follower(sweep, trials, tqdm(disable=True)), tmp_path / "trials"
    printed = ["step 7\n", "error: no data\n" + TORCHRUN_SAYS.format(code=2)]
    for name, text in zip(("killed", "failed"), printed, strict=True):
        trials.set_running(trials.add({"learning_rate": 0.1, "lora_r": 4}, name))
        (folders / name).mkdir(parents=True)
        (folders / name / "trial.log").write_text(text)
    watch(follower, folders, "me/p/s1", False, 10.0)
    assert [trial.state for trial in trials.all()] == [RUNNING, FAILED]
    assert trials.all()[1].reason == "error: no data"
    close_all(follower, folders, False)
    assert [trial.state for trial in trials.all()] == [INTERRUPTED, FAILED]


@pytest.mark.parametrize(
    ("mode", "message"),
    [("online", "no API key; .*--backend local"), ("offline", "set to offline .*--backend local")],
)
def test_without_a_key_or_offline_wandb_is_refused_with_the_way_out(mode: str, message: str, tmp_path: Path) -> None:
    program = (
        "from sarlang_sft.errors import exit_on_bad_input\n"
        "from sarlang_sft.sweep_wandb import check_login\n"
        "with exit_on_bad_input(): check_login()"
    )
    environment = {**os.environ, "WANDB_MODE": mode, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 2 and re.search(message, ran.stderr), ran.stderr
