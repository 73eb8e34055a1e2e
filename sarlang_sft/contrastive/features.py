"""Images and texts to unit vectors; unreadable images are told, never zeros."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.errors import InputError, UnreadableImageError

TEXTS_AT_ONCE = 1024
READERS = 8  # threads; decoders and resizing leave the interpreter free


class ImageFeatures(NamedTuple):
    """Features of the images that could be read.

    Attributes:
        features: (n, D) float32 on the CPU, of length 1 unless asked otherwise.
        rows: Which of the given images they are of, in order; length n.
        unreadable: The reason by image, for those left out.
    """

    features: torch.Tensor
    rows: list[int]
    unreadable: dict[Path, str]


def encode_images(
    model: ContrastiveModel,
    paths: Sequence[Path],
    batch_size: int = 64,
    what: str = "images",
    normalize: bool = True,
) -> ImageFeatures:
    """The features of image files, in order.

    Args:
        normalize: Whether to make them of length 1.

    Raises:
        InputError: None of them can be read.
    """
    kept: list[torch.Tensor] = []
    rows: list[int] = []
    unreadable: dict[Path, str] = {}
    for row, picture in read_pictures(model, paths, batch_size, unreadable, what):
        rows += row
        with torch.inference_mode():
            kept.append(model.model.encode_image(picture.to(model.device), normalize=normalize).float().cpu())
    if not rows:
        shown = next(iter(unreadable.items()), None)
        raise InputError(
            f"{what}: none of {len(paths)} can be read{f', such as {shown[0]} ({shown[1]})' * bool(shown)}"
        )
    return ImageFeatures(torch.cat(kept), rows, unreadable)


def read_pictures(
    model: ContrastiveModel,
    paths: Sequence[Path],
    batch_size: int,
    unreadable: dict[Path, str],
    what: str,
    seed: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of those that can be read: their rows, and (n, 3, H, W) float32; the others go into `unreadable`.

    Args:
        seed: With it the model's augmenting operations are applied, drawn for every place in `paths` by itself.
    """

    def read(row: int) -> torch.Tensor | str:
        try:
            return model.read(paths[row], None if seed is None else np.random.default_rng([*seed, row]))
        except UnreadableImageError as error:
            return error.reason

    with ThreadPoolExecutor(READERS) as pool, tqdm(total=len(paths), desc=what, unit=" images") as bar:
        everything = range(len(paths))
        ahead = pool.map(read, everything[:batch_size])
        for start in range(0, len(paths), batch_size):
            batch, ahead = list(ahead), pool.map(read, everything[start + batch_size : start + 2 * batch_size])
            unreadable |= {paths[start + at]: one for at, one in enumerate(batch) if isinstance(one, str)}
            rows = [start + at for at, one in enumerate(batch) if not isinstance(one, str)]
            if rows:
                yield rows, torch.stack([one for one in batch if not isinstance(one, str)])
            bar.update(len(batch))


def tell_cut_texts(model: ContrastiveModel, texts: Sequence[str], what: str) -> int:
    """Print how many texts are longer than the model reads, if any; their ends are neither learned nor compared."""
    longest = model.tokenizer.context_length
    cut = 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        full = model.tokenizer(some)[:, -1] != 0
        cut += sum(
            len(model.tokenizer.encode(text)) > longest - 2
            for text, is_full in zip(some, full, strict=True)
            if is_full
        )
    if cut:
        print(f"{what}: {cut:,} of {len(texts):,} different texts are cut at the model's {longest} tokens", flush=True)
    return cut


def encode_texts(model: ContrastiveModel, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
    """(n, D) float32 on the CPU, of length 1; equal texts are encoded once."""
    different = list(dict.fromkeys(texts))
    tell_cut_texts(model, different, "texts")
    parts = []
    for start in tqdm(range(0, len(different), batch_size), desc="texts", unit=" batches"):
        tokens = model.tokenizer(different[start : start + batch_size]).to(model.device)
        with torch.inference_mode():
            parts.append(model.model.encode_text(tokens, normalize=True).float().cpu())
    place = {text: row for row, text in enumerate(different)}
    return torch.cat(parts)[[place[text] for text in texts]]
