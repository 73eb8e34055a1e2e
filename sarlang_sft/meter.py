"""How fast a run learns: what its ranks counted since the last log line, and what a line says of it."""

import resource
import time
from collections.abc import Callable, Iterator

import torch

from sarlang_sft.collate import IGNORED
from sarlang_sft.flops import PEAK_FLOPS, FlopCount, Work
from sarlang_sft.supervision import answers
from sarlang_sft.trees import PADDING
from sarlang_sft.val_loss import Batch


class Meter:
    """Counts of one rank since the last log line; kept on the device, so that counting waits for no kernel."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.waited = 0.0
        self.counts = torch.zeros(4, dtype=torch.long)  # answers, tokens, image tokens, scored tokens

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, while the time until each arrives is counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def add(self, batch: Batch, image_token_id: int, scores_everything: bool) -> None:
        """Count a batch; padding does not count."""
        real = batch["segments"][..., 0] != PADDING if "segments" in batch else batch["attention_mask"].bool()
        scored = real if scores_everything else batch["labels"] != IGNORED
        image_tokens = batch["input_ids"] == image_token_id
        counts = [answers(batch["labels"]).max(), real.sum(), image_tokens.sum(), scored.sum()]
        self.counts = self.counts.to(real.device) + torch.stack(counts)

    def answers(self) -> int:
        """Question-answer pairs."""
        return int(self.counts[0])

    def work(self) -> Work:
        """What the batches asked of the model."""
        return Work(*self.counts[1:].tolist())


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: allocated by torch on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def speed_of(
    meter: Meter, device: torch.device, flops: FlopCount, gather: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, float]:
    """Speed since the meter's start: over all ranks, with the longest wait for data and the highest peak of memory.

    Args:
        meter: Of this rank.
        gather: Stacks the rows of all ranks.
    """
    seconds = time.perf_counter() - meter.start
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    own = [meter.answers(), meter.work().tokens, flops(meter.work()), meter.waited, peak_memory(device)]
    ranks = gather(torch.tensor([own], dtype=torch.float64, device=device))
    answered, tokens, operations = ranks[:, :3].sum(dim=0).tolist()
    waited, memory = ranks[:, 3:].max(dim=0).values.tolist()
    speed = {
        "qa_per_s": round(answered / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "data_wait": round(waited / seconds, 4),
        "peak_memory_gb": round(memory / 1e9, 2),
    }
    for name, peak in PEAK_FLOPS.items():
        if name in gpu:
            speed["mfu"] = round(operations / seconds / peak / len(ranks), 4)
    return speed
