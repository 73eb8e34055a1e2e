"""No kill repeats or loses a trial of a sweep, and how trials end."""

import json
import signal
from pathlib import Path

import pytest
from sweep_driver import Driver, family_of, has_checkpoint, run_through, store_of, sweep_of, wait_until, write
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.run_files import append_evaluation, holder_of
from sarlang_sft.sweep_files import read_sweep
from sarlang_sft.sweep_local import Follower
from sarlang_sft.trial_processes import End
from sarlang_sft.trials import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY


def test_a_sweep_survives_kills_of_ranks_launchers_and_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "sweep.yaml", {"run_cap": 3}, {"max_steps": {"value": 12}})
    driver = Driver(path, tmp_path / "out")
    process = driver.start()
    for victim in (2, 1, 0):  # a rank, torchrun, the sweep
        seen = sum(map(len, driver.starts().values()))
        wait_until(lambda seen=seen: sum(map(len, driver.starts().values())) > seen, process)
        wait_until(has_checkpoint(driver.out), process)
        family = family_of(process)
        assert "sweep_trainer.py" in " ".join(family[2].cmdline())
        family[victim].send_signal(signal.SIGKILL)
        if victim == 2:
            family[2].wait()
    process.wait()
    assert len(driver.all()) == 1  # which was interrupted three times
    output = driver.finish()
    assert [trial.state for trial in driver.all()] == [FINISHED] * 3 and "interrupted" in output
    assert [list(trial.evaluations) for trial in driver.all()] == [list(range(1, 13))] * 3
    first, *others = [[int(line.split()[0]) for line in lines] for lines in driver.starts().values()]
    assert first[0] == 0 and len(first) == 4 and first == sorted(set(first)) and others == [[0], [0]]
    before = driver.starts()
    driver.finish()
    assert driver.starts() == before
    sweep = read_sweep(path)
    (tmp_path / "whole").mkdir()
    assert [trial.params for trial in driver.all()] == run_through(sweep, store_of(sweep, tmp_path / "whole"), 0)[:3]


def test_a_sweep_that_is_asked_to_stop_leaves_checkpoints_and_code_75(tmp_path: Path) -> None:
    path = write(tmp_path / "sweep.yaml", {"run_cap": 2}, {"max_steps": {"value": 30}})
    driver = Driver(path, tmp_path / "out", "[Slot(('3',), 1), Slot(('5',), 1)]")
    process = driver.start()
    wait_until(lambda: len(driver.starts()) == 2, process)
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    assert process.wait(60) == 75
    assert [trial.state for trial in driver.all()] == [INTERRUPTED] * 2
    assert not any(holder_of(folder) for folder in (tmp_path / "out/trials").iterdir())
    driver.finish()
    starts = [[line.split() for line in lines] for lines in driver.starts().values()]
    assert all(int(again[0]) > int(first[0]) == 0 for first, again in starts)
    assert {one[1] for lines in starts for one in lines} == {"3", "5"}


@pytest.mark.slow
def test_trials_that_are_behind_are_stopped_early_and_not_gone_on_with(tmp_path: Path) -> None:
    hyperband = {"method": "grid", "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3}}
    values = {"learning_rate": {"values": [0.9, 0.1]}, "lora_r": {"value": 4}, "max_steps": {"value": 25}}
    driver = Driver(write(tmp_path / "sweep.yaml", hyperband, values), tmp_path / "out")
    driver.finish()
    driver.finish()
    good, bad = driver.all()
    assert (good.state, bad.state) == (FINISHED, STOPPED_EARLY)
    assert len(good.evaluations) == 25 > len(bad.evaluations) > 2
    assert all(len(lines) == 1 for lines in driver.starts().values())


def test_a_sweep_gives_up_when_its_first_trials_fail_and_says_why(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    trials = store_of(sweep, tmp_path)
    follower = Follower(sweep, trials, tqdm(disable=True))
    for number in range(3):
        follower.check_first()
        trial = trials.add({"learning_rate": 0.1 * number, "lora_r": 4})
        follower.close(trial, tmp_path / "trials" / trial.id, End(FAILED, 2, "a line\nerror: no data"), False)
    with pytest.raises(
        InputError, match=r"first 3 trials failed, the last one with exit code 2: error: no data; .*again"
    ):
        follower.check_first()
    good = trials.add({"learning_rate": 0.1, "lora_r": 4})
    trials.set_over(good, FINISHED, 0)
    follower.check_first()  # what was trained since tells that others can be
    trials.retry_failed()
    follower.check_first()
    assert [trial.state for trial in trials.all()] == [INTERRUPTED] * 3 + [FINISHED]


def test_trials_of_a_killed_sweep_are_judged_like_any_other(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    trials = store_of(sweep, tmp_path)
    for number, scores in enumerate([{"eval_accuracy": 0.5}, {"eval_loss": 0.5}, {"eval_accuracy": 0.1}]):
        trial = trials.add({"learning_rate": 0.1, "lora_r": 4})
        trials.set_over(trial, RUNNING, None, "", fruitless=2)
        folder = tmp_path / "trials" / trial.id
        folder.mkdir(parents=True)
        append_evaluation(folder, 2, scores)
        (folder / "run.json").write_text(json.dumps({"state": "running" if number == 2 else "finished"}))
    Follower(sweep, trials, tqdm(disable=True)).settle(tmp_path / "trials")
    assert [trial.state for trial in trials.all()] == [FINISHED, FAILED, INTERRUPTED]
    assert trials.all()[0].best("eval_accuracy", True) == 0.5 and trials.all()[2].fruitless == 2


def test_a_trial_without_its_metric_or_that_is_killed_again_and_again_has_failed(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    trials = store_of(sweep, tmp_path)
    follower, folder = Follower(sweep, trials, tqdm(disable=True)), tmp_path / "trials/001"
    trials.add({"learning_rate": 0.1, "lora_r": 4})
    for in_vain in (True, True, False, True, True):
        follower.close(trials.all()[0], folder, End(INTERRUPTED, -9, ""), in_vain)
        assert trials.all()[0].state == INTERRUPTED
    follower.close(trials.all()[0], folder, End(INTERRUPTED, -9, ""), True)
    assert trials.all()[0].state == FAILED and "killed 3 times (exit code -9)" in trials.all()[0].note
    folder.mkdir(parents=True)
    append_evaluation(folder, 2, {"eval_loss": 0.5})
    follower.close(trials.all()[0], folder, End(FINISHED, 0, ""), False)
    assert trials.all()[0].state == FAILED and "finished without eval_accuracy" in trials.all()[0].reason
