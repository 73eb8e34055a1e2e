"""What a launcher has started: which of how many this process is, and the store through which all can speak."""

import os
import socket
import time
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from sarlang_sft.errors import InputError

POLL = 0.1  # seconds between two looks for what others do


class NoStoreError(InputError):
    """Nothing answers where the ranks are to meet."""


class Launch(NamedTuple):
    """This process among those that a launcher has started, from the variables that launchers set."""

    rank: int
    count: int
    place: str  # address:port of the store

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def this_launch() -> Launch:
    """Read `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`; without them, one rank alone."""
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return Launch(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), place)


def open_store(launch: Launch, seconds: float) -> dist.Store:
    """The store of the launch, under a name of this attempt; torchrun's agent keeps it, or rank 0.

    Raises:
        NoStoreError: Nothing answers at its place within so many seconds, or the place is not given.
    """
    if absent := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise NoStoreError(
            f"rendezvous: WORLD_SIZE is {launch.count}, and {absent[0]} is not set; start by torchrun or slurm.sh"
        )
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, _, port = launch.place.rpartition(":")
    keeps = launch.first and not agent
    if not keeps:
        _await_server(launch, address, int(port), seconds)
    try:
        store = dist.TCPStore(
            address, int(port), is_master=keeps, timeout=timedelta(seconds=seconds), wait_for_workers=False,
            multi_tenant=True,
        )  # fmt: skip
    except dist.DistError as error:
        what = "cannot listen at" if keeps else "cannot use the store at"
        raise NoStoreError(
            f"rendezvous: rank {launch.rank} on {socket.gethostname()} {what} {launch.place} ({first_line(error)})"
        ) from error
    return dist.PrefixStore(f"roll_call/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_server(launch: Launch, address: str, port: int, seconds: float) -> None:
    """Return when something listens there; torch would fill the screen while it waits."""
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((address, port), timeout=max(1.0, seconds)):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise NoStoreError(
                    f"rendezvous: rank {launch.rank} on {socket.gethostname()} cannot reach {launch.place} within "
                    f"{seconds:g} s ({error}): is rank 0 started there, and the port open?"
                ) from error
        time.sleep(POLL)


def first_line(error: Exception) -> str:
    """What an error of torch says, without the C++ frames."""
    return str(error).partition("\n")[0]
