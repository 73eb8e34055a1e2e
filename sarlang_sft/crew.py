"""Processes that share work: whoever is free takes the next piece."""

import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from sarlang_sft.ranks import Ranks

LONGEST_WAIT = timedelta(minutes=30)  # for a rank that is alive: one that died is noticed at once


class Crew:
    """The ranks that torchrun started, or this process alone; each on a GPU of its own where there are as many.

    Attributes:
        ranks: What they agree on.
    """

    def __init__(self) -> None:
        self._store = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            store, rank, count = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
            group = dist.PrefixStore("group", store)
            dist.init_process_group("gloo", store=group, rank=rank, world_size=count, timeout=LONGEST_WAIT)
            self._store = dist.PrefixStore("work", store)
        self.ranks = Ranks(LONGEST_WAIT)

    def take(self, count: int) -> Iterator[int]:
        """Some of the numbers 0 to `count` - 1, in ascending order: each is given to one rank. To be called once."""
        if self._store is None:
            yield from range(count)
            return
        while (number := self._store.add("taken", 1) - 1) < count:
            yield number
