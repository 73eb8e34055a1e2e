"""The sets that an ensemble is measured on: zero-shot class folders, and retrieval on splits of data folders.

Each is a table of images x candidates (classes, or captions) with the scores that a model gives, and one figure.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from sarlang_sft.contrastive.class_folder import read_class_folder
from sarlang_sft.contrastive.features import encode_images, encode_texts
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.pairs import read_pairs
from sarlang_sft.contrastive.results import Figure
from sarlang_sft.contrastive.retrieval import TIE, TOP, Ranks, hits
from sarlang_sft.contrastive.zero_shot import read_templates
from sarlang_sft.errors import InputError, nearest
from sarlang_sft.scoring.intervals import ratio_with_interval, share_with_interval
from sarlang_sft.splits import SPLIT_NAMES

TEMPLATES = "sar"
CHOOSING_SPLIT = "val"
FORM = "NAME=KIND:PATH, such as mstar=zero_shot:MSTAR/val or sarlang=retrieval:data/sarlang@val"


@dataclass(frozen=True)
class MeasuredSet:
    """Images, and the texts that are told apart on them.

    Attributes:
        name: As the user calls it.
        kind: A key of `KINDS`.
        path: Folder it was read from.
        split: train, val or test; None where nothing tells.
        images: Files, length I.
        candidates: Texts of every class or caption, length C; a class has one text for every template.
        truth: (I, C) bool: what is true of which image.
        left_out: The reason by file, for those that are no images of the set.
    """

    name: str
    kind: str
    path: Path
    split: str | None
    images: list[Path]
    candidates: list[list[str]]
    truth: torch.Tensor
    left_out: dict[Path, str]


class Scores(NamedTuple):
    """What a model says of the images that it could read.

    Attributes:
        scores: (rows, C) float32: probabilities of classes, or cosines of captions.
        rows: Which of the set's images they are of, in order.
        unreadable: The reason by image, for the others.
    """

    scores: torch.Tensor
    rows: list[int]
    unreadable: dict[Path, str]


class Kind(NamedTuple):
    """One kind of set: how it is read, and how cosines become scores, and scores the figure."""

    read: Callable[[str, Path, str | None], MeasuredSet]
    score: Callable[[torch.Tensor, float], torch.Tensor]
    figure: Callable[[torch.Tensor, torch.Tensor], Figure]
    says: str


def read_set(text: str) -> MeasuredSet:
    """A set from `NAME=KIND:PATH`; a data folder may have `@SPLIT` behind it (default: val).

    Raises:
        InputError: The text is of another form, or the set cannot be read.
    """
    name, _, rest = text.partition("=")
    kind, _, place = rest.partition(":")
    if not (re.fullmatch(r"[\w.+-]+", name) and kind and place):
        raise InputError(f"set {text}: must be {FORM}")
    if kind not in KINDS:
        way_out = nearest(kind, KINDS, f"there are {' and '.join(KINDS)}")
        raise InputError(f"set {text}: no kind {kind}; {way_out}")
    folder, at, split = place.rpartition("@")
    if not at or split not in SPLIT_NAMES.values():
        folder, split = place, None
    if not Path(folder).is_dir():
        raise InputError(f"set {text}: no folder {folder}")
    return KINDS[kind].read(name, Path(folder), split)


def read_sets(texts: Sequence[str]) -> list[MeasuredSet]:
    """Sets with different names; raises [`InputError`] as [`read_set`] does, and if two share a name."""
    names = [text.partition("=")[0] for text in texts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"set {twice[0]}: two sets have this name; give each its own")
    return [read_set(text) for text in texts]


def read_classes(name: str, folder: Path, split: str | None) -> MeasuredSet:
    """A class folder; the split is what the folder is called, unless it is given."""
    found = read_class_folder(folder, option=f"set {name}:")
    candidates = [[template.format(spoken) for template in read_templates(TEMPLATES)] for spoken in found.spoken]
    truth = functional.one_hot(torch.from_numpy(found.labels), len(found.names)).bool()
    split = split or SPLIT_NAMES.get(folder.name.lower())
    return MeasuredSet(name, "zero_shot", folder, split, found.paths, candidates, truth, found.left_out)


def read_captions(name: str, folder: Path, split: str | None) -> MeasuredSet:
    """The images and captions of a split of a data folder; equal captions are one, true of all their images."""
    split = split or CHOOSING_SPLIT
    pairs = read_pairs(folder, split)
    truth = pairs.true_of(np.arange(len(pairs.paths)), np.arange(len(pairs.texts)))
    return MeasuredSet(
        name, "retrieval", folder, split, pairs.paths, [[text] for text in pairs.texts], torch.from_numpy(truth), {}
    )


def score_sets(model: ContrastiveModel, sets: Sequence[MeasuredSet]) -> dict[str, Scores]:
    """The scores of a model on every set; an image is read and encoded once, however many sets it is in.

    Raises:
        InputError: None of the images of a set can be read.
    """
    images = list(dict.fromkeys(path for one in sets for path in one.images))
    texts = list(dict.fromkeys(text for one in sets for texts in one.candidates for text in texts))
    seen = encode_images(model, images)
    row_of = {images[row]: place for place, row in enumerate(seen.rows)}
    words = encode_texts(model, texts)
    text_row = {text: row for row, text in enumerate(texts)}
    scale = model.model.logit_scale.exp().item()
    scored = {}
    for one in sets:
        rows = [row for row, path in enumerate(one.images) if path in row_of]
        unreadable = {path: seen.unreadable[path] for path in one.images if path not in row_of}
        if not rows:
            path, reason = next(iter(unreadable.items()))
            raise InputError(f"set {one.name}: none of its images can be read, such as {path} ({reason})")
        candidates = torch.stack([words[[text_row[text] for text in texts]].mean(0) for texts in one.candidates])
        pictures = seen.features[[row_of[one.images[row]] for row in rows]]
        cosines = pictures @ functional.normalize(candidates, dim=-1).T
        scored[one.name] = Scores(KINDS[one.kind].score(cosines, scale), rows, unreadable)
    return scored


def figure_of(measured: MeasuredSet, scores: Scores) -> Figure:
    """`{value, low, high}` in 0-1, of the images that could be read."""
    return KINDS[measured.kind].figure(scores.scores, measured.truth[scores.rows])


def mean_of_scores(several: Sequence[Scores]) -> Scores:
    """The ensemble of predictions: the mean of what models say, on the images that all of them could read."""
    shared = set.intersection(*(set(one.rows) for one in several))
    if not shared:
        raise InputError("average_predictions_of: no image can be read by all of the models")
    taken = [one.scores[[place for place, row in enumerate(one.rows) if row in shared]] for one in several]
    unreadable = {path: reason for one in several for path, reason in one.unreadable.items()}
    return Scores(torch.stack(taken).mean(0), sorted(shared), unreadable)


def probabilities(cosines: torch.Tensor, scale: float) -> torch.Tensor:
    """Of the classes, by the model's own temperature; so a sure model has more say in a mean than an unsure one."""
    return (scale * cosines).softmax(-1)


def top_1(scores: torch.Tensor, truth: torch.Tensor) -> Figure:
    """The share of images whose own class scores highest, with Wilson's interval."""
    return share_with_interval(truth[torch.arange(len(truth)), scores.argmax(1)].tolist())


def mean_recall(scores: torch.Tensor, truth: torch.Tensor) -> Figure:
    """MeanRecall of eval/retrieval.py, protocol all-positives, with its treatment of ties.

    Captions of unreadable images are left out. The interval is a bootstrap over images; a caption belongs to the first
    of its images.

    Args:
        scores: (I, T) float32, held as a whole.
        truth: (I, T) bool.
    """
    kept = truth.any(0)
    scores, truth = scores[:, kept], truth[:, kept]
    images, texts = truth.shape
    found = [recalls(scores, truth) / (2 * images), recalls(scores.T, truth.T) / (2 * texts)]
    wholes = np.repeat([1 / (2 * images), 1 / (2 * texts)], [images, texts])
    owners = [*range(images), *truth.int().argmax(0).tolist()]
    return ratio_with_interval(np.concatenate(found), wholes, owners)


def recalls(scores: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """Of every query (a row), the mean of its hits among the first 1, 5 and 10."""
    best = scores.masked_fill(~truth, -torch.inf).amax(1, keepdim=True)
    reached = scores >= best - TIE
    above = scores > best + TIE
    ranks = Ranks(*(of.sum(1).numpy() for of in (above, reached & ~above, reached & truth)))
    return np.mean([hits(ranks, top) for top in TOP], axis=0)


KINDS = {
    "zero_shot": Kind(read_classes, probabilities, top_1, "zero-shot top-1"),
    "retrieval": Kind(read_captions, lambda cosines, _: cosines, mean_recall, "mean recall"),
}
