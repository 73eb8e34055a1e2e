"""What to try next and what to stop, by W&B's own search (PyPI `sweeps`), from the trials so far alone."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from sarlang_sft.errors import InputError
from sarlang_sft.sweep_files import Sweep
from sarlang_sft.trials import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY, Trial
from sarlang_sft.wandb_search import HyperParameter, RunState, SweepRun, next_run, stop_runs

Params = dict[str, Any]
DIGITS = 4  # of what is drawn from a range
DRAWS = 100  # until a search that proposes nothing new counts as at its end
STATES = {
    RUNNING: RunState.running, INTERRUPTED: RunState.running, FINISHED: RunState.finished,
    STOPPED_EARLY: RunState.finished, FAILED: RunState.failed,
}  # fmt: skip


def propose(sweep: Sweep, trials: Sequence[Trial], seed: int) -> Params | None:
    """The values of the next trial; None at the end of the sweep.

    They depend on the trials so far and the seed alone, so that a sweep that was killed proposes what it would have.

    Raises:
        InputError: The method cannot search one of the parameters.
    """
    target = sweep.content["metric"].get("target")
    scores = [score for trial in trials if (score := trial.best(sweep.metric, sweep.maximise)) is not None]
    if len(trials) >= sweep.run_cap:
        return None
    if target is not None and any(score >= target if sweep.maximise else score <= target for score in scores):
        return None
    runs = [_as_run(trial, sweep.metric) for trial in trials]
    parameters = {parameter.name: parameter for parameter in sweep.parameters()}
    tried = [trial.params for trial in trials]
    for draw in range(DRAWS):
        random.seed(f"{seed} {len(trials)} {draw}")
        np.random.seed(random.getrandbits(32))
        try:
            run = next_run(sweep.for_search(), runs)
        except ValueError as error:
            raise InputError(f"{sweep.path}: {error}") from error
        if run is None:
            return None
        params = {name: entry["value"] for name, entry in run.config.items()}
        if sweep.content["method"] != "grid":  # which knows again what was tried by its exact values
            params = {name: plain(parameters[name], value) for name, value in params.items()}
        if params not in tried:
            return params
    return None


def find_hopeless(sweep: Sweep, trials: Sequence[Trial]) -> set[int]:
    """The numbers of the running trials that `early_terminate` stops; its bands count evaluations."""
    if "early_terminate" not in sweep.content:
        return set()
    return {int(run.name) for run in stop_runs(sweep.for_search(), [_as_run(t, sweep.metric) for t in trials])}


def plain(parameter: HyperParameter, value: Any) -> Any:
    """A drawn value as YAML and a command line have it, with few digits."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if "values" in parameter.config or "value" in parameter.config or not isinstance(value, float):
        return value
    value = float(f"{value:.{DIGITS}g}")
    return min(max(value, parameter.config.get("min", value)), parameter.config.get("max", value))


def _as_run(trial: Trial, metric: str) -> SweepRun:
    history = [{metric: value} for value in trial.history(metric).values()]
    # By their aliases: `sweeps` was written for another pydantic, under which `history=` is dropped without a word.
    return SweepRun(
        name=str(trial.number),
        state=STATES[trial.state],
        config={name: {"value": value} for name, value in trial.params.items()},
        sampledHistory=history,
        summaryMetrics={},
    )
