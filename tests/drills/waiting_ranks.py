"""Two ranks of which one keeps the other waiting: torchrun tests/drills/waiting_ranks.py WAY SECONDS

WAY is `stopped` (the last rank, by SIGSTOP), `first_stopped`, `behind` (it reads data without end), `alike` (all do),
`slow` (it moves on for twice as long as the other waits), or `well` (no rank waits for long).
"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from sarlang_sft.ranks import Ranks
from sarlang_sft.watchdog import Watchdog

way, ddp_timeout = sys.argv[1], float(sys.argv[2])
dist.init_process_group("gloo", timeout=timedelta(minutes=5))
ranks = Ranks(timedelta(minutes=5))
watchdog = Watchdog(ranks, ddp_timeout)
watchdog.start()
print(f"rank {ranks.own} is process {os.getpid()}", flush=True)
ranks.wait()
watchdog.progress(7, "reading data")
culprit = 0 if way == "first_stopped" else ranks.count - 1
if way == "alike":
    time.sleep(300)
if way == "well":
    time.sleep(ddp_timeout / 2)
    culprit = None
if ranks.own == culprit:
    if way == "behind":
        time.sleep(300)
    watchdog.progress(7, "training")
    if way in ("stopped", "first_stopped"):
        time.sleep(ddp_timeout / 5)  # a few reports
        os.kill(os.getpid(), signal.SIGSTOP)
    end = time.monotonic() + 2 * ddp_timeout
    while time.monotonic() < end:
        time.sleep(ddp_timeout / 4)
        watchdog.progress(7, "training")
watchdog.progress(7, "training")
ranks.wait()
watchdog.stop()
print(f"rank {ranks.own} is done", flush=True)
