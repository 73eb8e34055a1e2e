"""The processes that read rows ahead of training."""

import os
import signal
import subprocess
import sys

import psutil
from torch.utils.data import DataLoader, Dataset

from sarlang_sft.loader_workers import use_worker_server


class Places(Dataset):
    """Who reads: the number of the worker's process and of its parent."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, int]:
        return os.getpid(), os.getppid()


def test_workers_are_not_forked_from_the_process_that_trains() -> None:
    loader = DataLoader(Places(), 1, num_workers=2)
    use_worker_server(loader)
    places = [(int(worker), int(parent)) for worker, parent in loader]
    assert len({worker for worker, _ in places}) == 2
    [server] = {parent for _, parent in places}
    assert server != os.getpid() and "multiprocessing.forkserver" in " ".join(psutil.Process(server).cmdline())


def test_only_the_process_that_trains_ends_its_workers_and_their_server() -> None:
    loader = DataLoader(Places(), 1, num_workers=1, prefetch_factor=1)
    use_worker_server(loader)
    batches = iter(loader)
    worker, server = (psutil.Process(int(number)) for number in next(batches))
    for number in (signal.SIGTERM, signal.SIGINT):
        for process in (worker, server):
            subprocess.run(["kill", f"-{int(number)}", str(process.pid)], check=True)
    assert len(list(batches)) == len(Places()) - 1
    del batches
    worker.wait(20)
    assert server.is_running()
    assert {int(parent) for _, parent in loader} == {server.pid}


def test_a_killed_process_takes_its_workers_and_their_server_along() -> None:
    code = (
        "import os, signal; from torch.utils.data import DataLoader; from test_loader_workers import Places; "
        "from sarlang_sft import loader_workers\n"
        "loader_workers.PRELOADED = []\n"
        "loader = DataLoader(Places(), 1, num_workers=1); loader_workers.use_worker_server(loader)\n"
        "for worker, server in loader: print(int(worker), int(server), flush=True); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, timeout=100
    ).stdout
    for number in map(int, printed.splitlines()[-1].split()):
        if psutil.pid_exists(number):
            psutil.Process(number).wait(30)
