"""The trials of a sweep in one SQLite file: every change is one transaction, so that a kill leaves it whole."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from sarlang_sft.errors import InputError
from sarlang_sft.run_files import Evaluations

STORE = "sweep.sqlite"
RUNNING, INTERRUPTED, FINISHED, STOPPED_EARLY, FAILED = "running", "interrupted", "finished", "stopped early", "failed"
ENDED = (FINISHED, STOPPED_EARLY, FAILED)
SCHEMA = """
create table if not exists sweep (
    path text, text text, counts text, configs text, seed integer, nproc integer, backend text, wandb text
);
create table if not exists trials (
    number integer primary key, id text unique, params text, state text, seconds real default 0, exit_code integer,
    note text default '', fruitless integer default 0
);
create table if not exists evaluations (
    number integer references trials, step integer, metrics text, primary key (number, step)
);
"""


class Trial(NamedTuple):
    """A training of the sweep.

    Attributes:
        id: The name of its output folder.
        seconds: That it has run, over all its starts.
        exit_code: Of its ranks, negative if a signal ended them; None while it runs.
        note: Why it failed.
        fruitless: How often in a row it was killed before it wrote a checkpoint.
    """

    number: int
    id: str
    params: dict[str, Any]
    state: str
    seconds: float
    exit_code: int | None
    note: str
    fruitless: int
    evaluations: Evaluations

    @property
    def reason(self) -> str:
        """The last line of the note, where a traceback has its point."""
        return self.note.splitlines()[-1].strip() if self.note else "nothing was printed"

    def history(self, metric: str) -> dict[int, float]:
        """The metric by its step."""
        return {step: metrics[metric] for step, metrics in self.evaluations.items() if metric in metrics}

    def best(self, metric: str, maximise: bool) -> float | None:
        """The best of its history; None if there is none."""
        values = self.history(metric).values()
        return (max if maximise else min)(values) if values else None


class Beginning(NamedTuple):
    """What a sweep was started with; `counts` must stay the same."""

    path: str
    text: str
    counts: dict[str, Any]
    configs: dict[str, dict[str, Any]]
    seed: int
    nproc: int
    backend: str


class Trials:
    """The state of a sweep."""

    def __init__(self, store: Path) -> None:
        self.store = store
        try:
            self.db = sqlite3.connect(store, isolation_level=None)
            self.db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise InputError(f"{store}: cannot be used ({error})") from error

    def begin(self, beginning: Beginning) -> None:
        """Note what the sweep is started with, or that its file now reads otherwise."""
        values = (
            beginning.path, beginning.text, json.dumps(beginning.counts), json.dumps(beginning.configs),
            beginning.seed, beginning.nproc, beginning.backend,
        )  # fmt: skip
        columns = "path, text, counts, configs, seed, nproc, backend"
        if self.beginning() is None:
            self._change(f"insert into sweep ({columns}) values (?, ?, ?, ?, ?, ?, ?)", values)
        else:
            self._change(f"update sweep set ({columns}) = (?, ?, ?, ?, ?, ?, ?)", values)

    def beginning(self) -> Beginning | None:
        """What the sweep was started with; None if it was not."""
        row = self.db.execute("select path, text, counts, configs, seed, nproc, backend from sweep").fetchone()
        return row and Beginning(row[0], row[1], json.loads(row[2]), json.loads(row[3]), *row[4:])

    @property
    def wandb(self) -> str | None:
        """The sweep in W&B, as entity/project/id."""
        row = self.db.execute("select wandb from sweep").fetchone()
        return row and row[0]

    def join_wandb(self, path: str) -> None:
        """Keep which sweep it is in W&B."""
        self._change("update sweep set wandb = ?", (path,))

    def all(self) -> list[Trial]:
        """Every trial in the order of their numbers."""
        evaluations: dict[int, Evaluations] = {}
        for number, step, metrics in self.db.execute("select number, step, metrics from evaluations order by step"):
            evaluations.setdefault(number, {})[step] = json.loads(metrics)
        rows = self.db.execute(
            "select number, id, params, state, seconds, exit_code, note, fruitless from trials order by number"
        )
        return [Trial(row[0], row[1], json.loads(row[2]), *row[3:], evaluations.get(row[0], {})) for row in rows]

    def add(self, params: dict[str, Any], run_id: str | None = None) -> Trial:
        """A new trial, interrupted before its start.

        Args:
            run_id: The name of its folder; default: its number.
        """
        number = 1 + (self.db.execute("select max(number) from trials").fetchone()[0] or 0)
        self._change(
            "insert into trials (number, id, params, state) values (?, ?, ?, ?)",
            (number, run_id or f"{number:03}", json.dumps(params), INTERRUPTED),
        )
        return self.all()[-1]

    def set_running(self, trial: Trial) -> None:
        """It trains now."""
        self._change("update trials set state = ?, exit_code = null where number = ?", (RUNNING, trial.number))

    def set_over(self, trial: Trial, state: str, exit_code: int | None, note: str = "", fruitless: int = 0) -> None:
        """It trains no more, for now or for good."""
        self._change(
            "update trials set state = ?, exit_code = ?, note = ?, fruitless = ? where number = ?",
            (state, exit_code, note, fruitless, trial.number),
        )

    def retry_failed(self) -> None:
        """Failed trials are to be started again."""
        self._change("update trials set state = ?, note = '', fruitless = 0 where state = ?", (INTERRUPTED, FAILED))

    def add_seconds(self, trial: Trial, seconds: float) -> None:
        """It has run so long since it was said last."""
        self._change("update trials set seconds = seconds + ? where number = ?", (seconds, trial.number))

    def keep_evaluations(self, trial: Trial, evaluations: Evaluations) -> None:
        """Replace what is known of its evaluations."""
        rows = [(trial.number, step, json.dumps(metrics)) for step, metrics in evaluations.items()]
        with self.db:
            self.db.execute("begin immediate")
            self.db.execute("delete from evaluations where number = ?", (trial.number,))
            self.db.executemany("insert into evaluations values (?, ?, ?)", rows)

    def _change(self, statement: str, values: tuple[Any, ...]) -> None:
        with closing(self.db.execute(statement, values)):
            pass
