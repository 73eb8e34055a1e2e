"""Ranks meet before they are a process group: real processes, a real store, one line."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.distributed import HashStore, TCPStore

from sarlang_sft import lost_ranks, roll_call
from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.batch_size import accumulation_steps, check_deepspeed_batch
from sarlang_sft.errors import InputError
from sarlang_sft.network_check import Link, Seat, find_seat, find_seat_faults, find_slow_links
from sarlang_sft.ranks import Ranks
from sarlang_sft.roll_call import Introduction, call_roll, source_hash, tell_all, unlike
from sarlang_sft.run_facts import Facts, check_alike, collect_facts
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.watchdog import Watchdog

PARTY = """
import sys, time
from sarlang_sft import launch, roll_call
from sarlang_sft.errors import InputError

with roll_call.ending_together():
    way, rank = sys.argv[1], launch.this_launch().rank
    if rank == 1 and way == "at the start":
        raise InputError("data x: no such folder")
    if rank == 1 and way == "other libraries":
        known = roll_call.versions
        roll_call.versions = lambda: known() | {"peft": "0.0.1"}
    roll_call.call_roll(60)
    if rank == 1 and way == "later":
        raise InputError("image y: unreadable")
    if way in ("all", "each"):
        raise InputError("everything is wrong" if way == "all" else f"rank {rank} is wrong")
    if way != "well":
        time.sleep(60)  # as in a collective
print("ended well")
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(rank: int, port: int, *words: object) -> subprocess.Popen:
    """Without a launcher, as srun starts ranks."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env={**os.environ, **place}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("at the start", f"error: rank 1 on {socket.gethostname()}: data x: no such folder\n"),
        ("other libraries", f"error: rank 1 on {socket.gethostname()} has peft 0.0.1 (not "),
        ("later", f"error: rank 1 on {socket.gethostname()}: image y: unreadable\n"),
        ("all", "error: everything is wrong\n"),
        ("each", "error: rank 0 is wrong\n"),
        ("well", None),
    ],
)
def test_what_one_rank_refuses_ends_all_with_one_line_of_rank_0(way: str, said: str | None) -> None:
    port = free_port()
    ranks = [start(rank, port, "-c", PARTY, way) for rank in range(2)]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    if said is None:
        assert [rank.returncode for rank in ranks] == [0, 0] and outputs == ["ended well\n"] * 2, outputs
    else:
        assert [rank.returncode for rank in ranks] == [2, 2], outputs
        assert said in outputs[0], outputs
        if way == "each":
            assert "error: rank 1 is wrong\n" in "".join(outputs) or "rank 1 on" in outputs[0], outputs
        else:
            assert outputs[0].count("error:") == 1 and "error" not in outputs[1], outputs


def test_nodes_that_never_come_are_counted_and_named() -> None:
    port = free_port()
    script = ROOT / "recipes/launch/await_nodes.py"
    words = [script, "--nodes", 3, "--address", "127.0.0.1", "--timeout", 6]
    here = [start(0, 0, *words, "--port", port, "--node_rank", rank) for rank in (0, 2)]
    elsewhere = start(0, 0, *words, "--port", free_port(), "--node_rank", 1)
    first, third, lost = (node.communicate(timeout=120)[0] for node in (*here, elsewhere))
    assert [node.returncode for node in (*here, elsewhere)] == [2, 2, 2]
    assert f"error: rendezvous: 2 of 3 ranks came to 127.0.0.1:{port} within 6 s, from 1 of 3 nodes" in first
    assert "missing: rank 1." in first and "error" not in third
    assert "error: rendezvous: rank 1 on" in lost and "is rank 0 started there, and the port open?" in lost


def test_a_rank_with_another_source_is_unlike() -> None:
    first = Introduction("node0", {"torch": "2.15.0", "sarlang_sft": "aa"})
    assert unlike({0: first, 1: Introduction("node1", dict(first.made_of))}) is None
    other = Introduction("node1", {"torch": "2.15.0", "sarlang_sft": "bb"})
    assert unlike({0: first, 1: other}).startswith(
        "rank 1 on node1 has sarlang_sft bb (not aa), unlike rank 0 on node0"
    )


def test_neither_line_ends_nor_compiled_files_make_another_source(tmp_path: Path) -> None:
    for name, text in {"a": b"x = 1\n", "b": b"x = 1\r\n", "c": b"x = 2\n"}.items():
        (tmp_path / name / "__pycache__").mkdir(parents=True)
        (tmp_path / name / "module.py").write_bytes(text)
        (tmp_path / name / "__pycache__/module.pyc").write_bytes(name.encode())
    one, windows, other = (source_hash(tmp_path / name) for name in "abc")
    assert one == windows != other


def test_a_launch_without_an_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2, and MASTER_ADDR is not set; start by torchrun"):
        call_roll(1)


def test_a_rank_waits_as_long_as_rank_0_does_and_says_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(roll_call, "PATIENCE", 0)
    monkeypatch.setattr(roll_call._Listener, "running", None)
    comes = threading.Timer(2, server.set, ["roll_call/0/rank/0", "{}"])  # rank 0, which waits for a third one
    goes_on = threading.Timer(4, server.set, ["roll_call/0/alike", "yes"])
    comes.start()
    goes_on.start()
    call_roll(3)
    try:
        with pytest.raises(InputError, match=r"rank 0 said nothing of its seats within 0.2 s"):
            tell_all("seats", "here", 0.2)
    finally:
        roll_call._Listener.running.stop()


def test_a_connection_that_breaks_among_living_ranks_is_told_in_the_transports_words() -> None:
    watchdog = Watchdog(Ranks(timedelta(seconds=9)), 9)
    watchdog.interval, watchdog._store = 0.4, HashStore()
    watchdog._report(0)
    threading.Timer(0.2, watchdog._report, [1]).start()
    assert lost_ranks._find_lost(watchdog, "Connection reset by peer [10.0.0.2]:4711").endswith(
        "but all of them answer: look at the network (Connection reset by peer [10.0.0.2]:4711)"
    )


@pytest.fixture(scope="module")
def facts(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    training = TrainArguments(output_dir=str(tmp_path_factory.mktemp("facts")), report_to="none")
    return collect_facts(
        ModelArguments(str(tiny), dtype="float32"), TuningArguments(), DataArguments(str(data)), training
    )


def test_ranks_that_would_learn_otherwise_are_refused(facts: Facts) -> None:
    def other(change: object) -> Facts:
        copy = json.loads(json.dumps(facts))
        change(copy)
        return copy

    hosts = ["node0", "node1"]
    check_alike([facts, other(lambda copy: copy["options"].update(data="/elsewhere/data"))], hosts)
    for change, said in [
        (lambda copy: copy["options"].update(learning_rate=0.5), "has learning_rate 0.5 (not "),
        (lambda copy: copy["options"].update(save_steps=7), "has save_steps 7 (not "),
        (lambda copy: copy["options"].update(eval_strategy="steps"), "has eval_strategy 'steps' (not 'no')"),
        (lambda copy: copy["options"].update(logging_steps=3), "has logging_steps 3 (not "),
        (lambda copy: copy["data"][0].update({"manifest.json": "0" * 64}), "/manifest.json, unlike rank 0 on node0"),
        (lambda copy: copy["data"][0].update({"train.parquet": "0" * 64}), "train.parquet 000000000000 (not "),
        (lambda copy: copy.update(base="0"), "rank 1 on node1 has base model"),
        (lambda copy: copy.update(deepspeed={"x": 1}), "another deepspeed configuration"),
    ]:
        with pytest.raises(InputError, match=r"^rank 1 on node1 has .*; start the same command") as refused:
            check_alike([facts, other(change)], hosts)
        assert said in str(refused.value)


def test_a_recipe_whose_nodes_have_other_data_and_options_ends_before_it_writes(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    other, port = tmp_path / "data", free_port()
    shutil.copytree(data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "read": 0}))
    words = [ROOT / "recipes/qwen_lora.py", "--model_name_or_path", tiny, "--output_dir", tmp_path / "out"]
    words += ["--dtype", "float32", "--report_to", "none", "--global_batch_size", 4]
    ranks = [start(0, port, *words, "--data", data), start(1, port, *words, "--data", other, "--lora_r", 4)]
    first, second = (rank.communicate(timeout=300)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [2, 2], first + second
    told = f"error: rank 1 on {socket.gethostname()} has lora_r 4 (not 8); another {other}/manifest.json, unlike"
    assert told in first and first.count("error:") == 1 and "error:" not in second, first + second
    assert not (tmp_path / "out").exists()


def test_the_declared_batch_is_kept_on_any_number_of_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "zero2.json"
    for ranks, per_device, steps in [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)]:
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        assert accumulation_steps(8, per_device, 1, ranks) == accumulation_steps(8, per_device, steps, ranks) == steps
        config.write_text('{"train_batch_size": "auto"}')
        check_deepspeed_batch(str(config), per_device, steps)
        config.write_text('{"train_batch_size": 8}')
        check_deepspeed_batch(str(config), per_device, steps)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        InputError, match=r"3 ranks x .* = 3 rows at once do not divide it; set it to 6 or 9, or start 2"
    ):
        accumulation_steps(8, 1, 1, 3)
    with pytest.raises(
        InputError, match=r"zero2.json: its train_batch_size 8 is not 3 ranks x .*--global_batch_size 8"
    ):
        check_deepspeed_batch(str(config), 1, 1)
    with pytest.raises(InputError, match="= 16 rows at once do not divide it; set it to 16, or start 8 ranks"):
        accumulation_steps(8, 1, 1, 16)
    with pytest.raises(InputError, match="gradient_accumulation_steps 2: with global_batch_size 16 it follows"):
        accumulation_steps(16, 1, 2, 16)
    monkeypatch.delenv("WORLD_SIZE")
    training = TrainArguments(output_dir=str(tmp_path), report_to="none", global_batch_size=6)
    assert training.gradient_accumulation_steps == 6
    training._n_gpu = 8  # as transformers counts those that one process sees
    training.__post_init__()
    assert training.n_gpu == 1 and training.train_batch_size == training.per_device_train_batch_size


def seat(rank: int, host: str, address: str, interface: str = "eth0", resolved: str = "", told: bool = False) -> Seat:
    return Seat(rank, host, resolved or address, interface, address, told, "gloo", "cpu")


def test_network_faults_are_told_by_host_and_option() -> None:
    good = [seat(0, "node0", "10.0.0.1"), seat(1, "node1", "10.0.0.2")]
    assert find_seat_faults(good) == []
    assert find_seat_faults([seat(0, "one", "127.0.0.1", "lo", "127.0.0.1")]) == [], "a node alone may use loopback"
    [fault] = find_seat_faults([good[0], seat(1, "node1", "10.0.0.2", resolved="127.0.1.1")])
    assert fault.startswith("node1: its name resolves to 127.0.1.1, ") and "GLOO_SOCKET_IFNAME=eth0" in fault
    assert find_seat_faults([good[0], seat(1, "node1", "10.0.0.2", resolved="127.0.1.1", told=True)]) == []
    [fault] = find_seat_faults([good[0], seat(1, "node1", "", "ib7", told=True)])
    assert fault.startswith("node1: interface ib7 has no IPv4 address")
    [fault] = find_seat_faults([good[0], seat(1, "node1", "192.168.9.2", "eth1")])
    assert "different interfaces (eth0 10.0.0.1 on node0, eth1 192.168.9.2 on node1)" in fault


def test_a_first_node_without_ipv4_is_refused() -> None:
    with pytest.raises(InputError, match="no way by IPv4 to ::1"):
        find_seat(0, "gloo", "::1")


def test_one_slow_link_is_named() -> None:
    seats = [seat(rank, f"node{rank}", f"10.0.0.{rank}") for rank in range(4)]
    links = [Link(rank, (rank + 1) % 4, 0.2 if rank == 2 else 10.0, True) for rank in range(4)]
    [fault] = find_slow_links(links, seats)
    assert fault == "slow link from rank 2 on node2 to rank 3 on node3: 0.20 GB/s, usual are 10.00"
    assert find_slow_links(links[2:], seats) == [], "two links do not say which of them is slow"


def test_the_network_check_measures_two_ranks() -> None:
    port = free_port()
    ranks = [start(rank, port, ROOT / "recipes/launch/check_network.py", "--backend", "gloo") for rank in range(2)]
    first, second = (rank.communicate(timeout=200)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], first + second
    assert (
        "rank 1 " in first and "all-reduce   64 MB" in first and "link 0 to 1" in first and "Nothing is wrong" in first
    )
    assert not torch.distributed.is_initialized()
