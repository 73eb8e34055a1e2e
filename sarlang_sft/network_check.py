"""What a training's network can do before the training is started: who listens where, and how fast each link is."""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist

from sarlang_sft.errors import InputError
from sarlang_sft.launch import first_line, this_launch
from sarlang_sft.roll_call import call_roll, tell_all

UNKNOWN = "nothing"
SIZES_MB = (1, 16, 64)
LINK_MB = 16
REPEATS = 5
SLOW = 0.5  # of the median of links of its kind
INTERFACE_OPTIONS = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}


class Seat(NamedTuple):
    """Where a rank sits in the network.

    Attributes:
        resolved: What its host name resolves to on itself.
        interface: That the backend is told to use, or the one that leads to rank 0.
        address: IPv4 address of the interface; empty if it has none.
        told: The interface was named by the user.
    """

    rank: int
    host: str
    resolved: str
    interface: str
    address: str
    told: bool
    backend: str
    device: str

    def __str__(self) -> str:
        where = f"{self.host:<20} {self.address:<16} {self.interface:<10}"
        return f"rank {self.rank:<4} {where} {self.backend:<5} {self.device}"


class Speed(NamedTuple):
    """Of an all-reduce: `gb_per_s` is what each rank sends, 2 (n-1)/n of the size divided by the time (nccl-tests)."""

    megabytes: int
    milliseconds: float
    gb_per_s: float
    right: bool

    def __str__(self) -> str:
        return f"all-reduce {self.megabytes:>4} MB  {self.milliseconds:9.2f} ms  {self.gb_per_s:8.2f} GB/s a rank"


class Link(NamedTuple):
    """From a rank to the next one."""

    source: int
    target: int
    gb_per_s: float
    between_nodes: bool

    def __str__(self) -> str:
        where = "between nodes" if self.between_nodes else "within a node"
        return f"link {self.source} to {self.target}  {self.gb_per_s:8.2f} GB/s  {where}"


def find_seat(rank: int, backend: str, master: str) -> Seat:
    """Where this rank sits.

    Args:
        master: Name or address of rank 0's node.

    Raises:
        InputError: No route leads there.
    """
    host = socket.gethostname()
    try:
        resolved = socket.gethostbyname(host)
    except OSError:
        resolved = UNKNOWN
    addresses = {
        name: one.address
        for name, several in psutil.net_if_addrs().items()
        for one in several
        if one.family == socket.AF_INET
    }
    named = os.environ.get(INTERFACE_OPTIONS[backend], "")
    if named:
        interface = next((name for name in addresses if name.startswith(named.lstrip("=").split(",")[0])), named)
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((master, 9))  # sends nothing; tells the way
            except OSError as error:
                raise InputError(f"{host}: no way by IPv4 to {master} ({error})") from error
            way = probe.getsockname()[0]
        interface = next((name for name, address in addresses.items() if address == way), "?")
    device = torch.cuda.get_device_name() if backend == "nccl" else "cpu"
    return Seat(rank, host, resolved, interface, addresses.get(interface, ""), bool(named), backend, device)


def find_seat_faults(seats: list[Seat]) -> list[str]:
    """What will keep these ranks from finding each other, one line each."""
    faults, hosts = [], {seat.host for seat in seats}
    for host in sorted(hosts):
        seat = next(seat for seat in seats if seat.host == host)
        option = INTERFACE_OPTIONS[seat.backend]
        if not seat.address:
            faults.append(f"{host}: interface {seat.interface} has no IPv4 address; set {option} to one that has")
        elif len(hosts) > 1 and seat.address.startswith("127."):
            faults.append(f"{host}: {option} names {seat.interface}, which no other node can reach")
        elif len(hosts) > 1 and not seat.told and seat.backend == "gloo" and _nowhere(seat.resolved):
            faults.append(
                f"{host}: its name resolves to {seat.resolved}, where no other node can reach it; set "
                f"{option}={seat.interface} there, or mend /etc/hosts"
            )
    networks = {seat.address.rpartition(".")[0]: seat for seat in seats if seat.address}
    if len({seat.interface for seat in seats}) > 1 and len(networks) > 1:
        shown = ", ".join(f"{seat.interface} {seat.address} on {seat.host}" for seat in networks.values())
        faults.append(f"ranks use different interfaces ({shown}): name the one that leads to the others on each node")
    return faults


def _nowhere(address: str) -> bool:
    return address == UNKNOWN or address.startswith("127.")


def check_network(backend: str, seconds: float) -> None:
    """Check this launch's network; rank 0 prints what is found.

    Args:
        backend: nccl, gloo, or auto: nccl where there is a GPU.
        seconds: That ranks wait for each other.

    Raises:
        InputError: Something is wrong; all of it in one line.
    """
    if backend not in ("auto", "nccl", "gloo"):
        raise InputError(f"backend `{backend}`: choose auto, nccl or gloo")
    cuda = torch.cuda.is_available() if backend == "auto" else backend == "nccl"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    call_roll(seconds)
    launch = this_launch()
    if launch.count == 1:
        raise InputError("one rank alone has no network; start it by torchrun, torchrun_nodes.sh or slurm.sh")
    seat = find_seat(launch.rank, "nccl" if cuda else "gloo", launch.place.rpartition(":")[0])
    seats = [Seat(*json.loads(text)) for text in tell_all("seats", json.dumps(seat), seconds)]
    if launch.first:
        print(*seats, sep="\n", flush=True)
    if faults := find_seat_faults(seats):
        raise InputError("; ".join(faults))
    try:
        dist.init_process_group(seat.backend, timeout=timedelta(seconds=seconds), device_id=device if cuda else None)
    except RuntimeError as error:
        raise InputError(f"{seat.backend} cannot connect from {seat.host}: {first_line(error)}") from error
    speeds, links = measure_all_reduce(device), measure_links(seats, device)
    if launch.first:
        print(*speeds, *links, sep="\n", flush=True)
    faults = [f"all-reduce of {speed.megabytes} MB gives wrong sums" for speed in speeds if not speed.right]
    if faults := faults + find_slow_links(links, seats):
        raise InputError("; ".join(faults))
    if launch.first:
        print("Nothing is wrong", flush=True)
    dist.destroy_process_group()


def measure_all_reduce(device: torch.device) -> list[Speed]:
    """All-reduce a few sizes; every rank must call it. The result is that of the slowest rank."""
    ranks, found = dist.get_world_size(), []
    for megabytes in SIZES_MB:
        values = torch.full((megabytes * 2**18,), float(dist.get_rank() + 1), device=device)
        dist.all_reduce(values)
        right = bool((values == ranks * (ranks + 1) / 2).all())
        seconds = _timed(partial(dist.all_reduce, values), device)
        outcome = torch.tensor([seconds, float(not right)], device=device)
        dist.all_reduce(outcome, op=dist.ReduceOp.MAX)
        seconds, wrong = outcome.tolist()
        sent = 2 * (ranks - 1) / ranks * megabytes * 2**20
        found.append(Speed(megabytes, 1000 * seconds, sent / seconds / 1e9, not wrong))
    return found


def measure_links(seats: list[Seat], device: torch.device) -> list[Link]:
    """Send from each rank to the next, one link after the other; every rank must call it."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    values, links = torch.zeros(LINK_MB * 2**18, device=device), []
    for source in range(ranks if ranks > 2 else ranks - 1):
        target = (source + 1) % ranks
        seconds = torch.zeros(1, device=device)
        if rank == source:
            seconds[0] = _timed(lambda to=target: _send(values, to, device), device)
        elif rank == target:
            _timed(lambda of=source: _receive(values, of, device), device)
        dist.broadcast(seconds, source)
        between = seats[source].host != seats[target].host
        links.append(Link(source, target, LINK_MB * 2**20 / seconds.item() / 1e9, between))
    return links


def find_slow_links(links: list[Link], seats: list[Seat]) -> list[str]:
    """Links below half of the median of their kind (within a node, between nodes), one line each."""
    faults = []
    for between in (False, True):
        alike = [link for link in links if link.between_nodes is between]
        if len(alike) < 3:
            continue  # nothing to compare with
        usual = statistics.median(link.gb_per_s for link in alike)
        for link in alike:
            if link.gb_per_s < SLOW * usual:
                ends = " to ".join(f"rank {rank} on {seats[rank].host}" for rank in (link.source, link.target))
                faults.append(f"slow link from {ends}: {link.gb_per_s:.2f} GB/s, usual are {usual:.2f}")
    return faults


def _send(values: torch.Tensor, target: int, device: torch.device) -> None:
    dist.send(values, target)
    dist.recv(torch.zeros(1, device=device), target)  # it has arrived


def _receive(values: torch.Tensor, source: int, device: torch.device) -> None:
    dist.recv(values, source)
    dist.send(torch.zeros(1, device=device), source)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the median of a few."""
    times = []
    for _ in range(REPEATS + 1):
        _settle(device)
        start = time.perf_counter()
        work()
        _settle(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one connects


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
