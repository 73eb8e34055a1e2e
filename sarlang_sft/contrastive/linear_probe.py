"""Linear probe: multinomial logistic regression on the frozen features of an image tower."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from open_clip.transformer import VisionTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from sarlang_sft.contrastive.class_folder import ClassFolder, few_shots
from sarlang_sft.contrastive.features import ImageFeatures, encode_images
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.recognition import Scored
from sarlang_sft.errors import InputError

STRENGTHS = (-6.0, 6.0)  # powers of ten of L2's weight, the range that CLIP searched
STEPS = 7  # in the first round, then each round halves the step
ROUNDS = 4  # to a quarter of a power of ten
HELD_OUT = 0.2
MOST_ITERATIONS = 1000
VAL_SHOTS = 4  # at most, as CoOp took (K. Zhou et al., IJCV 2022)


@contextmanager
def before_projection(model: ContrastiveModel) -> Iterator[None]:
    """Inside, the tower gives the features that the projection into the space of texts is applied to.

    That is so for open_clip's vision transformers; ResNets end with their pooling, and CLIP probed its output, too;
    other towers (timm's) keep their projection. Source: A. Radford et al., ICML 2021, appendix A.
    """
    visual = model.model.visual
    if not isinstance(visual, VisionTransformer):
        yield
        return
    projection, visual.proj = visual.proj, None
    try:
        yield
    finally:
        visual.proj = projection


def probe_features(model: ContrastiveModel, folder: ClassFolder, batch_size: int = 64) -> ImageFeatures:
    """What the tower makes of the images that can be read, (n, D) float32 before its projection, of any length."""
    with before_projection(model):
        return encode_images(model, folder.paths, batch_size, folder.root.name, normalize=False)


class Probe(NamedTuple):
    """A classifier of features, the weight of L2 it was fitted with, and how right that was on the held-out part."""

    classifier: LogisticRegression
    l2: float
    held_out_accuracy: float
    converged: bool


def fit(features: np.ndarray, labels: np.ndarray, l2: float) -> LogisticRegression:
    """The minimum of the summed cross-entropy plus `l2` / 2 times the squared weights (no penalty on the bias)."""
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # told by `Probe.converged`
        return LogisticRegression(C=1 / l2, max_iter=MOST_ITERATIONS).fit(features, labels)


def choose_l2(
    features: np.ndarray, labels: np.ndarray, held_out: np.ndarray, held_out_labels: np.ndarray
) -> tuple[float, float]:
    """The weight of L2 in 10^-6 ... 10^6 that is most often right on the held-out part, and how often that is.

    Seven powers of ten are tried, then the neighbours of the best at half the step, four times over; of equally good
    ones the strongest wins. Source: the search of A. Radford et al., ICML 2021, appendix A.3.
    """
    tried: dict[float, float] = {}
    step = (STRENGTHS[1] - STRENGTHS[0]) / (STEPS - 1)
    candidates = [STRENGTHS[0] + step * number for number in range(STEPS)]
    with tqdm(total=STEPS + 2 * ROUNDS, desc="weights of L2", unit=" fits") as bar:
        for _ in range(ROUNDS + 1):
            for power in candidates:
                if power not in tried and STRENGTHS[0] <= power <= STRENGTHS[1]:
                    tried[power] = float(fit(features, labels, 10**power).score(held_out, held_out_labels))
                bar.update()
            best = max(tried, key=lambda power: (tried[power], power))
            step /= 2
            candidates = [best - step, best + step]
    return 10**best, tried[best]


def fit_probe(features: np.ndarray, labels: np.ndarray, names: list[str], seed: int) -> Probe:
    """Choose L2 on a fifth of every class, then fit on all.

    Args:
        features: (n, D) of training images.
        labels: (n,) int64, rows of `names`.
        seed: Draws the fifth.

    Raises:
        InputError: A class has only one image.
    """
    rng = np.random.default_rng(seed)
    inside, outside = [], []
    for label, name in enumerate(names):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise InputError(f"--train: class {name} has {len(rows)} images that can be read; L2 needs 2 to be chosen")
        held = max(1, round(HELD_OUT * len(rows)))
        outside.append(rows[:held])
        inside.append(rows[held:])
    kept, held_out = np.concatenate(inside), np.concatenate(outside)
    l2, accuracy = choose_l2(features[kept], labels[kept], features[held_out], labels[held_out])
    return _probe(features, labels, l2, accuracy)


def fit_few_shots(features: np.ndarray, train: ClassFolder, shots: int, seed: int) -> Probe:
    """Fit on `shots` images of every class; L2 is chosen on as many others of it, at most four.

    Args:
        features: (n, D), of the images of `train`.

    Raises:
        InputError: A class has no image beyond the shots.
    """
    drawn, rest = few_shots(train, shots, seed)
    others = [rest[train.labels[rest] == label][: min(shots, VAL_SHOTS)] for label in range(len(train.names))]
    if empty := [name for name, rows in zip(train.names, others, strict=True) if not len(rows)]:
        raise InputError(f"--shots {shots}: class {empty[0]} has no further image in {train.root} to choose L2 on")
    held_out = np.concatenate(others)
    l2, accuracy = choose_l2(features[drawn], train.labels[drawn], features[held_out], train.labels[held_out])
    return _probe(features[drawn], train.labels[drawn], l2, accuracy)


def _probe(features: np.ndarray, labels: np.ndarray, l2: float, accuracy: float) -> Probe:
    classifier = fit(features, labels, l2)
    return Probe(classifier, l2, accuracy, bool((classifier.n_iter_ < MOST_ITERATIONS).all()))


def linear_probe(
    model: ContrastiveModel,
    train: ClassFolder,
    test: ClassFolder,
    shots: int | None,
    seeds: list[int],
    batch_size: int,
) -> tuple[list[Scored], dict[str, Any]]:
    """Probe a model: fitted on `train` alone, once per seed, and then scored on `test`.

    Returns:
        The scores of every seed, and by seed what was chosen: `l2`, `held_out_accuracy`, `converged`.
    """
    seen, unseen = probe_features(model, train, batch_size), probe_features(model, test, batch_size)
    readable = train.only(np.array(seen.rows))
    features, others = scaled(seen.features.numpy(), unseen.features.numpy())
    runs, chosen = [], {}
    for seed in seeds:
        probe = (
            fit_few_shots(features, readable, shots, seed)
            if shots is not None
            else fit_probe(features, readable.labels, train.names, seed)
        )
        scores = class_scores(probe.classifier, others)
        runs.append(Scored(scores, test.labels[unseen.rows], unseen.unreadable))
        chosen[str(seed)] = {
            "l2": probe.l2, "held_out_accuracy": probe.held_out_accuracy, "converged": probe.converged
        }  # fmt: skip
    told = {str(path): reason for path, reason in seen.unreadable.items()}
    return runs, {"chosen": chosen, "train_images": len(seen.rows), "train_unreadable": told}


def scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) less the mean of `train`, by the one number that makes their root mean square 1 there.

    So the range of L2 is as wide for towers whose features are of any length; the classifier that a weight of L2 gives
    is the one that another weight gives without, since the bias takes the mean.

    Raises:
        InputError: They are not all finite.
    """
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise InputError("the model's features are not all finite numbers; its weights are damaged")
    mean = train.mean(axis=0)
    spread = max(float(np.sqrt(np.square(train - mean).mean())), np.finfo(np.float32).tiny)
    return (train - mean) / spread, (test - mean) / spread


def class_scores(classifier: LogisticRegression, features: np.ndarray) -> np.ndarray:
    """(n, C) float: the log-odds of every class, for two classes, too."""
    found = classifier.decision_function(features)
    return np.stack([-found, found], axis=1) if found.ndim == 1 else found
