"""What a run learns from: one data folder or a weighted list of them, and what each epoch draws from it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarlang_sft.errors import InputError
from sarlang_sft.object_store import check_url, is_url, redact
from sarlang_sft.records import TASKS, image_root_of, read_dialogue_table
from sarlang_sft.shards import DEFAULT_CACHE_GB, data_folder


@dataclass(frozen=True)
class DataSource:
    """One data folder of a mixture.

    Attributes:
        path: The data folder, or the URL of one in shards.
        weight: Visits of each of its dialogues per epoch: 0.5 draws half of them anew every epoch, 2 takes each twice.
        tasks: Only these applications; empty means all.
        subsets: Only these subsets; empty means all.
        caps: At most this many dialogues of a task per epoch, drawn anew every epoch.
        image_root: Folder of the images; None means the data folder's.
        shard_cache: Folder for what is fetched of a data folder at a URL; None means `shards.DEFAULT_CACHE`.
        shard_cache_gb: Size that the shards there may take.
    """

    path: str
    weight: float = 1.0
    tasks: list[str] = field(default_factory=list)
    subsets: list[str] = field(default_factory=list)
    caps: dict[str, int] = field(default_factory=dict)
    image_root: str | None = None
    shard_cache: str | None = None
    shard_cache_gb: float = DEFAULT_CACHE_GB

    @property
    def folder(self) -> Path:
        """The data folder; of one at a URL its tables, which are fetched once."""
        return data_folder(self.path, self.shard_cache, self.shard_cache_gb)

    def __post_init__(self) -> None:
        if isinstance(self.path, str) and is_url(self.path):
            check_url(self.path)
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or self.weight <= 0:
            raise InputError(f"data {self.path}: weight {self.weight!r} must be a number above 0")
        for name, kind in (("path", str), ("tasks", list), ("subsets", list), ("caps", dict)):
            if not isinstance(vars(self)[name], kind):
                raise InputError(f"data {self.path}: `{name}: {vars(self)[name]!r}` must be a {kind.__name__}")
        for task in [*self.tasks, *self.caps]:
            if task not in TASKS:
                raise InputError(f"data {self.path}: `{task}` is no application; choose from {', '.join(TASKS)}")
        for task, cap in self.caps.items():
            if isinstance(cap, bool) or not isinstance(cap, int) or cap < 0:
                raise InputError(f"data {self.path}: caps: `{task}: {cap!r}` must be a whole number, 0 or more")


def parse_sources(
    data: str | list[Any],
    tasks: list[str],
    image_root: str | None,
    shard_cache: str | None = None,
    shard_cache_gb: float = DEFAULT_CACHE_GB,
) -> list[DataSource]:
    """The option `data`: a folder, or the YAML list of mappings with the fields of [`DataSource`].

    Args:
        tasks: The option of that name; holds for every source that names no tasks of its own.
        image_root: The option of that name; likewise, and so the others.
    """
    of_all = {"tasks": tasks, "image_root": image_root, "shard_cache": shard_cache, "shard_cache_gb": shard_cache_gb}
    known = {item.name for item in fields(DataSource)}
    sources = []
    for entry in [{"path": data}] if isinstance(data, str) else data:
        if not isinstance(entry, dict) or "path" not in entry:
            raise InputError(f"data: every entry of the list needs `path: FOLDER`, found {redact(repr(entry))}")
        if unknown := set(entry) - known:
            path = redact(str(entry["path"]))
            raise InputError(f"data {path}: unknown key `{min(unknown)}`; known are {', '.join(sorted(known))}")
        sources.append(DataSource(**{**of_all, **entry}))
    if not sources:
        raise InputError("data: the list is empty")
    return sources


def read_mixture(sources: list[DataSource], split: str) -> pa.Table:
    """The dialogues of a split of all sources, as rows of `read_dialogue_table` and `image_root`, `source`.

    `record` and `shard` (but -1) are unique over the sources; `source` counts them.

    Raises:
        InputError: The split holds no dialogue of the wanted tasks and subsets, or a folder is missing.
    """
    tables, records, shards = [], 0, 0
    for number, source in enumerate(sources):
        root = str(image_root_of(source.folder, source.image_root))
        table = read_dialogue_table(source.folder, split)
        highest, last = (pc.max(table[name]).as_py() for name in ("record", "shard"))
        inside = pc.if_else(pc.less(table["shard"], 0), table["shard"], pc.add(table["shard"], shards))
        table = (
            table.set_column(table.schema.get_field_index("record"), "record", pc.add(table["record"], records))
            .set_column(table.schema.get_field_index("shard"), "shard", inside)
            .append_column("image_root", pa.array([root] * len(table), pa.string()))
            .append_column("source", pa.array([number] * len(table), pa.int32()))
        )
        records += 0 if highest is None else highest + 1
        shards += 0 if last is None else last + 1
        for column, wanted in (("task", source.tasks), ("subset", source.subsets)):
            if wanted:
                table = table.filter(pc.field(column).isin(wanted))
        if len(table) == 0:
            chosen = [*source.tasks, *source.subsets]
            raise InputError(
                f"data {source.path}: the split {split} holds no dialogue" + (f" of {chosen}" if chosen else "")
            )
        tables.append(table)
    return pa.concat_tables(tables).combine_chunks()


@dataclass(frozen=True)
class Draw:
    """What an epoch takes: `dialogue` (N,) rows of the mixture, and `visit` (N,), 0 for the first in the epoch."""

    dialogue: np.ndarray
    visit: np.ndarray


class Mixture:
    """The columns of `read_mixture` that drawing needs."""

    def __init__(self, sources: list[DataSource], table: pa.Table) -> None:
        self.sources = sources
        self.source = table["source"].to_numpy()
        self.task = np.array(table["task"].to_pylist(), dtype=object)

    def draw(self, rng: np.random.Generator, usable: np.ndarray) -> Draw:
        """The dialogues of one epoch.

        Args:
            usable: (D,) bool: dialogues that may be drawn.
        """
        parts = list(self._visits(rng, usable))
        return Draw(
            np.concatenate([rows for rows, _ in parts]),
            np.concatenate([np.full(len(rows), visit) for rows, visit in parts]),
        )

    def _visits(self, rng: np.random.Generator, usable: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero((self.source == number) & usable)
            for task, cap in sorted(source.caps.items()):
                of_task = self.task[rows] == task
                kept = rng.permutation(rows[of_task])[:cap]
                rows = np.sort(np.concatenate([rows[~of_task], kept]))
            whole = int(source.weight)
            for visit in range(whole):
                yield rows, visit
            part = round((source.weight - whole) * len(rows))
            yield np.sort(rng.permutation(rows)[:part]), whole
