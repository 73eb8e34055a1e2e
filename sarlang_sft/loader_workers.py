"""The processes that read and prepare the next rows.

They are forked from a server that only imports, not from the process that trains: in Python 3.11 a fork hangs for ever
if it falls into the moment in which a thread of the communication backend enters the interpreter.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker

from torch.utils.data import DataLoader

from sarlang_sft.signals import SIGNALS

START_METHOD = "forkserver"
PRELOADED = ["sarlang_sft.training"]
SECONDS_BETWEEN_LOOKS = 2


def start_worker_server() -> None:
    """Have the server import, which takes seconds, while this process does other things; once per process."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # which the server's start would do, and unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the server keeps this, and so do its workers
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def use_worker_server(loader: DataLoader) -> None:
    """Have a loader start its workers from the server; only this process and its end can end them."""
    if loader.num_workers:
        start_worker_server()
        loader.multiprocessing_context = START_METHOD
        loader.worker_init_fn = leave_signals_to_trainer


def leave_signals_to_trainer(worker: int) -> None:
    """Begin a worker that ends when the process that started it says so, or is no more.

    Slurm, torchrun and terminals signal the workers too; torch's own handler would end them, and training with them.
    Nor would torch notice that the process has been killed: it looks after the worker's parent, which is the server.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    trainer = multiprocessing.parent_process()

    def listen() -> None:
        while trainer.is_alive():
            signalled = signal.sigtimedwait({signal.SIGTERM}, SECONDS_BETWEEN_LOOKS)
            if signalled is not None and signalled.si_pid == trainer.pid:
                break
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
