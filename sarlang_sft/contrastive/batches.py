"""The batches of a contrastive training: which pairs each epoch holds, in which order, and their tensors."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sarlang_sft.bad_images import note_bad_image
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.errors import InputError, UnreadableImageError

DRAWS = ("one", "all")


class Drawn(NamedTuple):
    """A pair of an epoch: rows of `Pairs.paths` and `Pairs.texts`, and what seeds its augmentation."""

    image: int
    text: int
    draw: tuple[int, int, int]


class EpochPairs(Dataset):
    """The pairs of every epoch in its order; accelerate calls `set_epoch` before each, in resumed runs too.

    Args:
        captions: one: a caption of every image, drawn anew each epoch; all: every pair.
    """

    def __init__(self, pairs: Pairs, captions: str, seed: int) -> None:
        self.pairs = pairs
        self.captions = captions
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw an epoch; the same one is drawn alike by every rank, worker and resumed run."""
        rng = np.random.default_rng([self.seed, epoch])
        chosen = self.pairs.one_per_image(rng) if self.captions == "one" else np.arange(len(self.pairs))
        self.epoch = epoch
        self.order = rng.permutation(chosen)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Drawn:
        pair = self.order[index]
        return Drawn(int(self.pairs.image[pair]), int(self.pairs.text[pair]), (self.seed, self.epoch, index))


class PairCollator:
    """Reads the images and texts of a batch.

    Args:
        out: Output folder of the run, in which unreadable images are counted over ranks, workers and resumes.
        most: How many of them may be left out.
    """

    def __init__(self, model: ContrastiveModel, pairs: Pairs, out: Path, most: int) -> None:
        self.pictures = model.pictures
        self.tokenizer = model.tokenizer
        self.paths = pairs.paths
        self.texts = pairs.texts
        self.out = out
        self.most = most

    def __call__(self, drawn: list[Drawn]) -> dict[str, Any]:
        """Tensors of (b, ...): `pixel_values`, `tokens`, `image`, `text` (rows of the pairs) and `valid`; `images`.

        The place of an unreadable image is taken by another one of the batch and marked as not valid: it counts
        neither as pair nor as negative, and batches stay equally long on all ranks.

        Raises:
            InputError: More than `most` images of the run cannot be read, or none of this batch.
        """
        read = [self._read(one) for one in drawn]
        valid = [picture is not None for picture in read]
        if not any(valid):
            raise InputError(
                f"none of {len(drawn)} images of a batch can be read, such as {self.paths[drawn[0].image]}; "
                "data_prep/validate.py finds them all"
            )
        other = read[valid.index(True)]
        return {
            "pixel_values": torch.stack([other if picture is None else picture for picture in read]),
            "tokens": self.tokenizer([self.texts[one.text] for one in drawn]),
            "image": torch.tensor([one.image for one in drawn]),
            "text": torch.tensor([one.text for one in drawn]),
            "valid": torch.tensor(valid),
            "images": [str(self.paths[one.image]) for one in drawn],
        }

    def _read(self, one: Drawn) -> torch.Tensor | None:
        try:
            return self.pictures.read(self.paths[one.image], np.random.default_rng(one.draw))
        except UnreadableImageError as error:
            note_bad_image(self.out, error, self.most)
            return None
