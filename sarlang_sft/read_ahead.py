"""Shards that a rank will read next, fetched while it reads these."""

import os
import queue
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import get_worker_info

from sarlang_sft.errors import InputError
from sarlang_sft.packing import Row
from sarlang_sft.shard_order import Dealing
from sarlang_sft.shards import Shards, in_shards, read_shards_of

FETCHERS = 2  # threads of every process that reads
LOCAL_RANKS = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class ReadAhead:
    """Fetches the next `dealing.window` shards of the rank whose row is being read, in threads of that process.

    Raises [`InputError`] if the cache cannot hold them.

    Args:
        table: `image_root`, `images` and `shard` of the planned dialogues.
        here: Whether rows are read by the process of the trainer itself; otherwise only its loader workers fetch.
    """

    def __init__(self, table: pa.Table, dealing: Dealing, here: bool) -> None:
        self.dealing = dealing
        self.here = here
        numbers, first = np.unique(dealing.shard, return_index=True)
        columns = [table[name].take(pa.array(first)).to_pylist() for name in ("image_root", "images")]
        self.images = {
            number: (Path(root), images[0])
            for number, root, images in zip(numbers.tolist(), *columns, strict=True)
            if number >= 0 and in_shards(Path(root))
        }
        roots = {root for root, _ in self.images.values()}
        for root in roots:  # what a rank reads, what it has carried over, and what it will read next
            read_shards_of(root.parent).check_room(3 * dealing.window * LOCAL_RANKS)
        self.process = 0
        self.order: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def __call__(self, rows: list[Row], index: int) -> None:
        """A row is about to be read, the `index`-th of the rows of an epoch."""
        if not self.images or not (self.here or get_worker_info()):
            return
        if self.process != os.getpid():
            self._start()
        rank = index // self.dealing.batch % self.dealing.ranks
        order = self.order.get((id(rows), rank))
        if order is None:
            order = self.order[id(rows), rank] = self._order(rows, rank)
        for _, number in [item for item in order if item[0] >= index][: self.dealing.window]:
            if number not in self.asked:
                self.asked.add(number)
                self.wanted.put(self.images[number])
        self.asked -= {number for place, number in order if place < index}  # they may come again in the next epoch

    def _order(self, rows: list[Row], rank: int) -> list[tuple[int, int]]:
        """Where a rank first needs each of its shards: (place of the row, number of the shard), ascending."""
        first: dict[int, int] = {}
        for place, row in enumerate(rows):
            if place // self.dealing.batch % self.dealing.ranks == rank:
                for number in self.dealing.shard[[tree[0] for tree in row]].tolist():
                    if number in self.images:
                        first.setdefault(number, place)
        return [(place, number) for number, place in first.items()]

    def _start(self) -> None:
        self.process = os.getpid()
        self.asked: set[int] = set()
        self.wanted: queue.SimpleQueue[tuple[Path, str]] = queue.SimpleQueue()
        for _ in range(FETCHERS):
            threading.Thread(target=_fetch, args=(self.wanted,), daemon=True).start()


def _fetch(wanted: queue.SimpleQueue) -> None:
    while True:
        root, image = wanted.get()
        with suppress(InputError, FileNotFoundError):  # whoever reads the image will hear of it
            shards: Shards = read_shards_of(root.parent)
            shards.fetch(shards.place_of(image).shard)
