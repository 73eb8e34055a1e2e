"""The rows of the split `val`, shared out so that each is counted once, whatever the batches and the ranks."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainingArguments

from sarlang_sft.loader_workers import use_worker_server
from sarlang_sft.packing import PlannedRows

Batch = dict[str, Any]  # tensors, and the names of its `images`


def share_out(rows: int, rank: int, ranks: int, size: int) -> list[list[int]]:
    """The batches of one rank as numbers of rows: rank, rank + ranks, ...; equally many on every rank.

    Ranks that hold a model's weights together wait for each other in every forward, so one that runs out of rows gets
    a batch of none.
    """
    numbers, longest = range(rank, rows, ranks), -(-rows // ranks)
    return [list(numbers[start : start + size]) for start in range(0, longest, size)]


def read_batches(
    rows: PlannedRows, batches: list[list[int]], collator: Callable[[list], Batch], training: TrainingArguments
) -> DataLoader:
    """Collates batches of [`share_out`] as in training."""
    loader = DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=training.dataloader_num_workers,
        prefetch_factor=training.dataloader_prefetch_factor,
        pin_memory=training.dataloader_pin_memory,
    )
    use_worker_server(loader)
    return loader
