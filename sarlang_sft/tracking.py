"""Weights & Biases beside the training: one run per output folder, offline where there is no key, never in the way."""

import atexit
import logging
import math
import os
import shlex
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import wandb
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import WandbCallback, rewrite_logs
from wandb.errors import AuthenticationError

from sarlang_sft.bounded_calls import BoundedCalls
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import load_picture
from sarlang_sft.val_answers import Answer

STEP = "train/global_step"
OFFLINE = ("offline", "dryrun")
DEFAULTS = {
    "project": "sarlang-sft",
    "init_timeout": 30.0,  # seconds
    "finish_timeout": 30.0,
    "finish_timeout_raises": True,
    "x_transaction_log_flush_interval": 0.1,  # what lies longer in memory is lost when the process is killed
}
PATIENCE = 30.0  # seconds that a call may take beyond what wandb itself bounds
LAST_PATIENCE = 5.0  # the same after a failure
SPACE = 64 * 1024  # bytes that must fit on the disk at every line; wandb writes half of it at a time
MOST_ROWS = 32
LONGEST_SIDE = 256  # pixels of a picture in the table


class WandbTracker(TrainerCallback):
    """Logs a training to W&B from rank 0, in the place of transformers' `WandbCallback`.

    The axis is the trainer's step, which a resumed training continues. Whatever befalls W&B, the training goes on and
    ends: every call is waited for so long and no longer, and the first that fails ends tracking with one line. The
    user's settings of wandb (variables `WANDB_*`, `wandb offline`) come before those made here.

    Args:
        folder: The run's output folder; wandb's files go to `wandb/` in it, unless WANDB_DIR is set.
        run_id: The id of this output folder; a resumed training gives the same one.
        name: How W&B shows the run.
        record: The run's configuration, as JSON has it.
        again: Repeat the lines since the checkpoint before the one that is resumed: the process was killed, and what
            it logged last may not have reached a disk.
    """

    def __init__(
        self, folder: Path, run_id: str, name: str | None, record: dict[str, Any], again: bool = False
    ) -> None:
        self.folder = folder.absolute()
        self.run_id = run_id
        self.name = name
        self.record = record
        self.again = again
        self.run: wandb.Run | None = None
        self.ended = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the run, or continue it."""
        if not state.is_world_process_zero:
            return
        self.ended = False
        self.calls = BoundedCalls(most_hanging=3)  # a log line, finishing, and tearing down
        if self._attempt("setup", self._choose_settings, 2 * PATIENCE) and self.settings.mode != "disabled":
            self._attempt("start", self._start, self.settings.init_timeout + 2 * PATIENCE)
        for line in state.log_history if self.again else []:
            if line["step"] > state.global_step - state.save_steps:
                logs = {name: value for name, value in line.items() if name != "step"}
                self._log(lambda logs=logs, step=line["step"]: {**rewrite_logs(logs), STEP: step})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: object,
    ) -> None:
        """Log one line: `eval_*` as `eval/*`, the other metrics as `train/*`."""
        self._log(lambda: {**rewrite_logs(logs), STEP: state.global_step})

    def log_answers(self, step: int, answers: list[Answer]) -> None:
        """Log a table of answers with their pictures: at most 32, taken evenly from the list."""
        if answers and self.run is not None:
            shown = with_pictures(answers)  # a slow disk is not wandb's fault
            self._log(lambda: {"eval/answers": answer_table(step, shown), STEP: step})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Finish the run, and say how to upload what is not."""
        if not self.ended:
            self._leave(exit_code=0)

    def _attempt(self, what: str, call: Callable[[], None], seconds: float) -> bool:
        """Whether a call to wandb succeeded; the first that does not ends tracking."""
        failure = self.calls.run(call, seconds)
        if failure:
            self._leave(exit_code=1, failure=f"{what}: {failure}")
        return not failure

    def _choose_settings(self) -> None:
        """wandb's settings, ours where the user has none; offline where it would ask for a key on the terminal."""
        if os.environ.get("WANDB_SWEEP_ID"):  # then wandb takes the id from there alone
            os.environ["WANDB_RUN_ID"] = self.run_id
        # Pictures of tables wait for their upload there; wandb's default is the home folder of this machine.
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(os.environ.get("WANDB_DIR", self.folder), "wandb")))
        # Reports of wandb about itself: at the end of the process they wait for a network that is not there.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        logging.raiseExceptions = False  # wandb's own log is a file: each line on a full disk would be a traceback
        settings = wandb.setup().settings
        own = {**DEFAULTS, "root_dir": str(self.folder), "run_name": self.name}
        own = {name: value for name, value in own.items() if name not in settings.model_fields_set}
        self.settings, self.own = settings.model_copy(update=own), wandb.Settings(**own)
        self.offline = ""  # why
        if settings.mode in OFFLINE:
            self.offline = "as chosen"
        elif settings.mode != "disabled":
            try:
                if not wandb.login(prompt=False, verify=True):
                    self.offline = "no API key: `wandb login` or WANDB_API_KEY brings one"
            except AuthenticationError as error:
                self.offline = " ".join(str(error).split())

    def _start(self) -> None:
        init = partial(wandb.init, id=self.run_id, resume="allow", config=self.record, reinit="finish_previous")
        if not self.offline:
            try:
                run = init(settings=self.own)
            except Exception as error:  # of many kinds: refused, unreachable, too slow
                self.offline = " ".join(str(error).split())
                self.calls.run(wandb.teardown, LAST_PATIENCE)  # until then the id counts as in use
        if self.offline:
            silent = self.own.model_copy(update={"silent": True})  # what it says of offline runs concerns one attempt
            wandb.termsetup(silent, None)
            run = init(mode="offline", settings=silent)
            print(f"W&B: offline ({self.offline}), kept in {run.settings.wandb_dir}", flush=True)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        self.run = run
        atexit.register(self._leave, exit_code=1)  # runs before wandb's own hook, which has no time-out

    def _log(self, values: Callable[[], dict[str, Any]]) -> None:
        run = self.run
        if run is None or self.ended:
            return

        def log() -> None:
            if self.offline:
                check_space(Path(run.settings.sync_file).parent)
            run.log(values())

        self._attempt("log", log, PATIENCE)

    def _leave(self, exit_code: int, failure: str = "") -> None:
        """Finish, and take wandb off the console and the end of the process, whatever state it is in."""
        atexit.unregister(self._leave)
        run, self.run, self.ended = self.run, None, True
        if run is not None:
            settings = run.settings
            timeout = settings.finish_timeout  # 0: the user wants to wait for the upload however long it takes
            patience = LAST_PATIENCE if failure else timeout + PATIENCE if timeout else None
            unfinished = self.calls.run(lambda: run.finish(exit_code), patience)
            failure = failure or (unfinished and f"finish: {unfinished}")
        self.calls.run(wandb.teardown, LAST_PATIENCE)
        if failure:
            print(f"W&B stopped: {failure}; training is not affected, its log is in trainer_state.json", flush=True)
        if run is not None:
            for command in upload_commands(settings, complete=not failure):
                print(f"W&B: to upload this run: {command}", flush=True)


def check_space(folder: Path) -> None:
    """Raise what the system says if nothing more can be written there; wandb loses its lines without a word."""
    with TemporaryFile(dir=folder) as file:
        file.write(bytes(SPACE))
        file.flush()


def upload_commands(settings: wandb.Settings, complete: bool) -> list[str]:
    """Shell commands that upload what a run has in files alone.

    One file at a time: `wandb sync` with several stops at the first that ends in the middle of a record, as those of
    killed processes do. All attempts land in one run, since each was started with `resume="allow"`.

    Args:
        complete: Whether the last attempt, if it was online, ended well.
    """
    commands = []
    if settings.mode not in OFFLINE and not complete:
        commands.append(f"wandb sync --include-online {shlex.quote(settings.sync_file)}")
    files = f"offline-run-*/run-{settings.run_id}.wandb"
    found = [file for file in Path(settings.wandb_dir).glob(files) if file.stat().st_size]
    if any(not file.with_suffix(".wandb.synced").exists() for file in found):
        folder = shlex.quote(settings.wandb_dir)
        commands.append(f'for file in {folder}/{files}; do wandb sync "$file"; done')
    return commands


def with_pictures(answers: list[Answer]) -> list[tuple[Answer, Image.Image | None]]:
    """Answers beside their pictures; of more than `MOST_ROWS` every second, third ... one."""
    shown = answers[:: math.ceil(len(answers) / MOST_ROWS)]
    return [(answer, side_by_side(answer.images)) for answer in shown]


def answer_table(step: int, shown: list[tuple[Answer, Image.Image | None]]) -> wandb.Table:
    """A row per answer of [`with_pictures`]."""
    table = wandb.Table(columns=["step", "task", "picture", "question", "truth", "answer", "right"])
    for answer, picture in shown:
        image = picture and wandb.Image(picture, file_type="jpg")
        table.add_data(step, answer.task, image, answer.question, answer.label, answer.predict, answer.right)
    return table


def side_by_side(paths: list[Path]) -> Image.Image | None:
    """The pictures that can be read, each at `LONGEST_SIDE` pixels at most, as one; None if there is none."""
    pictures = []
    for path in paths:
        try:
            picture = load_picture(path, [])
        except InputError:  # whoever trains on it reports it
            continue
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        pictures.append(picture)
    if not pictures:
        return None
    lefts = [0, *accumulate(picture.width for picture in pictures)]
    canvas = Image.new("RGB", (lefts[-1], max(picture.height for picture in pictures)))
    for picture, left in zip(pictures, lefts, strict=False):
        canvas.paste(picture, (left, 0))
    return canvas


def add_tracker(trainer: Trainer, run_id: str, record: dict[str, Any], again: bool = False) -> WandbTracker | None:
    """Track to W&B if `report_to` says so; what else it names is left to transformers' own callbacks.

    Args:
        run_id: The id of the run's output folder.
        record: The run's configuration in W&B.
        again: Its last process was killed.
    """
    args = trainer.args
    if "wandb" not in args.report_to:
        return None
    tracker = WandbTracker(Path(args.output_dir), run_id, args.run_name, record, again)
    trainer.remove_callback(WandbCallback)
    trainer.add_callback(tracker)
    return tracker
