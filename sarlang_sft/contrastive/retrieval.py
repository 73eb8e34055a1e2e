"""Image-text retrieval: how far down the list the first true item is, and the figures that follow from it.

Two protocols, of which the same features give both:

- `official`, as SARVLM-1M (arXiv 2510.22665) is tested: the pairs are rows, image and text of the same row are the
  only truth. An image with five captions is five candidates, and a caption that is worded alike elsewhere is a miss.
- `all-positives`: every image and every text is one candidate, and all that are true count: a hit if any caption of
  the image, or any image of the caption, is among the first k.

Ties, in both: items as similar as the best true one are taken in random order, and a hit counts with its probability.
So a model that gives every image the same features scores what chance scores, never 100 %, and rows that are copies of
each other share their places: what a sorted list, in which they stand in any order, gives on average.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sarlang_sft.contrastive.features import encode_images, encode_texts
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.contrastive.results import Figure, show_figures, write_figures
from sarlang_sft.errors import InputError
from sarlang_sft.scoring.intervals import RESAMPLES, fraction_with_interval

TOP = (1, 5, 10)
BLOCK = 1024  # images, and texts, whose similarities are in memory at once
TIE = 1e-6  # cosines closer than this are equal: float32 products of equal features differ by less


class Encoded(NamedTuple):
    """Pairs whose images could be read, with their features.

    Attributes:
        pairs: The images and texts that are left.
        rows: Which of `pairs` are counted; the others only say what else is true.
        images: (images, D) float32 of length 1, by row of `pairs.paths`.
        texts: (texts, D) the same, by row of `pairs.texts`.
        unreadable: The reason by image, for those left out.
        left_out: How many pairs went with them.
    """

    pairs: Pairs
    rows: np.ndarray
    images: torch.Tensor
    texts: torch.Tensor
    unreadable: dict[Path, str]
    left_out: int


class Lists(NamedTuple):
    """What is looked for in what: every image among the texts, every text among the images.

    Attributes:
        images: (I,) rows of the image features, one per item of the list.
        texts: (T,) rows of the text features.
        true_image: (P,) item of `images` of every true pair; every image has one.
        true_text: (P,) item of `texts` of every true pair; every text has one.
        image_cluster: (I,) the image that an item goes up and down with, for intervals.
        text_cluster: (T,) the same for the texts.
    """

    images: np.ndarray
    texts: np.ndarray
    true_image: np.ndarray
    true_text: np.ndarray
    image_cluster: np.ndarray
    text_cluster: np.ndarray


class Ranks(NamedTuple):
    """Where the best true item is, for each of Q items that are looked for; int64 each.

    Attributes:
        above: (Q,) how many are more similar than the best true one.
        tied: (Q,) how many are as similar, true ones among them.
        true: (Q,) how many of those are true.
    """

    above: np.ndarray
    tied: np.ndarray
    true: np.ndarray


def official_lists(pairs: Pairs, rows: np.ndarray) -> Lists:
    """The pairs `rows` as two lists of the same length, true where the place is the same."""
    images, texts, place = pairs.image[rows], pairs.text[rows], np.arange(len(rows))
    return Lists(images, texts, place, place, images, images)


def all_positives_lists(pairs: Pairs, rows: np.ndarray) -> Lists:
    """Every image and every text of the pairs `rows` once; true is what is true in any of `pairs`.

    A text on several images goes up and down with the first.
    """
    images, texts = np.unique(pairs.image[rows]), np.unique(pairs.text[rows])
    known_image, known_text = np.divmod(pairs.known, len(pairs.texts))
    listed = np.isin(known_image, images) & np.isin(known_text, texts)
    first = np.unique(pairs.text[rows], return_index=True)[1]
    return Lists(
        images,
        texts,
        np.searchsorted(images, known_image[listed]),
        np.searchsorted(texts, known_text[listed]),
        images,
        pairs.image[rows][first],
    )


PROTOCOLS: dict[str, Callable[[Pairs, np.ndarray], Lists]] = {
    "all-positives": all_positives_lists,
    "official": official_lists,
}


def check_protocol(name: str) -> None:
    """Raise [`InputError`] unless there is a protocol of this name."""
    if name not in PROTOCOLS:
        raise InputError(f"--protocol {name}: must be {' or '.join(PROTOCOLS)}")


def draw_pairs(pairs: Pairs, sample: int | None = None, seed: int = 0) -> np.ndarray:
    """Rows of `pairs` in order: all of them, or `sample` drawn at random without replacement.

    Fewer candidates are easier: figures of a sample compare with those of samples of that size alone.

    Raises:
        InputError: There are fewer pairs than that.
    """
    if sample is None:
        return np.arange(len(pairs))
    if not 1 <= sample <= len(pairs):
        raise InputError(f"--sample {sample}: there are {len(pairs):,} pairs; give no more, and at least 1")
    return np.sort(np.random.default_rng(seed).choice(len(pairs), sample, replace=False))


def encode_pairs(model: ContrastiveModel, pairs: Pairs, rows: np.ndarray, batch_size: int) -> Encoded:
    """The features of the images and texts of the pairs `rows`; unreadable images take their pairs with them.

    Raises:
        InputError: None of the images can be read.
    """
    pairs, rows = pairs.among(rows)
    found = encode_images(model, pairs.paths, batch_size)
    readable = np.isin(pairs.image[rows], found.rows)
    pairs, left = pairs.among(rows[readable])
    texts = encode_texts(model, pairs.texts)
    return Encoded(pairs, left, found.features, texts, found.unreadable, int((~readable).sum()))


def rank(
    images: torch.Tensor, texts: torch.Tensor, lists: Lists, block: int = BLOCK, progress: bool = True
) -> tuple[Ranks, Ranks]:
    """The ranks of the best true item, of images among texts and of texts among images.

    Nothing is sorted: it is counted how many beat the best true item, block by block of the similarity matrix, of
    which never more than `block` x `block` values are in memory.

    Args:
        images: (images, D) float32 of length 1, on the CPU; so are the texts.

    Raises:
        InputError: A feature is not finite.
    """
    for what, features in (("images", images), ("texts", texts)):
        if not torch.isfinite(features.sum()):
            raise InputError(f"the features of the {what} are not all finite: the model's weights are broken")
    pair_similarity = _similarity_of_pairs(images, texts, lists, block)
    best = [
        _best(pair_similarity, place, length)
        for place, length in ((lists.true_image, len(lists.images)), (lists.true_text, len(lists.texts)))
    ]
    true = [
        np.bincount(place[pair_similarity >= of_best[place] - TIE], minlength=len(of_best))
        for place, of_best in zip((lists.true_image, lists.true_text), best, strict=True)
    ]
    above = [np.zeros(len(of_best), np.int64) for of_best in best]
    reached = [np.zeros(len(of_best), np.int64) for of_best in best]
    for start in tqdm(range(0, len(lists.images), block), desc="ranking", unit=" blocks", disable=not progress):
        down = slice(start, start + block)
        some_images = images[lists.images[down]]
        for begin in range(0, len(lists.texts), block):
            right = slice(begin, begin + block)
            similarity = (some_images @ texts[lists.texts[right]].T).numpy()
            for side, part, of_best in ((0, down, best[0][down, None]), (1, right, best[1][right])):
                above[side][part] += np.count_nonzero(similarity > of_best + TIE, axis=1 - side)
                reached[side][part] += np.count_nonzero(similarity >= of_best - TIE, axis=1 - side)
    # The similarity of a true pair may round differently within a block: the true ones are tied in any case.
    i2t, t2i = (
        Ranks(one_above, np.maximum(one_reached - one_above, one_true), one_true)
        for one_above, one_reached, one_true in zip(above, reached, true, strict=True)
    )
    return i2t, t2i


def _similarity_of_pairs(images: torch.Tensor, texts: torch.Tensor, lists: Lists, block: int) -> np.ndarray:
    """(P,) float32: the cosine of every true pair."""
    found = np.empty(len(lists.true_image), np.float32)
    for start in range(0, len(found), block):
        some = slice(start, start + block)
        left, right = images[lists.images[lists.true_image[some]]], texts[lists.texts[lists.true_text[some]]]
        found[some] = torch.linalg.vecdot(left, right).numpy()
    return found


def _best(similarity: np.ndarray, place: np.ndarray, length: int) -> np.ndarray:
    """(length,) float32: the largest similarity at each place."""
    best = np.full(length, -np.inf, np.float32)
    np.maximum.at(best, place, similarity)
    return best


def hits(ranks: Ranks, top: int) -> np.ndarray:
    """(Q,) float64: the probability that a true item is among the first `top`, with tied items in random order.

    Of the places that are left for tied items, `true` of `tied` are drawn without replacement (hypergeometric).
    """
    places = np.clip(top - ranks.above, 0, ranks.tied)
    missed = np.ones(len(ranks.above))
    for drawn in range(top):
        left = ranks.tied - drawn
        share = np.maximum(left - ranks.true, 0) / np.maximum(left, 1)
        missed *= np.where(drawn < places, share, 1)
    return 1 - missed


def recalls(i2t: Ranks, t2i: Ranks, lists: Lists, seed: int = 0) -> dict[str, Figure]:
    """MeanRecall, the mean of the six, and the six: R@1, R@5 and R@10 of both directions.

    Intervals (95 %) are Wilson's for the six, as if items that are looked for were independent, and a bootstrap over
    images for MeanRecall, in which an image takes its texts with it.
    """
    found = {"I2T": [hits(i2t, top) for top in TOP], "T2I": [hits(t2i, top) for top in TOP]}
    six = {
        f"{name} R@{top}": fraction_with_interval(float(hit.sum()), len(hit))
        for name, of_name in found.items()
        for top, hit in zip(TOP, of_name, strict=True)
    }
    clusters = (lists.image_cluster, lists.text_cluster)
    means = [np.mean(of_name, axis=0) for of_name in found.values()]
    return {"MeanRecall": _mean_of_two(means, clusters, seed), **six}


def _mean_of_two(means: list[np.ndarray], clusters: tuple[np.ndarray, np.ndarray], seed: int) -> dict[str, float]:
    """The mean of the means of two groups, and its interval when whole clusters are drawn with replacement."""
    numbers = np.unique(np.concatenate(clusters), return_inverse=True)[1]
    count = numbers.max() + 1
    sums = np.zeros((count, 4))
    for side, number in enumerate(np.split(numbers, [len(clusters[0])])):
        sums[:, side] = np.bincount(number, means[side], count)
        sums[:, 2 + side] = np.bincount(number, minlength=count)
    random = np.random.default_rng(seed)
    drawn = np.stack(
        [np.bincount(random.integers(count, size=count), minlength=count) @ sums for _ in range(RESAMPLES)]
    )
    drawn = drawn[(drawn[:, 2:] > 0).all(1)]
    low, high = np.percentile((drawn[:, :2] / drawn[:, 2:]).mean(1), [2.5, 97.5])
    return {"value": float(np.mean([one.mean() for one in means])), "low": float(low), "high": float(high)}


def chance(lists: Lists) -> dict[str, float]:
    """The same figures of a list in random order."""
    six = {}
    for name, place, others in (("I2T", lists.true_image, lists.texts), ("T2I", lists.true_text, lists.images)):
        true = np.bincount(place)
        drawn = Ranks(np.zeros_like(true), np.full_like(true, len(others)), true)
        six |= {f"{name} R@{top}": float(hits(drawn, top).mean()) for top in TOP}
    return {"MeanRecall": float(np.mean(list(six.values()))), **six}


def score_retrieval(encoded: Encoded, protocol: str) -> dict[str, Any]:
    """The figures of a protocol, those of chance, and how many items are looked for: `images` and `texts`."""
    lists = PROTOCOLS[protocol](encoded.pairs, encoded.rows)
    return {
        "protocol": protocol,
        "figures": recalls(*rank(encoded.images, encoded.texts, lists), lists),
        "chance": chance(lists),
        "images": len(lists.images),
        "texts": len(lists.texts),
    }


def write_retrieval(
    out: Path, model: str, protocol: str, encoded: Encoded, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the figures of both protocols with [`write_figures`]; `protocol` stands first, the other is `beside`.

    Args:
        options: Of the run, kept as they are.

    Returns:
        What was written.
    """
    scores = {name: score_retrieval(encoded, name) for name in PROTOCOLS}
    first = scores.pop(protocol)
    (beside,) = scores.values()
    more = {
        **{name: first[name] for name in ("chance", "images", "texts")},
        "pairs_left_out": encoded.left_out,
        "beside": beside,
        "options": dict(options),
    }
    return write_figures(
        out, "retrieval", protocol, model, len(encoded.rows), encoded.unreadable, first["figures"], more
    )


def show_retrieval(content: Mapping[str, Any]) -> str:
    """What eval/retrieval.py has written, as lines of text: both protocols, and out of how many."""
    lines = []
    for part in (content, content["beside"]):
        lines.append(show_figures({**content, **part, "unreadable": {}}))
        lines.append(f"  I2T of {part['images']:,} images among {part['texts']:,} texts, T2I the other way round")
        lines.append(f"  by chance: MeanRecall {100 * part['chance']['MeanRecall']:.2f}")
    if unreadable := content["unreadable"]:
        path, reason = next(iter(unreadable.items()))
        lines.append(
            f"excluded: {len(unreadable):,} unreadable images with {content['pairs_left_out']:,} of "
            f"{content['n'] + content['pairs_left_out']:,} pairs, such as {path} ({reason})"
        )
    return "\n".join(lines)
