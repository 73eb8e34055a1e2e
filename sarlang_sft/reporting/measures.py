"""What answers are like beyond right and wrong: what is taken for what, how long they are, how sure the model was."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sarlang_sft.reporting.charts import REFERENCE, Chart, Column, Series
from sarlang_sft.reporting.given import Run
from sarlang_sft.scoring.exact import position_words, predicted_count, question_type, things_named
from sarlang_sft.scoring.intervals import share_with_interval
from sarlang_sft.scoring.predictions import Row

MOST_LABELS = 12
MOST_COUNTED = 10
READING_ORDER = ("top", "center", "bottom", "left", "right")
OTHER, NOTHING = "other", "no answer"
BINS = 10


class Matrix(NamedTuple):
    """What was answered (`columns`) where the truth is one of `labels`: `counts` (labels, columns) of questions."""

    labels: list[str]
    columns: list[str]
    counts: list[list[int]]


class Confusion(NamedTuple):
    """Of one task: a matrix per run, and the questions left out: truths of several things, or of rarer ones."""

    title: str
    matrices: dict[str, Matrix]
    several: int
    rarer: int


def one_thing(text: str) -> str | None:
    """The one thing that an answer names, evened out; None if it names none or several."""
    named = things_named(text)
    return next(iter(named)) if len(named) == 1 else None


def counted(text: str) -> str | None:
    """The whole number that an answer gives, up to ten and more; None if it gives none."""
    number = predicted_count(text)
    if number is None or not number.isdigit():
        return None
    return number if len(number) < len(str(MOST_COUNTED)) else f"{MOST_COUNTED}+"


def placed(text: str) -> str | None:
    """The position that an answer gives, its words in one order; None if it gives none."""
    return " ".join(sorted(position_words(text), key=_place_of)) or None


def _place_of(word: str) -> tuple[int, str]:
    return (READING_ORDER.index(word) if word in READING_ORDER else -1, word)


Reading = Callable[[str], str | None]
MATRICES: list[tuple[str, Callable[[Row], bool], Reading]] = [
    ("Classes: region referring", lambda row: row.task == "referring", one_thing),
    ("Classes: classification", lambda row: row.task == "classification", one_thing),
    ("Classes: cross-identification", lambda row: row.task == "cross_identification", one_thing),
    ("Counts", lambda row: question_type(row.label) == "count", counted),
    ("Positions", lambda row: question_type(row.label) == "position", placed),
    ("Yes and no", lambda row: question_type(row.label) == "yes_no", one_thing),
]


def confusions(runs: Sequence[Run]) -> list[Confusion]:
    """A matrix per run of the questions whose answers name one thing; at most the `MOST_LABELS` most frequent truths.

    What the protocol `exact` finds right is on the diagonal, and nothing else.
    """
    found = []
    for title, belongs, read in MATRICES:
        truths = {place: read(row.label) for place, row in enumerate(runs[0].questions) if belongs(row)}
        frequent = Counter(truth for truth in truths.values() if truth is not None)
        labels = [label for label, _ in frequent.most_common(MOST_LABELS)]
        if len(labels) < 2:
            continue
        if read is counted:
            labels.sort(key=lambda label: int(label.rstrip("+")))
        elif read is placed:
            labels.sort(key=lambda label: [_place_of(word) for word in label.split()])
        matrices = {run.name: _matrix(run, truths, labels, read) for run in runs}
        several = sum(truth is None for truth in truths.values())
        rarer = sum(frequent.values()) - sum(frequent[label] for label in labels)
        found.append(Confusion(title, matrices, several, rarer))
    return found


def _matrix(run: Run, truths: dict[int, str | None], labels: list[str], read: Reading) -> Matrix:
    columns = [*labels, OTHER, NOTHING]
    counts = np.zeros((len(labels), len(columns)), dtype=int)
    for place, truth in truths.items():
        if truth in labels:
            predict = run.questions[place].predict
            said = NOTHING if predict is None else truth if run.right[place] else read(predict)
            known = said in columns and (said != truth or run.right[place])
            counts[labels.index(truth), columns.index(said if known else OTHER)] += 1
    kept = [number for number, column in enumerate(columns) if column in labels or counts[:, number].any()]
    return Matrix(labels, [columns[number] for number in kept], counts[:, kept].tolist())


class Lengths(NamedTuple):
    """Words of some texts: mean, median and most; how many texts there are, are empty, and differ from each other."""

    name: str
    texts: int
    mean: float
    median: float
    longest: int
    empty: int
    distinct: int


def measure_lengths(name: str, texts: Sequence[str]) -> Lengths:
    """The lengths of at least one text."""
    words = [len(text.split()) for text in texts]
    empty = sum(not text.strip() for text in texts)
    return Lengths(
        name, len(texts), float(np.mean(words)), float(np.median(words)), max(words), empty, len(set(texts))
    )


def length_chart(title: str, truths: Sequence[str], runs: dict[str, tuple[int, list[str]]]) -> Chart:
    """The share of texts by their number of words, of the truth and of every run (its style and texts).

    Lengths beyond those of 99 % of all texts are drawn as one.
    """
    words = {name: [len(text.split()) for text in texts] for name, (_, texts) in runs.items()}
    true = [len(text.split()) for text in truths]
    last = max(3, int(np.percentile(sum(words.values(), true), 99)))
    series = [
        Series(name, style, _shares(lengths, last), dashed=style == REFERENCE)
        for name, style, lengths in [*((n, runs[n][0], words[n]) for n in runs), ("truth", REFERENCE, true)]
    ]
    means = "; ".join(
        f"{name}: {np.mean(lengths):.1f} words on average" for name, lengths in {"truth": true, **words}.items()
    )
    highest = max(y for one in series for _, y in one.points)
    about = f"{title}: share of texts by their number of words, {last} and more as one. {means}."
    return Chart(
        title,
        about,
        f"words ({last}: or more)",
        "share of texts",
        (0.0, last),
        (0.0, highest * 1.05),
        series,
        True,
        whole=True,
    )


def _shares(lengths: Sequence[int], last: int) -> list[tuple[float, float]]:
    counts = Counter(min(length, last) for length in lengths)
    return [(float(length), counts[length] / max(len(lengths), 1)) for length in range(last + 1)]


class Bin(NamedTuple):
    """Answers of similar confidence, the `place`-th tenth: its mean, how many of the `n` are right, with interval."""

    place: int
    confidence: float
    n: int
    right: float
    low: float
    high: float


class Calibration(NamedTuple):
    """Of one run: the expected calibration error, bins that hold answers, answers without a usable `logprob`."""

    ece: float
    bins: list[Bin]
    without: int


def confidence(row: Row) -> float | None:
    """The probability that the model gave to its whole answer, `exp(logprob)`; None where it is not known."""
    known = isinstance(row.logprob, int | float) and row.logprob <= 0  # false of NaN, too
    return math.exp(row.logprob) if known else None


def calibrate(run: Run) -> Calibration | None:
    """How often answers are right by how sure the model was; None if no answer has a usable `logprob`.

    Confidence is cut into ten bins of equal width; the expected calibration error is the mean distance of confidence
    and accuracy, weighted by answers.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    sure = [(confidence(row), right) for row, right in zip(run.questions, run.right, strict=True)]
    known = [(value, right) for value, right in sure if value is not None]
    if not known:
        return None
    members: dict[int, list[tuple[float, bool]]] = {}
    for value, right in known:
        members.setdefault(min(int(value * BINS), BINS - 1), []).append((value, right))
    bins = []
    for place, group in sorted(members.items()):
        share = share_with_interval([right for _, right in group])
        mean = sum(value for value, _ in group) / len(group)
        bins.append(Bin(place, mean, len(group), share["value"], share["low"], share["high"]))
    ece = sum(one.n * abs(one.right - one.confidence) for one in bins) / len(known)
    return Calibration(ece, bins, run.answered - len(known))


def calibration_chart(name: str, style: int, calibration: Calibration) -> Chart:
    """The reliability diagram of a run."""
    bins = calibration.bins
    series = [
        Series("perfect", REFERENCE, [(0.0, 0.0), (1.0, 1.0)], dashed=True),
        Series(name, style, [(one.confidence, one.right) for one in bins], [(one.low, one.high) for one in bins]),
    ]
    said = "; ".join(f"at {one.confidence:.2f} right {100 * one.right:.0f} % of {one.n}" for one in bins)
    about = f"Accuracy by confidence of {name}: {said}."
    most = max(one.n for one in bins)
    columns = [Column(one.place / BINS, (one.place + 1) / BINS, one.n, one.n / most) for one in bins]
    return Chart(
        name,
        about,
        "confidence",
        "share of answers that are right",
        (0.0, 1.0),
        (0.0, 1.0),
        series,
        True,
        columns=columns,
    )
