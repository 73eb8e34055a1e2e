"""Says which rank is gone when a connection breaks, where the transport names a port at best."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from sarlang_sft.launch import first_line
from sarlang_sft.watchdog import Watchdog

BROKEN = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")  # gloo, and the last NCCL
MISSED = 2.5  # reports that a rank must leave out to count as gone
RESTART = "Start the same command again on all nodes: it goes on from the last complete checkpoint"


@contextmanager
def naming_lost_ranks(watchdog: Watchdog) -> Iterator[None]:
    """End the program with exit code 1 and one line about the rank that is gone, when that breaks a connection.

    Several ranks notice it at once; one of them says it.
    """
    try:
        yield
    except RuntimeError as error:  # the transports' errors have no type of their own
        if watchdog.ranks.count == 1 or not any(words in str(error) for words in BROKEN):
            raise
        found = _find_lost(watchdog, first_line(error))
        sys.exit(f"\nerror: {found}. {RESTART}" if found else 1)


def _find_lost(watchdog: Watchdog, broke: str) -> str:
    """In words; nothing if another rank says it.

    Args:
        broke: What the transport says.
    """
    try:
        before = watchdog.reports()
        time.sleep(MISSED * watchdog.interval)
        silent = [
            f"rank {rank} on {then.host} (process {then.pid}), last {then}"
            for rank, (then, now) in enumerate(zip(before, watchdog.reports(), strict=True))
            if then.beat == now.beat
        ]
        if not watchdog.speaks_first():
            return ""
    except dist.DistError:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return f"a connection broke, and nothing answers at {place}: rank 0, its launcher or its node is gone"
    if not silent:
        return f"a connection between ranks broke, but all of them answer: look at the network ({broke})"
    return f"gone: {'; '.join(silent)}. Its node's log may say why"
