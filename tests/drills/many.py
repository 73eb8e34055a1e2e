"""Many drills in a row, of every kind, at random moments:

    make drills                                           # 100 of them
    python tests/drills/many.py --count 20 --seed 7       # fewer, others

One small training after the other is disturbed again and again until it ends. After every drill its output folder must
be usable and its run the same; at its end, adapter, losses and evaluations must be those of an undisturbed run bit for
bit, and every log step must be in W&B's files under one run id.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from wandb_files import read_attempts  # noqa: E402

from drills.runs import Drill, Process, check_usable  # noqa: E402
from sarlang_sft.backbones import BACKBONES  # noqa: E402
from sarlang_sft.checkpoints import last_complete, list_checkpoints  # noqa: E402
from sarlang_sft.errors import STOPPED_EXIT  # noqa: E402
from sarlang_sft.records import read_dialogue_table, write_data_folder  # noqa: E402
from sarlang_sft.sample import write_sample  # noqa: E402
from sarlang_sft.sarlang import Prompts, convert  # noqa: E402

OPTIONS = {
    "max_steps": 60, "eval_strategy": "steps", "eval_steps": 10, "val_questions": 12, "val_max_new_tokens": 8,
    "report_to": "wandb", "dataloader_num_workers": 1,
}  # fmt: skip


def get_under_way(drill: Drill, rng: random.Random, longest: float = 1.5) -> Process:
    """Start the training and let it write a checkpoint, and go on for a moment."""
    before = last_complete(drill.out)
    process = drill.start()
    process.wait_until(lambda: last_complete(drill.out) != before)
    with contextlib.suppress(psutil.TimeoutExpired):
        psutil.Process(process.process.pid).wait(rng.uniform(0, longest))
    return process


def kill_in_training(drill: Drill, rng: random.Random) -> None:
    """kill -9 at any moment of training."""
    get_under_way(drill, rng).kill()


def kill_at_start(drill: Drill, rng: random.Random) -> None:
    """kill -9 before the first step."""
    process = drill.start()
    time.sleep(rng.uniform(0, 12))
    process.kill()


def kill_while_saving(drill: Drill, rng: random.Random) -> None:
    """kill -9 while a checkpoint is half written."""
    process = drill.start()
    process.wait_until(lambda: bool(list(drill.out.glob(".checkpoint-*.part"))), every=0.001)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()


def kill_a_loader_worker(drill: Drill, rng: random.Random) -> None:
    """kill -9 of one loader worker: training ends on an error."""
    process = get_under_way(drill, rng, 0.5)
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.process.pid).children(recursive=True):
            if "multiprocessing.forkserver" in " ".join(child.parent().cmdline()):
                child.kill()
                break
    process.wait()
    process.kill()


def stop(number: signal.Signals) -> Callable[[Drill, random.Random], None]:
    """A signal to everything, or to the launcher alone."""

    def send(drill: Drill, rng: random.Random) -> None:
        process = get_under_way(drill, rng)
        with contextlib.suppress(ProcessLookupError):
            if rng.random() < 0.5:
                os.killpg(process.process.pid, number)
            else:
                process.signal(number)
        code = process.wait()
        assert code in (0, STOPPED_EXIT) or drill.ranks > 1, process.output()

    return send


def run_out_of_time(drill: Drill, rng: random.Random) -> None:
    """max_hours are over."""
    hours = {"max_hours": rng.uniform(1, 4) / 3600}
    process = Drill(drill.model, drill.data, drill.out, {**drill.options, **hours}, drill.ranks).start()
    code = process.wait()
    assert code in (0, STOPPED_EXIT) or drill.ranks > 1, process.output()


def start_twice(drill: Drill, rng: random.Random) -> None:
    """A second run in the folder is refused, and does not disturb the first."""
    process = get_under_way(drill, rng, 0.1)
    second = drill.start()
    code, output = second.wait(), second.output()
    assert "trains there now" in output or "this run is finished" in output or code == 0, output
    process.kill()


def damage(change: Callable[[bytes], bytes | None]) -> Callable[[Drill, random.Random], None]:
    """Bad luck with one file of the newest checkpoint, found at the next start."""

    def strike(drill: Drill, rng: random.Random) -> None:
        newest = last_complete(drill.out)
        if newest and len(list_checkpoints(drill.out)) > 1:
            victim = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
            changed = change(victim.read_bytes())
            victim.unlink()
            if changed is not None:
                victim.write_bytes(changed)
            process = get_under_way(drill, rng)
            process.kill()
            assert f"Left out: {newest}" in process.output(), process.output()
        else:
            kill_in_training(drill, rng)

    return strike


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DRILLS = {
    "kill -9 in training": kill_in_training,
    "kill -9 at the start": kill_at_start,
    "kill -9 while saving": kill_while_saving,
    "kill -9 of a loader worker": kill_a_loader_worker,
    "SIGTERM": stop(signal.SIGTERM),
    "SIGINT": stop(signal.SIGINT),
    "max_hours": run_out_of_time,
    "a second run": start_twice,
    "a flipped bit": damage(flip),
    "a file cut short": damage(lambda content: content[: len(content) // 2]),
    "a file removed": damage(lambda content: None),
}


def check_end(drill: Drill, whole: Drill) -> None:
    """The disturbed run against the undisturbed one."""
    assert drill.history() == whole.history(), "the log differs"
    reference = whole.adapter()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in drill.adapter().items()), "the adapter differs"
    folders = list((drill.out / "wandb").glob("offline-run-*"))
    assert {folder.name.split("-")[-1] for folder in folders} == {drill.run_id()}, "a second run id"
    attempts = read_attempts(drill.out / "wandb")
    logged = {line["train/global_step"] for attempt in attempts for line in attempt.history if "train/loss" in line}
    assert logged == set(whole.losses()), f"lost log steps: {sorted(set(whole.losses()) - logged)}"


def prepare(folder: Path) -> Drill:
    """A sample, a tiny model, and the run that nobody disturbs."""
    write_sample(folder / "sample", images=40, seed=3)
    tables = convert(folder / "sample", folder / "sample", 0.1, Prompts())
    write_data_folder(folder / "data", tables.records, tables.rejections, folder / "sample", tables.inputs)
    turns = [
        turn for dialogue in read_dialogue_table(folder / "data", "train")["turns"].to_pylist() for turn in dialogue
    ]
    BACKBONES["qwen2_5_vl"].build_tiny(folder / "tiny", [text for turn in turns for text in turn.values()], 0)
    whole = Drill(folder / "tiny", folder / "data", folder / "whole", OPTIONS)
    whole.finish()
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="drills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for the counts")
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    rng = random.Random(options.seed)
    done, runs = Counter(), 0
    with tempfile.TemporaryDirectory() as temporary, tqdm(total=options.count, unit=" drills") as progress:
        whole = prepare(Path(temporary))
        drill, ids = None, set()
        while progress.n < options.count or drill:
            if drill is None:
                drill, ids = Drill(whole.model, whole.data, Path(temporary) / f"run-{runs}", OPTIONS), set()
            if progress.n < options.count:
                name = rng.choice(list(DRILLS))
                progress.set_postfix_str(f"run {runs}: {name}")
                DRILLS[name](drill, rng)
                done[name] += 1
                progress.update()
            else:
                drill.finish()
            check_usable(drill.out)
            if (drill.out / "run.json").is_file():
                ids.add(drill.run_id())
                assert len(ids) == 1, "a second run id"
                if drill.state() == "finished":
                    check_end(drill, whole)
                    shutil.rmtree(drill.out)
                    drill, runs = None, runs + 1
    print(
        f"{sum(done.values())} drills over {runs} runs: no unusable output folder, no second run id, no lost log step"
    )
    for name, count in sorted(done.items()):
        print(f"{count:5} {name}")
    if options.out:
        options.out.write_text(json.dumps({"drills": dict(sorted(done.items())), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
