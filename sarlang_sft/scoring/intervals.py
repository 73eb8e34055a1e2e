"""How sure a score is: 95% intervals for shares and for means over images."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import binomtest, norm

RESAMPLES = 1000


def share_with_interval(correct: Sequence[bool]) -> dict[str, float]:
    """The share of true entries and its 95% Wilson score interval, as `{value, low, high}` in 0..1.

    Questions count as independent; questions about one image are not quite, so the true interval is a little wider.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    hits = int(sum(correct))
    interval = binomtest(hits, len(correct)).proportion_ci(confidence_level=0.95, method="wilson")
    return {"value": hits / len(correct), "low": float(interval.low), "high": float(interval.high)}


def fraction_with_interval(hits: float, of: int) -> dict[str, float]:
    """[`share_with_interval`] where a hit may count in part, as with its probability.

    Args:
        hits: Their sum, from 0 to `of`.
    """
    share, quantile = hits / of, norm.ppf(0.975)
    shrink = 1 + quantile**2 / of
    centre = share + quantile**2 / (2 * of)
    reach = quantile * np.sqrt(share * (1 - share) / of + quantile**2 / (4 * of**2))
    low, high = max(0.0, (centre - reach) / shrink), min(1.0, (centre + reach) / shrink)
    return {"value": share, "low": float(low), "high": float(high)}


def mean_with_interval(scores: Sequence[float], images: Sequence[Hashable], seed: int = 0) -> dict[str, float]:
    """The mean of `scores` and its 95% bootstrap interval over images, as `{value, low, high}` in the scores' unit.

    Whole images are drawn with replacement, because the scores of one image go up and down together.

    Args:
        scores: One per caption, shape (captions,).
        images: The image of every caption, same length.
        seed: Of the draws; the same scores give the same interval.
    """
    return ratio_with_interval(scores, np.ones(len(scores)), images, seed)


def ratio_with_interval(
    parts: Sequence[float], wholes: Sequence[float], images: Sequence[Hashable], seed: int = 0
) -> dict[str, float]:
    """The sum of `parts` over the sum of `wholes` and its 95% bootstrap interval over images, as `{value, low, high}`.

    Args:
        parts: One per question, shape (questions,).
        wholes: Same shape; their sum is above 0.
        images: The image of every question, same length.
        seed: Of the draws; the same figures give the same interval.
    """
    number = {image: index for index, image in enumerate(dict.fromkeys(images))}
    image_of = [number[image] for image in images]
    above, below = np.bincount(image_of, weights=parts), np.bincount(image_of, weights=wholes)
    random = np.random.default_rng(seed)
    draws = (random.integers(len(above), size=len(above)) for _ in range(RESAMPLES))
    ratios = [above[draw].sum() / below[draw].sum() for draw in draws if below[draw].any()]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {"value": float(above.sum() / below.sum()), "low": float(low), "high": float(high)}
