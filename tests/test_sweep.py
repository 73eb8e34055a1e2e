"""Sweeps: what is refused, what is tried next, and that no kill repeats or loses a trial."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import ROOT, make_trainer
from PIL import Image
from tqdm import tqdm
from wandb_server import wandb_server

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError
from sarlang_sft.run_files import append_evaluation, holder_of, read_evaluations, state_of
from sarlang_sft.sweep_files import Sweep, read_sweep
from sarlang_sft.sweep_local import Follower
from sarlang_sft.sweep_options import check_options
from sarlang_sft.sweep_picture import Scale
from sarlang_sft.sweep_search import find_hopeless, propose
from sarlang_sft.sweep_wandb import close_all, watch
from sarlang_sft.sweeping import open_sweep, report_sweep
from sarlang_sft.trial_processes import End, Slot, as_flags, judge, split_gpus
from sarlang_sft.trials import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY, Beginning, Trials
from sarlang_sft.tuning import TuningArguments

TRAINER = ROOT / "tests/sweep_trainer.py"
RATE = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
FILE = {
    "program": str(TRAINER), "method": "random", "metric": {"name": "eval/accuracy", "goal": "maximize"}, "run_cap": 3,
    "parameters": {
        "config": {"value": str(ROOT / "recipes/configs/demo.yaml")}, "learning_rate": RATE,
        "lora_r": {"values": [4, 8]}, "eval_strategy": {"value": "steps"}, "eval_steps": {"value": 2},
        "val_questions": {"value": 20},
    },
}  # fmt: skip


def write(path: Path, changes: dict[str, Any] | None = None, parameters: dict[str, Any] | None = None) -> Path:
    """A sweep file like `FILE`; None removes."""
    content = {**FILE, **(changes or {})}
    content["parameters"] = {**FILE["parameters"], **(parameters or {})}
    for mapping in (content, content["parameters"]):
        for name in [name for name, value in mapping.items() if value is None]:
            del mapping[name]
    path.write_text(yaml.safe_dump(content))
    return path


def sweep_of(tmp_path: Path, **changes: Any) -> Sweep:
    return read_sweep(write(tmp_path / "sweep.yaml", changes))


BAD = [
    ({"methud": "grid"}, {}, "unknown key `methud`; did you mean `method`"),
    ({"method": "gird"}, {}, "method `gird`: choose one of grid, random, bayes"),
    ({"metric": None}, {}, "`metric` is missing"),
    ({"method": "bayes", "metric": None}, {}, "`metric` is missing"),
    ({"metric": {"name": "eval/accuracy"}}, {}, "goal: maximize"),
    ({"run_cap": None}, {}, "no end by itself"),
    ({"run_cap": 0}, {}, "run_cap 0"),
    ({"program": "recipes/missing.py"}, {}, "no such file"),
    ({"method": "grid"}, {}, "disallowed type with grid search"),
    ({"early_terminate": {"type": "hyperband"}}, {}, "not valid under any"),
    ({}, {"lora_r": {"values": []}}, "lora_r: `values` is empty"),
    ({}, {"learning_rate": {"min": "1e-4", "max": 0.1}}, "`1e-4` is text to YAML; write numbers as 1.0e-4"),
    ({}, {"learning_rate": {"min": 0.1, "max": 0.01}}, "min 0.1 is not less than max 0.01"),
    ({}, {"learning_rate": {"value": 0.1}, "lora_r": {"value": 4}}, "nothing is searched"),
    ({}, {"learning_rate": 0.1}, "write `learning_rate: {value: 0.1}`"),
    ({}, {"optim": {"parameters": {"a": {"value": 1}}}}, "the recipes' options are flat"),
    ({}, {"config": {"value": "recipes/configs/missing.yaml"}}, "config recipes/configs/missing.yaml: no such file"),
    ({}, {"lerning_rate": {"value": 1.0}}, "`lerning_rate` is no option .* did you mean `learning_rate`"),
    ({}, {"lora_r": {"min": 1.0, "max": 9.0}}, "lora_r: 5.0 is not of the type int"),
    ({}, {"lora_r": {"values": [4, "many"]}}, "lora_r: 'many' is not of the type int"),
    ({}, {"tasks": {"values": [["counting"]]}}, "tasks: .* not of the type"),
    ({}, {"save_strategy": {"value": False}}, "save_strategy: False is not of the type"),
    ({}, {"output_dir": {"value": "x"}}, "output_dir: the sweep chooses it"),
    ({}, {"config": None}, "name a `config`"),
    ({"metric": {"name": "eval/acuracy", "goal": "maximize"}}, {}, "never logged; did you mean `eval/accuracy`"),
    ({"metric": {"name": "accuracy", "goal": "maximize"}}, {}, "never logged; did you mean `eval/accuracy`"),
    ({"metric": {"name": "test/accuracy", "goal": "maximize"}}, {}, "chosen on val, never on test"),
    ({}, {"eval_strategy": None}, "nothing is evaluated"),
    ({}, {"val_questions": None}, "needs answers"),
    ({}, {"val_questions": {"values": [20, 0]}}, "needs answers"),
    ({}, {"max_steps": {"value": 1}}, "the first evaluation is after 2 steps"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "parameters", "message"), BAD, ids=[case[2][:40] for case in BAD])
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_written(
    changes: dict, parameters: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = write(tmp_path / "sweep.yaml", changes, parameters)
    with pytest.raises(InputError, match=message):
        sweep = read_sweep(path)
        check_options(sweep)
        open_sweep(sweep, tmp_path / "out", "local", 0, 1, False)
    assert [one.name for one in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_sweeps_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(path)
    check_options(sweep)
    assert propose(sweep, [], 0)["learning_rate"] > 0
    assert f"--sweep recipes/sweeps/{path.name}" in path.read_text() and "# Hardware:" in path.read_text()
    assert str(sweep.program) in sweep.content["command"][2]


def store_of(sweep: Sweep, tmp_path: Path) -> Trials:
    trials = Trials(tmp_path / "sweep.sqlite")
    trials.begin(Beginning(str(sweep.path), sweep.text, {}, sweep.configs, 0, 2, "local"))
    return trials


def run_through(sweep: Sweep, trials: Trials, seed: int) -> list[dict[str, Any]]:
    """All trials that are proposed, each finished with a score that follows from its values."""
    while params := propose(sweep, trials.all(), seed):
        trial = trials.add(json.loads(json.dumps(params)))
        trials.keep_evaluations(trial, {2: {"eval_accuracy": params["learning_rate"] * params["lora_r"]}})
        trials.set_over(trial, FINISHED, 0)
    return [trial.params for trial in trials.all()]


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_a_resumed_search_proposes_what_an_unbroken_one_would(method: str, tmp_path: Path) -> None:
    rate = {"values": [1e-3, 1e-2]} if method == "grid" else RATE
    path = write(tmp_path / "sweep.yaml", {"method": method, "run_cap": 6}, {"learning_rate": rate})
    sweep = read_sweep(path)
    (tmp_path / "whole").mkdir()
    whole = run_through(sweep, store_of(sweep, tmp_path / "whole"), 1)
    assert len(whole) == (4 if method == "grid" else 6)
    assert len({json.dumps(params, sort_keys=True) for params in whole}) == len(whole)
    trials = store_of(sweep, tmp_path)
    for params in whole[:2]:
        trial = trials.add(params)
        trials.keep_evaluations(trial, {2: {"eval_accuracy": params["learning_rate"] * params["lora_r"]}})
        trials.set_over(trial, FINISHED, 0)
    random.random()
    assert run_through(sweep, Trials(tmp_path / "sweep.sqlite"), 1) == whole
    if method == "random":
        (tmp_path / "other").mkdir()
        assert run_through(sweep, store_of(sweep, tmp_path / "other"), 2) != whole


def test_a_random_search_tries_nothing_twice_and_ends_when_all_is_tried(tmp_path: Path) -> None:
    path = write(tmp_path / "sweep.yaml", {"run_cap": 50}, {"learning_rate": {"values": [1e-3, 1e-2, 1e-1]}})
    sweep = read_sweep(path)
    assert len(run_through(sweep, store_of(sweep, tmp_path), 0)) == 6


def test_a_grid_over_steps_that_binary_numbers_miss_is_tried_whole(tmp_path: Path) -> None:
    dropout = {"distribution": "q_uniform", "min": 0.0, "max": 0.6, "q": 0.1}  # the fourth is 0.30000000000000004
    parameters = {"learning_rate": {"value": 0.1}, "lora_dropout": dropout, "lora_r": {"value": 4}}
    sweep = read_sweep(write(tmp_path / "sweep.yaml", {"method": "grid", "run_cap": None}, parameters))
    trials = run_through(sweep, store_of(sweep, tmp_path), 0)
    assert [round(params["lora_dropout"], 9) for params in trials] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_target_ends_the_search(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, metric={"name": "eval_accuracy", "goal": "maximize", "target": 0.5})
    trials = store_of(sweep, tmp_path)
    trial = trials.add(propose(sweep, [], 0))
    for score, ends in ((0.4, False), (0.6, True)):
        trials.keep_evaluations(trial, {2: {"eval_accuracy": score}})
        assert (propose(sweep, trials.all(), 0) is None) == ends


def test_hyperband_stops_the_trial_that_is_behind_and_no_other(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    trials = store_of(sweep, tmp_path)
    histories = [(0.5, 0.6), (0.4, 0.7), (0.1, 0.2), (0.1,)]
    for state, history in zip((FINISHED, RUNNING, RUNNING, RUNNING), histories, strict=True):
        trial = trials.add({"learning_rate": 0.1})
        trials.keep_evaluations(trial, {10 * n: {"eval_accuracy": value} for n, value in enumerate(history, 1)})
        trials.set_over(trial, state, None)
    assert find_hopeless(sweep, trials.all()) == {3}
    assert find_hopeless(sweep_of(tmp_path), trials.all()) == set()


TORCHRUN_SAYS = """
E1120 torch/distributed/elastic/multiprocessing/api.py:1013] failed (exitcode: {code}) local_rank: 0 (pid: 7)
Failures:
[1]:
  exitcode  : -15 (pid: 8)
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : {code} (pid: 7)
"""


@pytest.mark.parametrize(
    ("rank", "code", "run", "stopped", "state"),
    [
        (None, 0, "finished", "", FINISHED),
        (2, 1, None, "", FAILED),
        (2, 1, "stopped", "", FAILED),
        (75, 1, "stopped", "", INTERRUPTED),
        (75, 1, "stopped", STOPPED_EARLY, STOPPED_EARLY),
        (-9, 1, "running", "", INTERRUPTED),
        (None, -9, "running", "", INTERRUPTED),
        (None, 1, None, INTERRUPTED, INTERRUPTED),
    ],
)
def test_the_end_of_a_trial_is_told_from_its_ranks(
    rank: int | None, code: int, run: str | None, stopped: str, state: str
) -> None:
    said = "a warning\nerror: data x: no such folder\n"
    end = judge(said + (TORCHRUN_SAYS.format(code=rank) if rank else ""), code, run, stopped)
    assert end.state == state and end.exit_code == (rank if rank else code)
    assert (end.note == said.strip()) == (state == FAILED)


def test_options_reach_the_recipe_as_they_are_and_win_over_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("learning_rate: 1.0e-3\nmax_steps: 7\n")
    params = {
        "learning_rate": 1e-05, "weight_decay": -1e-05, "gradient_checkpointing": False, "lora_dropout": 0,
        "config": str(tmp_path / "config.yaml"), "model_name_or_path": "x=y", "data": "--z", "output_dir": "o",
        "use_cpu": True,
    }  # fmt: skip
    options = [ModelArguments, TuningArguments, DataArguments, TrainArguments]
    model, tuning, data, training = parse_arguments(options, "", args=as_flags(params))
    assert (training.learning_rate, training.weight_decay, training.max_steps) == (1e-05, -1e-05, 7)
    assert training.gradient_checkpointing is False and tuning.lora_dropout == 0
    assert (model.model_name_or_path, data.data) == ("x=y", "--z")


def test_gpus_are_split_into_equal_sets() -> None:
    assert split_gpus([], 2, None) == [Slot((), 1), Slot((), 1)]
    assert split_gpus(["0", "1", "4", "5"], 2, None) == [Slot(("0", "1"), 2), Slot(("4", "5"), 2)]
    assert split_gpus(["0", "1"], 1, 1) == [Slot(("0", "1"), 1)]
    for visible, parallel, ranks in ((["0", "1", "2"], 2, None), (["0"], 2, None), (["0", "1"], 2, 2), ([], 0, None)):
        with pytest.raises(InputError, match=r"--parallel|--nproc_per_node"):
            split_gpus(visible, parallel, ranks)


def test_evaluations_are_read_as_a_resumed_run_made_them(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == {}
    for step, value in ((0, 0.9), (2, 0.1), (4, 0.2), (6, 0.3)):
        append_evaluation(tmp_path, step, {"eval_accuracy": value, "eval_cider": float("nan")})
    with open(tmp_path / "evaluations.jsonl", "a") as file:
        file.write('\n{"step": 8, "eval_acc')  # killed
    append_evaluation(tmp_path, 4, {"eval_accuracy": 0.25})
    assert read_evaluations(tmp_path) == {2: {"eval_accuracy": 0.1}, 4: {"eval_accuracy": 0.25}}


DRIVER = """
import sys
from pathlib import Path
from sarlang_sft.sweep_files import read_sweep
from sarlang_sft.sweep_local import run_local
from sarlang_sft.trial_processes import Slot
from sarlang_sft.trials import Beginning, Trials
from sarlang_sft.errors import exit_on_bad_input

sweep, out = read_sweep(Path(sys.argv[1])), Path(sys.argv[2])
trials = Trials(out / "sweep.sqlite")
trials.begin(Beginning(str(sweep.path), sweep.text, {}, sweep.configs, 0, 1, "local"))
with exit_on_bad_input():
    done = run_local(sweep, trials, out / "trials", eval(sys.argv[3], {"Slot": Slot}), 0, lambda trial: {})
    sys.exit(0 if done else 75)
"""  # what recipes/sweep.py does without its half a minute of imports and checks


class Driver:
    """The sweep of a file in a folder, as a process."""

    def __init__(self, path: Path, out: Path, slots: str = "[Slot((), 1)]") -> None:
        out.mkdir(exist_ok=True)
        self.words = [sys.executable, "-c", DRIVER, str(path), str(out), slots]
        self.out = out

    def start(self) -> subprocess.Popen:
        """Begin, or go on."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with open(self.out / "output", "ab") as log:
            return subprocess.Popen(self.words, stdout=log, stderr=log, env=environment, cwd=ROOT, process_group=0)

    def finish(self, code: int = 0) -> str:
        """Run to its end; what it has printed so far."""
        process = self.start()
        assert process.wait(600) == code, (self.out / "output").read_text()
        return (self.out / "output").read_text()

    def all(self) -> list[Any]:
        """The trials, as they are in the store."""
        return Trials(self.out / "sweep.sqlite").all()

    def starts(self) -> dict[str, list[str]]:
        """The lines of `sweep_trainer.py` about its starts, by the trial."""
        return {one.parent.name: one.read_text().splitlines() for one in sorted(self.out.glob("trials/*/starts"))}


def wait_until(happened: Callable[[], object], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.args
        time.sleep(0.05)


def has_checkpoint(out: Path) -> Callable[[], bool]:
    """Whether a trial that is not over has written a checkpoint."""
    return lambda: any(holder_of(path.parent) for path in out.glob("trials/*/checkpoint-*"))


def family_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The sweep, torchrun and the ranks, in this order."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


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


def test_a_training_keeps_what_its_evaluations_gave(tiny: Path, data: Path, tmp_path: Path) -> None:
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    trainer, _ = make_trainer(tiny, data, tmp_path, TuningArguments(), **options)
    trainer.train()
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    assert list(losses) == [0, 2, 4]
    kept = read_evaluations(tmp_path)
    assert {step: metrics["eval_loss"] for step, metrics in kept.items()} == {2: losses[2], 4: losses[4]}
    assert state_of(tmp_path) == "running" and holder_of(tmp_path / "nothing") is None


def scored(tmp_path: Path) -> Trials:
    """A store with a failed trial among others."""
    sweep = sweep_of(tmp_path, name="a name")
    trials = store_of(sweep, tmp_path)
    for number, scores in enumerate([{10: 0.3, 20: 0.2}, {10: 0.4, 20: 0.6}, {}, {10: 0.5}]):
        params = {**{name: one["value"] for name, one in sweep.content["parameters"].items() if "value" in one}}
        trial = trials.add({**params, "learning_rate": 10.0 ** -(number + 1), "lora_r": 4})
        trials.keep_evaluations(trial, {step: {"eval_accuracy": score} for step, score in scores.items()})
        trials.set_over(trial, FINISHED if scores else FAILED, 0 if scores else 2, "" if scores else "why")
    return trials


def test_the_report_is_written_from_the_store_alone(tmp_path: Path) -> None:
    scored(tmp_path)
    (tmp_path / "sweep.yaml").unlink()
    report_sweep(tmp_path)
    best, *others = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert (best["trial"], best["eval_accuracy"], best["at"], best["learning_rate"]) == ("002", "0.6", "20", "0.01")
    assert [row["trial"] for row in others] == ["004", "001", "003"] and others[-1]["eval_accuracy"] == ""
    table = (tmp_path / "sweep.md").read_text()
    assert "| 002 | 0.6 | 20 | 0.01 | 4 | finished | 20 | 0 |" in table and "a name" in table
    assert "- 003 (exit code 2): `why`" in table
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 20)) > 100
    options = [ModelArguments, TuningArguments, DataArguments, TrainArguments]
    words = ["--config", str(tmp_path / "best.yaml"), "--output_dir", str(tmp_path / "anew")]
    _, tuning, _, training = parse_arguments(options, "", args=words)
    assert (training.learning_rate, tuning.lora_r, training.val_questions) == (0.01, 4, 20)
    assert training.output_dir == str(tmp_path / "anew") and training.lr_scheduler_type == "cosine"  # of the config
    assert "eval_accuracy 0.6 at step 20" in (tmp_path / "best.yaml").read_text()
    assert "torchrun --nproc_per_node 2 " in (tmp_path / "best.yaml").read_text()


def test_an_axis_of_a_distribution_that_gave_zero_is_linear() -> None:
    scale = Scale("weight_decay", [0.0, 0.1], listed=False, log=True)
    assert scale.place(0.0) < scale.place(0.05) < scale.place(0.1) and scale.ticks()


def test_a_sweep_without_scores_still_has_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="holds no sweep"):
        report_sweep(tmp_path)
    store_of(sweep_of(tmp_path), tmp_path)
    report_sweep(tmp_path)
    assert "No trial has a score yet" in capsys.readouterr().out and not (tmp_path / "best.yaml").exists()


def test_a_sweep_goes_on_only_with_the_file_that_it_was_started_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(**changes: Any) -> None:
        open_sweep(sweep_of(tmp_path, **changes), tmp_path / "out", "local", 0, 1, False)

    start()
    with (tmp_path / "sweep.yaml").open("a") as file:
        file.write("# a comment\n")
    open_sweep(read_sweep(tmp_path / "sweep.yaml"), tmp_path / "out", "local", 0, 1, False)
    start(run_cap=9)
    assert capsys.readouterr().out.count("has changed since, in nothing of what is tried") == 2
    other = read_sweep(write(tmp_path / "sweep.yaml", parameters={"learning_rate": {**RATE, "max": 0.1}}))
    with pytest.raises(InputError, match=r"parameters\.learning_rate\.max: 0\.01 then, 0\.1 now"):
        open_sweep(other, tmp_path / "out", "local", 0, 1, False)
    with pytest.raises(InputError, match=r"--seed: 0 then, 1 now"):
        open_sweep(sweep_of(tmp_path), tmp_path / "out", "local", 1, 1, False)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/.sweep.lock").touch()  # killed then
    open_sweep(sweep_of(tmp_path), tmp_path / "begun", "local", 0, 1, False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else than a sweep"):
        open_sweep(sweep_of(tmp_path), tmp_path / "other", "local", 0, 1, False)
    assert [one.name for one in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_run_one_sweep(tmp_path: Path) -> None:
    open_sweep(sweep_of(tmp_path), tmp_path / "out", "local", 0, 1, False).lock.close()
    holds = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True)"
    words = [sys.executable, "-c", f"{holds}; input()", str(tmp_path / "out/.sweep.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="another process runs this sweep now"):
            open_sweep(sweep_of(tmp_path), tmp_path / "out", "local", 0, 1, False)
        other.stdin.close()


WANDB_DRIVER = DRIVER.replace("run_local", "run_wandb").replace("sweep_local", "sweep_wandb")
WANDB_DRIVER = WANDB_DRIVER.replace(", 0, lambda trial: {})", ")")
OF_USERS = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE")


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb out of reach of the settings and keys of whoever runs the tests."""
    for name in OF_USERS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere" / name))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def test_wandbs_agents_run_a_sweep_that_is_rejoined_after_a_kill(
    own_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
def test_without_a_key_or_offline_wandb_is_refused_with_the_way_out(
    mode: str, message: str, own_settings: None, tmp_path: Path
) -> None:
    program = (
        "from sarlang_sft.errors import exit_on_bad_input\n"
        "from sarlang_sft.sweep_wandb import check_login\n"
        "with exit_on_bad_input(): check_login()"
    )
    environment = {**os.environ, "WANDB_MODE": mode, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 2 and re.search(message, ran.stderr), ran.stderr
