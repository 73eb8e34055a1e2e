"""Time and memory of ranking for retrieval: SARVLM-1M's test of 20,628 pairs, and 100,000 pairs.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --out benchmarks/results/cpu_retrieval.json

Every size runs in a process of its own: random features of unit length, a text's near its image's, every pair by
itself, so that both lists are as long as there are pairs. The time is that of the figures of one protocol, from the
features on: ranks, recalls and their intervals. Memory is the highest of the whole process, features and imports with
it. Rankings are checked against a full sort of some rows.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.contrastive.retrieval import official_lists, rank, recalls

SIZES = ("20628x512", "20628x768", "100000x768")
CHECKED = 20  # rows
NOISE = 0.25  # per dimension, beside features of about 1: some texts are found, some are not


def make_features(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, width) float32 of length 1, of images and of their texts."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, width, generator=random)
    images /= images.norm(dim=1, keepdim=True)
    texts = torch.randn(count, width, generator=random).mul_(NOISE).add_(images)
    return images, texts.div_(texts.norm(dim=1, keepdim=True))


def measure(count: int, width: int) -> dict[str, object]:
    """The figures of one size, in this process."""
    load = os.getloadavg()[0]
    images, texts = make_features(count, width)
    place = np.arange(count)
    pairs = Pairs([Path()] * count, [""] * count, place, place, [""] * count)  # names are not looked at
    before, start = os.times(), time.perf_counter()
    lists = official_lists(pairs, place)
    i2t, t2i = rank(images, texts, lists)
    figures = recalls(i2t, t2i, lists)
    seconds, after = time.perf_counter() - start, os.times()
    for row in range(0, count, -(-count // CHECKED)):
        found = torch.sort(images[row] @ texts.T, descending=True).indices
        place = int((found == row).nonzero())
        if not i2t.above[row] <= place < i2t.above[row] + i2t.tied[row]:
            raise SystemExit(f"row {row}: its text stands elsewhere in a full sort")
    return {
        "pairs": count,
        "width": width,
        "seconds": seconds,
        "cpu_seconds": sum(after[:2]) - sum(before[:2]),  # which others on the machine hardly change
        "load_before": load,  # processes that were running in the minute before
        "peak_bytes": setting.peak_memory(),
        "mean_recall": figures["MeanRecall"]["value"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="pairs x width of the features")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    about = {"hardware": setting.hardware(), "versions": setting.versions()}
    runs = []
    for size in options.sizes:
        if len(options.sizes) == 1:
            runs.append(measure(*map(int, size.split("x"))))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                runs += setting.run_apart(__file__, ["--sizes", size], Path(scratch) / "one.json")["runs"]
        run = runs[-1]
        name = f"{run['pairs']:>8,} pairs of width {run['width']}"
        took = f"{run['seconds']:6.1f} s, {run['cpu_seconds']:6.1f} s of CPU"
        print(f"{name}: {took}, {run['peak_bytes'] / 1e9:5.2f} GB, load before {run['load_before']:.1f}", flush=True)
        setting.write_result(options.out, {**about, "runs": runs})


if __name__ == "__main__":
    main()
