"""A sweep without a server: trials proposed, started on their GPUs, followed, stopped early, and gone on with."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.run_files import FINISHED as RUN_FINISHED
from sarlang_sft.run_files import holder_of, read_evaluations, state_of
from sarlang_sft.signals import SIGNALS
from sarlang_sft.sweep_files import Sweep
from sarlang_sft.sweep_search import find_hopeless, propose
from sarlang_sft.trial_processes import PATIENCE, End, Slot, TrialProcess
from sarlang_sft.trials import ENDED, FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED_EARLY, Trial, Trials

EVERY = 0.5  # seconds between two looks at the trials
BEAT = 10.0  # seconds between two notes of how long they have run
FIRST = 3  # trials; if all of them fail, so would the others
KILLS = 3  # without a checkpoint, in a row, after which a trial counts as failed
Variables = Callable[[Trial], dict[str, str]]
Running = tuple[Trial, TrialProcess]  # by the number of its slot


class Request:
    """Whether the sweep was asked to stop, and by what."""

    reason = ""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Called by the system; a second signal changes nothing."""
        self.reason = self.reason or signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[Request]:
    """SIGTERM and SIGINT are a request to stop."""
    request = Request()
    before = {number: signal.signal(number, request.on_signal) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Follower:
    """Keeps what becomes of the trials: in the store, and as a line each on the terminal."""

    def __init__(self, sweep: Sweep, trials: Trials, bar: tqdm) -> None:
        self.sweep, self.trials, self.bar = sweep, trials, bar

    def say(self, trial: Trial, what: str) -> None:
        """A line about a trial."""
        varied = [parameter.name for parameter in self.sweep.varied()]
        values = ", ".join(f"{name} {trial.params[name]}" for name in varied)
        tqdm.write(f"Trial {trial.id} ({values}): {what}")
        sys.stdout.flush()

    def look(self, trial: Trial, folder: Path) -> Trial:
        """Take over what it has evaluated."""
        evaluations = read_evaluations(folder)
        if evaluations == trial.evaluations:
            return trial
        self.trials.keep_evaluations(trial, evaluations)
        return trial._replace(evaluations=evaluations)

    def close(self, trial: Trial, folder: Path, end: End, killed_in_vain: bool) -> None:
        """Keep how it ended, for now or for good."""
        trial = self.look(trial, folder)
        state, code, note = end
        score = trial.best(self.sweep.metric, self.sweep.maximise)
        fruitless = trial.fruitless + 1 if killed_in_vain else 0
        if state == FINISHED and score is None:
            state, note = FAILED, f"finished without {self.sweep.metric}: no question of val is of that kind"
        if state == INTERRUPTED and fruitless >= KILLS:
            state, note = FAILED, f"killed {KILLS} times (exit code {code}) before it wrote a checkpoint"
        self.trials.set_over(trial, state, code, note, fruitless)
        details = [] if score is None else [f"{self.sweep.metric} {score:.4g}"]
        if state == FAILED:
            details = [trial._replace(note=note).reason]
        self.say(trial, ", ".join([state, *details]))
        self.show()

    def show(self) -> None:
        """The bar: trials that are over, and the best of them."""
        over = [trial for trial in self.trials.all() if trial.state in ENDED]
        scores = [score for t in over if (score := t.best(self.sweep.metric, self.sweep.maximise)) is not None]
        self.bar.n = len(over)
        if scores:
            best = max(scores) if self.sweep.maximise else min(scores)
            self.bar.set_postfix_str(f"best {self.sweep.metric} {best:.4g}")
        self.bar.refresh()

    def check_first(self) -> None:
        """Raise [`InputError`] if none of the trials that are over, at least three, could be trained."""
        over = [trial for trial in self.trials.all() if trial.state in ENDED]
        if len(over) >= FIRST and all(trial.state == FAILED for trial in over):
            raise InputError(
                f"the first {len(over)} trials failed, the last one with exit code {over[-1].exit_code}: "
                f"{over[-1].reason}; when that is mended, start again with --retry_failed"
            )

    def settle(self, folders: Path) -> None:
        """Trials that a killed sweep left as running are finished, or interrupted."""
        for trial in self.trials.all():
            folder = folders / trial.id
            if trial.state in (RUNNING, INTERRUPTED) and state_of(folder) == RUN_FINISHED:
                self.close(trial, folder, End(FINISHED, 0, ""), False)
            elif trial.state in (RUNNING, INTERRUPTED):
                self.trials.set_over(self.look(trial, folder), INTERRUPTED, None, "", trial.fruitless)


def run_local(
    sweep: Sweep, trials: Trials, folders: Path, slots: list[Slot], seed: int, variables: Variables, new: bool = True
) -> bool:
    """Run trials until the search has no more; interrupted ones go on first.

    Args:
        folders: Holds the output folder of every trial.
        slots: Where they run, one each.
        variables: Of a trial's environment, beside those of this process.
        new: Propose trials; without it only interrupted ones go on.

    Returns:
        Whether all is done; False if the sweep was asked to stop.

    Raises:
        InputError: The first trials all failed, or a folder is still in use.
    """
    cap = sweep.run_cap
    running: dict[int, Running] = {}
    with (
        stop_on_signals() as request,
        tqdm(desc="trials", unit=" trials", total=None if math.isinf(cap) else cap) as bar,
    ):
        follower = Follower(sweep, trials, bar)
        follower.settle(folders)
        follower.show()
        follower.check_first()
        more = True
        try:
            while True:
                more |= look_after(running, follower)
                hopeless = find_hopeless(sweep, trials.all()) if running else set()
                for trial, process in running.values():
                    if request.reason:
                        process.stop(INTERRUPTED)
                    elif trial.number in hopeless:
                        process.stop(STOPPED_EARLY)
                for place, slot in enumerate(slots):
                    if place in running or request.reason or not more:
                        continue
                    trial = next_trial(sweep, trials, seed, new)
                    more = trial is not None
                    if more and wait_until_free(folders / trial.id, request):
                        trials.set_running(trial)
                        process = TrialProcess(sweep.program, trial.params, folders / trial.id, slot, variables(trial))
                        running[place] = trial, process
                        follower.say(trial, "started")
                if not running:
                    return not request.reason
                time.sleep(EVERY)
        finally:
            for _, process in running.values():  # of a sweep that ends by an error
                process.stop(INTERRUPTED)
            for trial, process in running.values():
                process.process.wait()
                trials.set_over(trial, INTERRUPTED, None)


def look_after(running: dict[int, Running], follower: Follower) -> bool:
    """Keep what has become of the trials that run; whether any of them is over."""
    over = False
    for place, (trial, process) in list(running.items()):
        running[place] = follower.look(trial, process.folder), process
        end = process.ended()
        if end or process.since + BEAT < time.monotonic():
            follower.trials.add_seconds(trial, process.seconds())
        if end:
            del running[place]
            over = True
            in_vain = end.state == INTERRUPTED and not process.stopped and not process.wrote_checkpoint()
            follower.close(trial, process.folder, end, in_vain)
            follower.check_first()
    return over


def next_trial(sweep: Sweep, trials: Trials, seed: int, new: bool) -> Trial | None:
    """An interrupted trial, else a new one; None if there is neither."""
    every = trials.all()
    for trial in every:
        if trial.state == INTERRUPTED:
            return trial
    params = propose(sweep, every, seed) if new else None
    return params and trials.add(params)


def wait_until_free(folder: Path, request: Request) -> bool:
    """Wait for the end of a process that a killed sweep has left in a trial's folder; False if asked to stop.

    Raises:
        InputError: It does not end.
    """
    end = time.monotonic() + PATIENCE
    holder = holder_of(folder)
    if holder:
        print(f"{folder}: waiting for {holder}, which still trains there, to write its checkpoint", flush=True)
    while holder_of(folder):
        if request.reason:
            return False
        if time.monotonic() > end:
            raise InputError(f"{folder}: {holder} trains there still after {PATIENCE} s; end it, and start again")
        time.sleep(EVERY)
    return True
