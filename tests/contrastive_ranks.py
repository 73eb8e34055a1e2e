"""What two ranks and one compute of the same batch; functions that processes are started with."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from sarlang_sft.contrastive.accumulation import backward_of_batch
from sarlang_sft.contrastive.losses import Rows, caption_loss, contrastive_loss, gather_rows
from sarlang_sft.contrastive.models import load_model
from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.contrastive.trainer import Towers

IMAGE = np.array([0, 0, 1, 2, 3, 4, 5, 6])  # of the pairs of a batch: the first two show the same
TEXT = np.array([0, 1, 2, 2, 3, 4, 5, 1])  # the third and fourth say the same, and so do the second and last
VALID = torch.tensor([True, True, True, False, True, True, True, True])
PAIRS = Pairs([Path(str(n)) for n in range(7)], [f"a text {n}" for n in range(6)], IMAGE, TEXT, ["x"] * 7)
CASES = [  # model, negatives, rows that go through the towers at a time
    ("sar-vit-tiny", "plain", 8), ("sar-vit-tiny", "masked", 8), ("sar-vit-tiny", "masked", 3),
    ("sar-vit-tiny", "multi_positive", 3), ("sar-coca-tiny", "masked", 3),
]  # fmt: skip


def rows_of(images: np.ndarray, texts: np.ndarray, valid: torch.Tensor, first: int) -> Rows:
    """The rows of a rank that has these pairs; the columns of all of `IMAGE` and `TEXT`."""
    image_knows = torch.tensor(PAIRS.true_of(images, TEXT))
    return Rows(image_knows, torch.tensor(PAIRS.true_of(IMAGE, texts).T), valid, first)


def gradients(name: str, negatives: str, micro: int, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Of all parameters, averaged over the ranks, for this rank's share of the batch; `loss` is their mean."""
    torch.manual_seed(0)
    contrastive = load_model(name)
    towers = Towers(contrastive.model).train()
    wrapped = nn.parallel.DistributedDataParallel(towers) if ranks > 1 else towers
    share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    inputs = {
        "images": torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))[share],
        "tokens": contrastive.tokenizer([PAIRS.texts[text] for text in TEXT])[share],
    }
    rows = rows_of(IMAGE[share], TEXT[share], gather_rows(VALID[share]), share.start)
    tokens = (inputs["tokens"][:, 1:] != 0).sum().float()
    if ranks > 1:
        dist.all_reduce(tokens)
    losses = backward_of_batch(
        wrapped,
        inputs,
        micro,
        lambda image, text, scale: contrastive_loss(image, text, scale, rows, negatives),
        (lambda outputs: caption_loss(outputs["logits"], outputs["labels"], tokens / ranks, 0))
        if contrastive.captions
        else None,
        torch.Tensor.backward,
        wrapped.no_sync if ranks > 1 else lambda: None,
    )
    loss = sum(losses.values())
    if ranks > 1:
        dist.all_reduce(loss)
    found = {key: value.grad for key, value in towers.named_parameters() if value.grad is not None}
    return {**found, "loss": loss / ranks}


def write_gradients(rank: int, ranks: int, folder: Path) -> None:
    """Of every case, by rank 0, to a file each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", world_size=ranks, rank=rank)
    for number, case in enumerate(CASES):
        found = gradients(*case, rank, ranks)
        if rank == 0:
            torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()
