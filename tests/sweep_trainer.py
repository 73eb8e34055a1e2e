"""A training without a model, for tests of what is around it: it keeps its folder as the recipes do, and is quick."""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from sarlang_sft.run_files import FINISHED, LOCK, RUN, RUNNING, STOPPED, append_evaluation

words = [word for text in sys.argv[1:] for word in text.split("=")]  # W&B's agents write --name=value
options = dict(zip(words[::2], words[1::2], strict=True))
rate, steps = float(options["--learning_rate"]), int(options.get("--max_steps", 6))
if rate > 1:
    print("error: learning_rate: too high", file=sys.stderr)
    sys.exit(2)
out = Path(options["--output_dir"])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
lock = open(out / LOCK, "w+b")  # noqa: SIM115
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
lock.write(f"process {os.getpid()}".encode())
lock.flush()


def leave(state: str) -> None:
    """Write the state of the run."""
    (out / RUN).write_text(json.dumps({"state": state}))


leave(RUNNING)
step = max([int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")], default=0)
with open(out / "starts", "a") as starts:
    starts.write(f"{step} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
while step < steps:
    time.sleep(0.2)
    step += 1
    append_evaluation(out, step, {"eval_accuracy": rate * step, "eval_loss": 1 / rate})
    (out / f"checkpoint-{step}").mkdir(exist_ok=True)
    if asked:
        leave(STOPPED)
        sys.exit(75)
leave(FINISHED)
