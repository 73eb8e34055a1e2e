"""Leaving on request: a signal, or the end of the time that was given, ends training with a checkpoint."""

import signal
import time
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sarlang_sft.ranks import Ranks
from sarlang_sft.signals import SIGNALS

BEGINNING = time.monotonic()  # of the process, all but the seconds that imports take


class EvaluationInterrupted(Exception):
    """Training is to stop while it evaluates; the evaluation is made up for when the run goes on."""


class Interruption(TrainerCallback):
    """Ends training after the step in which any rank got SIGTERM or SIGINT, or `max_hours` were over.

    A second signal changes nothing: Slurm signals the launcher and its ranks, and the launcher signals them again.

    Attributes:
        stopping: Training ends for this reason.
        owes_evaluation: The step would have been evaluated; that is made up for when the run goes on.
    """

    def __init__(self, ranks: Ranks, max_hours: float | None) -> None:
        self.ranks = ranks
        self.max_hours = max_hours
        self.deadline = float("inf") if max_hours is None else BEGINNING + 3600 * max_hours
        self.reason = ""
        self.stopping = self.owes_evaluation = False
        self._previous: dict[signal.Signals, signal.Handlers] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.reason:
            self.reason = signal.Signals(number).name

    def asked(self) -> bool:
        """Whether any rank was asked to stop; every rank must ask."""
        if time.monotonic() > self.deadline and not self.reason:
            self.reason = f"max_hours {self.max_hours:g}"
        return self.ranks.any(bool(self.reason))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """From here on there is something to keep."""
        self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Called after every step of the optimiser."""
        if self.asked() and not control.should_training_stop:  # else this step was the last anyway
            self.owes_evaluation = control.should_evaluate
            control.should_evaluate = False
            self.stop(state, control)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Called when an epoch is over, and also where training ends within it."""
        if self.stopping and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """Have a checkpoint written and training end."""
        self.stopping = control.should_save = control.should_training_stop = True
        if self.ranks.first:
            print(f"\n{self.reason or 'Another rank'}: leaving after step {state.global_step}", flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called when training has ended; on request, signals change nothing until the process has ended too."""
        if self.stopping:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
