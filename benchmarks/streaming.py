"""Reading from shards beside reading from a folder: rows per second, and what a slow store costs with and without
fetching ahead.

    python benchmarks/streaming.py --out benchmarks/results/cpu_streaming.json

Simulated scenes of 448 pixels, one image and its questions a row, in the order of a training from shards. Two loader
processes read and decode the images of a row; where there are steps, the consumer takes `--step` seconds for each row,
as a model would. The store lies on this machine; where it is slow, it waits `--latency` seconds before every file that
it gives, and a second for every `--megabytes` of it. The cache is empty at the start and holds a few shards.
"""

import argparse
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import fsspec
import numpy as np
import setting
from fsspec.spec import AbstractFileSystem
from torch.utils.data import DataLoader

from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture
from sarlang_sft.lengths import Lengths
from sarlang_sft.mixture import DataSource, Mixture, read_mixture
from sarlang_sft.packing import Layout, PlannedRows
from sarlang_sft.read_ahead import ReadAhead
from sarlang_sft.records import read_manifest
from sarlang_sft.shard_order import Dealing, plan_shard_epochs
from sarlang_sft.shard_writing import write_sharded
from sarlang_sft.shards import data_folder, read_index

RUNS = (  # name, where the images are, whether the store is slow, whether there are steps, whether it fetches ahead
    ("folder", "folder", False, False, False),
    ("shards here", "here", False, False, False),
    ("shards of a fast store", "store", False, False, True),
    ("folder, with steps", "folder", False, True, False),
    ("slow store, with steps, fetched ahead", "store", True, True, True),
    ("slow store, with steps, fetched when needed", "store", True, True, False),
)
WINDOW = 2
WORKERS = 2


class SlowStore(AbstractFileSystem):
    """Local files at `slow:///path`."""

    protocol = "slow"
    latency = 0.0
    rate = float("inf")  # bytes per second
    log: Path

    def _open(self, path: str, mode: str = "rb", **options: object) -> BytesIO:
        content = Path(path).read_bytes()
        if path.endswith(".tar"):
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(path + "\n")
            time.sleep(self.latency + len(content) / self.rate)
        return BytesIO(content)


fsspec.register_implementation("slow", SlowStore)


def decode(rows: list) -> int:
    """Read the images of a row as the collators do; how many."""
    trees = [tree[0] for row in rows for tree in row]
    return len([load_picture(path_inside(Path(one["image_root"]), one["images"][0]), []) for one in trees])


def read_epoch(source: DataSource, step: float, ahead: bool, work: Path) -> dict[str, Any]:
    """Seconds of an epoch from this source, what the consumer waited, and how often a shard was fetched."""
    data_folder.cache_clear()
    read_index.cache_clear()
    SlowStore.log = work / "fetched.log"
    SlowStore.log.write_text("")
    table = read_mixture([source], "train")
    count = np.full(len(table), 10)
    lengths = Lengths(table["record"].to_numpy(), count, count, count, count > 0)
    dealing = Dealing(table["shard"].to_numpy(), 1, 1, WINDOW)
    layout = Layout(True, 20, 1, 1)  # a row holds one image
    epochs = plan_shard_epochs(Mixture([source], table), lengths, [], layout, 0, 1, dealing)
    rows = PlannedRows(table, epochs, True, 0, ReadAhead(table, dealing, False) if ahead else None)
    start, waited, images = time.perf_counter(), 0.0, 0
    batches = iter(DataLoader(rows, 1, num_workers=WORKERS, collate_fn=decode))
    for _ in range(len(rows)):
        asked = time.perf_counter()
        images += next(batches)
        waited += time.perf_counter() - asked
        time.sleep(step)
    seconds = time.perf_counter() - start
    fetched = len(SlowStore.log.read_text().splitlines())
    return {"rows_per_s": len(rows) / seconds, "waited": waited / seconds, "images": images, "fetched": fetched}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160, help="simulated scenes")
    parser.add_argument("--shard_mb", type=float, default=1.0, help="size of a shard")
    parser.add_argument("--step", type=float, default=0.05, help="seconds that the consumer takes for a row")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds before the store gives a file")
    parser.add_argument("--megabytes", type=float, default=10.0, help="that the store gives in a second")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        data = setting.make_data(work, options.images)
        images, written = read_manifest(data)["image_root"], work / "shards"
        manifest = write_sharded(data, written, Path(images), int(1e6 * options.shard_mb), 0)
        sizes = [shard["bytes"] for shard in manifest["shards"] if shard["name"].startswith("train")]
        gigabytes = 3 * WINDOW * max(sizes) / 1e9
        runs = []
        folder: dict[bool, float] = {}  # rows per second, without and with steps
        for number, (name, where, slow, stepping, ahead) in enumerate(RUNS):
            SlowStore.latency = options.latency if slow else 0.0
            SlowStore.rate = 1e6 * options.megabytes if slow else float("inf")
            source = DataSource(
                f"slow://{written}" if where == "store" else str(written),
                image_root=images if where == "folder" else None,
                shard_cache=str(work / f"cache-{number}"),
                shard_cache_gb=gigabytes,
            )
            run = {"run": name, **read_epoch(source, options.step * stepping, ahead, work)}
            run["over_folder"] = run["rows_per_s"] / folder.setdefault(stepping, run["rows_per_s"])
            runs.append(run)
            print(
                f"{name:44} {run['rows_per_s']:8.1f} rows/s, {run['over_folder']:.2f} of the folder, "
                f"{run['waited']:.0%} waited, {run['fetched']} fetched",
                flush=True,
            )
    result = {
        "hardware": setting.hardware().removesuffix(", float32"),
        "versions": setting.versions() | {"fsspec": fsspec.__version__},
        **{name: value for name, value in vars(options).items() if name != "out"},
        "train_shards": len(sizes),
        "largest_shard_bytes": max(sizes),
        "runs": runs,
    }
    setting.write_result(options.out, result)


if __name__ == "__main__":
    main()
