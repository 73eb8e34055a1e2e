"""Two nodes of one rank each train, one of them is lost, and both go on: on loopback, and with a network between."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drills.runs import RECIPE, ROOT, Drill, Process, check_usable
from sarlang_sft.checkpoints import last_complete

SCRIPT = ROOT / "recipes/launch/torchrun_nodes.sh"
NAMESPACES = ("sarlang-node0", "sarlang-node1")
ADDRESSES = ("10.97.53.1", "10.97.53.2")


class Nodes:
    """Two nodes, started as a user starts them.

    Args:
        namespaces: Network namespaces to run them in; none: both on loopback.
    """

    def __init__(self, namespaces: tuple[str, ...] = ()) -> None:
        self.namespaces = namespaces

    def start(self, drill: Drill) -> list[Process]:
        words = drill.words()
        words = [str(SCRIPT), *words[words.index(str(RECIPE)) :]]
        variables = {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "RANKS_PER_NODE": "1"}
        variables["MASTER_PORT"] = str(two_free_ports())
        if self.namespaces:
            variables |= {"MASTER_ADDR": ADDRESSES[0], "GLOO_SOCKET_IFNAME": "wire"}
        variables["PATH"] = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        started = []
        for rank in range(2):
            own = [f"{name}={value}" for name, value in {**variables, "NODE_RANK": rank}.items()]
            inside = []
            if self.namespaces:
                called = f'hostname {self.host(rank)}; exec "$@"'
                inside = ["ip", "netns", "exec", self.host(rank), "unshare", "-u", "sh", "-c", called, "sh"]
            started.append(Process([*inside, "env", *own, *words]))
        return started

    def host(self, rank: int) -> str:
        return self.namespaces[rank] if self.namespaces else socket.gethostname()


def two_free_ports() -> int:
    """A port of 127.0.0.1 that is free, as the next one is."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(params=["apart", pytest.param("on loopback", marks=pytest.mark.slow)])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """Each in a network namespace of its own where this machine allows it, which needs root; else on loopback."""
    if request.param == "on loopback" or not shutil.which("ip") or not shutil.which("unshare"):
        yield Nodes()
        return
    made = []
    try:
        try:
            for name in NAMESPACES:
                ip("netns", "add", name)
                made.append(name)
            ends = [["wire", "netns", name] for name in NAMESPACES]
            ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
            for name, address in zip(NAMESPACES, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
                ip("-n", name, "link", "set", "wire", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            yield Nodes()
        else:
            yield Nodes(NAMESPACES)
    finally:
        for name in made:
            ip("netns", "del", name)


def test_two_nodes_lose_one_say_so_and_go_on(nodes: Nodes, tiny: Path, data: Path, tmp_path: Path) -> None:
    options = {"max_steps": 40}
    whole = Drill(tiny, data, tmp_path / "whole", options, ranks=2)
    whole.finish()
    drill = Drill(tiny, data, tmp_path / "lost", options, ranks=2)

    first, second = nodes.start(drill)
    first.wait_until(lambda: last_complete(drill.out) == drill.out / "checkpoint-8", every=0.1)
    second.kill()
    assert first.wait() != 0, "it would go on alone"
    output = first.output()
    assert output.count("error: ") == 1 and f"error: gone: rank 1 on {nodes.host(1)} (process " in output, output
    assert "Start the same command again on all nodes" in output
    assert drill.state() == "running"
    check_usable(drill.out)
    run_id, reached = drill.run_id(), last_complete(drill.out)
    assert reached != drill.out / "checkpoint-40"

    for process in (both := nodes.start(drill)):
        assert process.wait() == 0, process.output()
    assert f"Resuming from {reached}" in both[0].output()
    assert (drill.run_id(), drill.state()) == (run_id, "finished")
    assert drill.losses() == whole.losses()
    adapter, reference = drill.adapter(), whole.adapter()
    assert adapter.keys() == reference.keys()
    assert all(torch.equal(adapter[name], reference[name]) for name in reference)
