"""The ranks of a launch before they are a process group: who came, are they alike, and one word when one of them ends.

A process group waits half an hour for a rank that never comes, and names nobody. Here ranks speak through the store
that the launcher (or rank 0) keeps, which needs no group: each says who it is, rank 0 says in one line what is wrong,
and an [`InputError`] on any rank, then and later, ends all of them.
"""

import atexit
import hashlib
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from sarlang_sft.environment import versions
from sarlang_sft.errors import BAD_INPUT, InputError, own_message
from sarlang_sft.launch import POLL, Launch, NoStoreError, first_line, open_store, this_launch

LISTEN = 1.0  # seconds between two looks for a refusal of another rank
PATIENCE = 5.0  # seconds that rank 0 and another one wait for each other's last word
ALIKE, HEARD, REFUSAL, SPEAKER, SAID, LEFT = "alike", "heard", "refusal", "speaker", "said", "left"  # of the store


class Introduction(NamedTuple):
    """What a rank says of itself."""

    host: str
    made_of: dict[str, str]


def call_roll(seconds: float) -> None:
    """Return when all ranks have come and are made of the same; from then on this rank hears when another one refuses.

    Every rank must call it, before it joins a process group. With one rank there is nothing to do.

    Args:
        seconds: That rank 0 waits for the others from when it has come, and the others for rank 0.

    Raises:
        InputError: After `seconds` a rank is missing, or one has other libraries or another source than rank 0.
    """
    launch = this_launch()
    if launch.count == 1 or _Listener.running:
        return
    end = time.monotonic() + seconds
    store = open_store(launch, seconds)
    own = Introduction(socket.gethostname(), {**versions(), "sarlang_sft": source_hash()})
    try:
        store.set(f"rank/{launch.rank}", json.dumps(own))
        if launch.first:
            came = _await(store, launch, end)
            verdict = _missing(came, launch, seconds) or unlike(came)
            if verdict:
                raise InputError(verdict)
            store.set(ALIKE, "yes")
            while store.add(HEARD, 0) < launch.count - 1 and time.monotonic() < end + PATIENCE:
                time.sleep(POLL)  # the store may end with this process
        else:
            heard_of_first = False
            while not store.check([ALIKE]):
                _leave_if_refused(store, launch)
                if not heard_of_first and store.check(["rank/0"]):
                    heard_of_first, end = True, time.monotonic() + seconds  # rank 0 waits from here on
                if time.monotonic() > end + PATIENCE:
                    raise InputError(f"rendezvous: rank 0 at {launch.place} said nothing for {seconds:g} s")
                time.sleep(POLL)
            store.add(HEARD, 1)
    except dist.DistError as error:
        raise InputError(f"rendezvous: the store at {launch.place} answers no more ({first_line(error)})") from error
    _Listener(store, launch).start()


def tell_all(name: str, value: str, seconds: float) -> list[str]:
    """What every rank has to say under a name, in order; every rank must call it, after the roll.

    Raises:
        InputError: A rank said nothing for so long.
    """
    launch = this_launch()
    if launch.count == 1:
        return [value]
    store = dist.PrefixStore(name, _Listener.running.store)
    store.set(str(launch.rank), value)
    ranks = [str(rank) for rank in range(launch.count)]
    end = time.monotonic() + seconds
    while not store.check(ranks):  # in a wait, no refusal would be heard: one thread at a time uses a store
        if time.monotonic() > end:
            absent = next(rank for rank in ranks if not store.check([rank]))
            raise InputError(f"rank {absent} said nothing of its {name} within {seconds:g} s")
        time.sleep(POLL)
    return [text.decode() for text in store.multi_get(ranks)]


def source_hash(folder: Path = Path(__file__).parent) -> str:
    """SHA-256, cut short, of this package's modules, whatever ends their lines: tells a checkout of another state."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def unlike(came: dict[int, Introduction]) -> str | None:
    """The first rank that is made of anything else than rank 0, in words."""
    first = came[0]
    for rank, other in sorted(came.items()):
        names = [name for name in first.made_of if other.made_of.get(name) != first.made_of[name]]
        if names:
            there = ", ".join(f"{name} {other.made_of.get(name)} (not {first.made_of[name]})" for name in names)
            whom = f"rank 0 on {first.host}; install the same on all nodes"
            return f"rank {rank} on {other.host} has {there}, unlike {whom}"
    return None


@contextmanager
def ending_together() -> Iterator[None]:
    """On an [`InputError`], end this program on all ranks of its launch, with exit code 2 and one clear line.

    Rank 0 says it, and names the rank and host if it was another's.
    """
    try:
        yield
    except NoStoreError as error:  # nobody to tell
        _say(str(error))
        sys.exit(BAD_INPUT)
    except InputError as error:
        sys.exit(refuse(own_message(error)))


def refuse(message: str) -> int:
    """Have rank 0 say the message, once, whatever rank it comes from, and all ranks end.

    Returns:
        The exit code.
    """
    launch, listener = this_launch(), _Listener.running
    try:
        if listener:
            listener.stop()
        if launch.count > 1:
            store = listener.store if listener else open_store(launch, PATIENCE)
            store.compare_set(REFUSAL, "", json.dumps([launch.rank, socket.gethostname(), message]))
            rank, _, posted = json.loads(store.get(REFUSAL))
            if rank != launch.rank and posted != message:
                _say(message)  # another trouble than the one that all hear of
            _leave_word(store, launch, message)
            return BAD_INPUT
    except (dist.DistError, NoStoreError):  # nobody else is there
        pass
    _say(message)
    return BAD_INPUT


def _say(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def _leave_word(store: dist.Store, launch: Launch, own: str | None = None) -> None:
    """On rank 0, say what was refused; on the others, see to it that it is said.

    Args:
        own: What this rank refuses for.
    """
    rank, host, message = json.loads(store.get(REFUSAL))
    end = time.monotonic() + PATIENCE
    if launch.first:
        if store.add(SPEAKER, 1) == 1:
            _say(message if rank == 0 or message == own else f"rank {rank} on {host}: {message}")
        store.set(SAID, "yes")
        while store.add(LEFT, 0) < launch.count - 1 and time.monotonic() < end:
            time.sleep(POLL)  # the store may end with this process
        return
    while not store.check([SAID]):
        if time.monotonic() > end:
            if rank == launch.rank:
                _say(message)  # rank 0 does not hear
            break
        time.sleep(POLL)
    store.add(LEFT, 1)


def _leave_if_refused(store: dist.Store, launch: Launch) -> None:
    if store.check([REFUSAL]):
        _leave_word(store, launch)
        sys.exit(BAD_INPUT)


def _await(store: dist.Store, launch: Launch, end: float) -> dict[int, Introduction]:
    """Who has come until the end, or until all have."""
    came: dict[int, Introduction] = {}
    while len(came) < launch.count:
        _leave_if_refused(store, launch)
        for rank in range(launch.count):
            if rank not in came and store.check([f"rank/{rank}"]):
                came[rank] = Introduction(*json.loads(store.get(f"rank/{rank}")))
        if time.monotonic() > end:
            break
        time.sleep(POLL)
    return came


def _missing(came: dict[int, Introduction], launch: Launch, seconds: float) -> str | None:
    absent = [rank for rank in range(launch.count) if rank not in came]
    if not absent:
        return None
    hosts = sorted({one.host for one in came.values()})
    nodes = os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("SLURM_NNODES")  # of torchrun, of Slurm
    of = f"{len(hosts)} of {nodes} nodes" if nodes else f"{len(hosts)} nodes"
    shown = ", ".join(map(str, absent[:8])) + ", ..." * (len(absent) > 8)
    return (
        f"rendezvous: {len(came)} of {launch.count} ranks came to {launch.place} within {seconds:g} s, from {of} "
        f"({', '.join(hosts)}); missing: rank {shown}. Look there for what ended them, or raise rendezvous_timeout"
    )


class _Listener:
    """Ends this process when another rank refuses; rank 0 says why."""

    running: "_Listener | None" = None

    def __init__(self, store: dist.Store, launch: Launch) -> None:
        self.store = store
        self.launch = launch
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        _Listener.running = self
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Before Python takes down what the thread stands on."""
        self._stopped.set()
        self._thread.join(LISTEN)

    def _listen(self) -> None:
        try:
            while not self._stopped.wait(LISTEN):
                if self.store.check([REFUSAL]):
                    break
            if self._stopped.wait(LISTEN):  # the main thread may be about to refuse for the same reason
                return
            _leave_word(self.store, self.launch)
        except dist.DistError:  # the launch is over, or the watchdog's business
            return
        for worker in multiprocessing.active_children():  # of the loader
            worker.kill()
        os._exit(BAD_INPUT)  # the main thread may wait for a rank that is gone
