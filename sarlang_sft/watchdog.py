"""Names the rank that hangs, and ends the run, before the process group's time-out ends it without a name.

Every rank reports to the store of its process group where it is. A rank that waits too long reads what the others say:
who is behind, or says nothing any more, hangs.
"""

import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from sarlang_sft.ranks import Ranks

WAITED = 0.9  # of ddp_timeout without moving: long enough to speak, before the process group's own time-out
SILENT = 0.1  # of ddp_timeout without a report
LONGEST_INTERVAL = 5.0  # seconds between two reports
Item = TypeVar("Item")


class Report(NamedTuple):
    """What a rank says of itself.

    Attributes:
        step: Of the optimiser.
        moves: Calls of `progress` since that step began.
        idle: Seconds since the last of them.
        beat: Number of the report.
    """

    step: int
    moves: int
    doing: str
    idle: float
    beat: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"at step {self.step}, {self.doing}"


@dataclass
class Heard:
    """A rank's last report, and how many seconds ago its number last changed here."""

    report: Report
    silent: float = 0.0


class Verdict(NamedTuple):
    """Who keeps the others waiting.

    Attributes:
        message: In words.
        moving: A rank still moves, so that the run must not be ended.
        speaker: The first of the ranks that wait: all come to one verdict, one says it.
    """

    message: str
    moving: bool
    speaker: int


def judge(heard: list[Heard], ddp_timeout: float) -> Verdict:
    """What a rank concludes that has waited for `WAITED` of `ddp_timeout`.

    Args:
        heard: Of every rank, in order; at least one of them waits and answers.
        ddp_timeout: Seconds.
    """
    silent = [rank for rank, one in enumerate(heard) if one.silent >= SILENT * ddp_timeout]
    answering = [rank for rank in range(len(heard)) if rank not in silent]
    moving = [rank for rank in answering if heard[rank].report.idle < WAITED * ddp_timeout]
    waiting = [rank for rank in answering if rank not in moving]
    place = {rank: (heard[rank].report.step, heard[rank].report.moves) for rank in answering}
    behind = moving or silent or [rank for rank in answering if place[rank] == min(place.values())]
    named = "; ".join(_describe(rank, heard[rank], rank in silent) for rank in behind)
    longest = max(heard[rank].report.idle for rank in waiting)
    waited = f"no progress for {longest:.0f} s (ddp_timeout {ddp_timeout:g})"
    if moving:
        message = f"rank {waiting[0]}: {waited}, and the process group is about to give up. Slow: {named}. Raise "
        return Verdict(f"{message}ddp_timeout", True, waiting[0])
    if len(behind) == len(heard):
        return Verdict(f"{waited}. All ranks wait at one place, for a network or devices: {named}", False, waiting[0])
    return Verdict(f"{waited}. Hung: {named}", False, waiting[0])


def _describe(rank: int, heard: Heard, silent: bool) -> str:
    report = heard.report
    told = (
        f"its process has not answered for {heard.silent:.0f} s, it was last {report}"
        if silent
        else f"{report} for {report.idle:.0f} s"
    )
    return f"rank {rank} on {report.host} (process {report.pid}): {told}"


class Watchdog:
    """Two threads beside training: one talks to the store, which may never answer, and one decides without it.

    Args:
        ddp_timeout: Seconds that the process group waits; the same on all ranks.
    """

    def __init__(self, ranks: Ranks, ddp_timeout: float) -> None:
        self.ranks = ranks
        self.ddp_timeout = ddp_timeout
        self.interval = min(LONGEST_INTERVAL, SILENT * ddp_timeout / 4)
        self._place = (0, 0, "starting", time.monotonic())  # replaced as a whole, so that no thread sees half of it
        self._woken = 0.0
        self._heard: list[Heard] = []
        self._answered = self._looked = time.monotonic()
        self._stopped = threading.Event()
        self._store: dist.Store | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to watch; every rank must call it. With one rank there is nothing to watch."""
        if self.ranks.count == 1:
            return
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=self.ddp_timeout)))
        self._store = dist.PrefixStore("watchdog", store)
        self.progress(0, "starting")
        self._report(0)
        self.ranks.wait()  # from here on there is a report of every rank
        self._answered = self._looked = time.monotonic()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._watch)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(LONGEST_INTERVAL)  # unless it talks to a store that never answers

    def progress(self, step: int, doing: str) -> None:
        """Say that this rank has moved.

        Args:
            doing: What it begins with.
        """
        before, moves, _, _ = self._place
        self._place = (step, moves + 1 if step == before else 0, doing, time.monotonic())

    def reports(self) -> list[Report]:
        """What every rank said last; raises `dist.DistError` if the store does not answer."""
        return [Report(*json.loads(text)) for text in self._store.multi_get(list(map(str, range(self.ranks.count))))]

    def speaks_first(self) -> bool:
        """Whether this rank is the first to ask, so that of several that know the same one says it."""
        return self._store.add("speaker", 1) == 1

    def reading(self, batches: Iterator[Item], step: int) -> Iterator[Item]:
        """The batches, saying before and after each that this rank has moved."""
        while True:
            self.progress(step, "reading data")
            batch = next(batches, None)
            self.progress(step, "training")
            if batch is None:
                return
            yield batch

    def _idle(self) -> float:
        return time.monotonic() - max(self._place[3], self._woken)

    def _report(self, beat: int) -> None:
        step, moves, doing, _ = self._place
        report = Report(step, moves, doing, self._idle(), beat, socket.gethostname(), os.getpid())
        self._store.set(str(self.ranks.own), json.dumps(report))

    def _exchange(self) -> None:
        """Report, and read the others' reports while this rank waits."""
        changed, beat = {}, 0
        while not self._stopped.wait(self.interval):
            beat += 1
            try:
                self._report(beat)
                if self._idle() < WAITED * self.ddp_timeout / 2:
                    changed.clear()
                    self._answered = time.monotonic()
                    continue
                reports = self.reports()
            except dist.DistError:  # the store is gone, or out of reach
                continue
            now, heard = time.monotonic(), []
            for rank, report in enumerate(reports):
                last, since = changed.get(rank, (None, now))
                changed[rank] = (report.beat, since if report.beat == last else now)
                heard.append(Heard(report, now - changed[rank][1]))
            self._heard, self._answered = heard, now

    def _watch(self) -> None:
        """Speak, or end this process, when this rank has waited too long."""
        warned, patience = False, 0
        while not self._stopped.wait(self.interval):
            before, self._looked = self._looked, time.monotonic()
            if self._looked - before > SILENT * self.ddp_timeout:
                self._woken = self._looked  # this process did not run, as when Slurm suspends a job
            if self._idle() < WAITED * self.ddp_timeout:
                warned, patience = False, 0
                continue
            if time.monotonic() - self._answered > SILENT * self.ddp_timeout:
                store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                self._end(
                    f"rank {self.ranks.own}: no progress for {self._idle():.0f} s (ddp_timeout {self.ddp_timeout:g}), "
                    f"and nothing answers at {store}. Hung: rank 0, or the launcher that listens there for it"
                )
            if self._heard[self.ranks.own].report.idle < WAITED * self.ddp_timeout:
                continue  # the next report says that this rank waits
            verdict = judge(self._heard, self.ddp_timeout)
            speaks = verdict.speaker == self.ranks.own
            if verdict.moving:
                if speaks and not warned:
                    print(f"\nwarning: {verdict.message}", file=sys.stderr, flush=True)
                warned = True
            elif speaks or patience == 2:  # of those who leave the word to the speaker
                self._end(verdict.message if speaks else "")
            else:
                patience += 1

    def _end(self, message: str) -> None:
        if message:
            restart = "Start the same command again: it goes on from the last complete checkpoint"
            print(f"\nerror: {message}. {restart}", file=sys.stderr, flush=True)
        for worker in multiprocessing.active_children():  # of the loader; a hung one would live on
            worker.kill()
        os._exit(1)  # the main thread hangs; the launcher ends the other ranks
