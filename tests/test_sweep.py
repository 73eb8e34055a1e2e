"""Sweeps: what is refused, what is tried next, and what is told of it."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_trainer
from PIL import Image
from sweep_driver import RATE, TORCHRUN_SAYS, run_through, store_of, sweep_of, write

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError
from sarlang_sft.run_files import append_evaluation, holder_of, read_evaluations, state_of
from sarlang_sft.sweep_files import read_sweep
from sarlang_sft.sweep_options import check_options
from sarlang_sft.sweep_picture import Scale
from sarlang_sft.sweep_search import find_hopeless, propose
from sarlang_sft.sweeping import open_sweep, report_sweep
from sarlang_sft.trial_processes import Slot, as_flags, judge, split_gpus
from sarlang_sft.trials import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY, Trials
from sarlang_sft.tuning import TuningArguments

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
