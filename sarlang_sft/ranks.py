"""What the ranks of a run agree on; over gloo, so that asking needs no GPU and does not wait for one."""

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from sarlang_sft.errors import BAD_INPUT, InputError

Value = TypeVar("Value")


class Ranks:
    """All ranks of a run. Every rank must call the same methods in the same order.

    Args:
        timeout: How long a rank waits for the others.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.count = dist.get_world_size() if dist.is_initialized() else 1
        self.own = dist.get_rank() if dist.is_initialized() else 0
        self.group = dist.new_group(backend="gloo", timeout=timeout) if self.count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.own == 0

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.group:
            dist.barrier(group=self.group)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if not self.group:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flags)

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks in order."""
        if not self.group:
            return [value]
        values = [value] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: Value) -> Value:
        """The value of rank 0."""
        if not self.group:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def on_first(self, work: Callable[[], Value]) -> Value | None:
        """What the work gives, on rank 0, which does it alone; None on the others, when it is done.

        Raises:
            InputError: The work did; the other ranks end the program without a word.
        """
        found, problem = None, None
        if self.first:
            try:
                found = work()
            except InputError as error:
                problem = error
        if self.from_first(problem is not None):
            if problem is None:
                sys.exit(BAD_INPUT)
            raise problem
        return found
