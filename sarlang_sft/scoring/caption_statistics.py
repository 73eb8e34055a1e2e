"""What captions look like beside their references: empty ones, lengths, loops, and a model that repeats itself."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sarlang_sft.scoring.predictions import Row

LOOP = 3  # times in direct succession
LONGEST_PERIOD = 12  # words
LONGEST_NGRAM = 4
SHOWN = 300  # characters of the most frequent caption
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")


def caption_statistics(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of captions, and the same shares of predictions and of their references.

    Args:
        rows: One per caption, with its prediction and one reference, so that both are as many.

    Returns:
        `captions`; `missing` (no prediction); `empty` (a prediction without a word); `different` predictions among
        those with words and the `most_frequent` with its share of them; `predictions` and `references`: [`describe`].
    """
    predicted = [row.predict for row in rows if row.predict is not None]
    spoken = [text for text in predicted if _WORD.search(text)]
    repeated = Counter(" ".join(text.split()) for text in spoken).most_common()
    most_frequent = {"text": repeated[0][0][:SHOWN], "captions": repeated[0][1]} if repeated else None
    return {
        "captions": len(rows),
        "missing": len(rows) - len(predicted),
        "empty": len(predicted) - len(spoken),
        "different": len(repeated),
        "most_frequent": most_frequent and {**most_frequent, "share": most_frequent["captions"] / len(spoken)},
        "predictions": describe(spoken),
        "references": describe([row.label for row in rows if _WORD.search(row.label)]),
    }


def describe(texts: Sequence[str]) -> dict[str, Any] | None:
    """How long and how varied texts are; None if there are none.

    Args:
        texts: Each with a word.

    Returns:
        `words`: mean, median and 95th percentile of the length; `loops`: the share of texts in which up to
        `LONGEST_PERIOD` words come `LOOP` times in direct succession; `unfinished`: the share that does not end with
        a sentence, as texts that were cut off; `distinct`: for n = 1..4 the different n-grams of all texts over all
        n-grams (Li et al., "A diversity-promoting objective function", NAACL 2016), smaller the more texts there are.
    """
    if not texts:
        return None
    words = list(map(words_of, texts))
    lengths = [len(one) for one in words]
    return {
        "words": {
            "mean": float(np.mean(lengths)),
            "median": float(np.median(lengths)),
            "p95": float(np.percentile(lengths, 95)),
        },
        "loops": sum(map(is_loop, words)) / len(texts),
        "unfinished": sum(not _END.search(text.rstrip()) for text in texts) / len(texts),
        "distinct": {str(n): distinct_ngrams(words, n) for n in range(1, LONGEST_NGRAM + 1)},
    }


def is_loop(words: Sequence[str]) -> bool:
    """Whether some up to `LONGEST_PERIOD` words come `LOOP` times in direct succession."""
    for period in range(1, min(LONGEST_PERIOD, len(words) // LOOP) + 1):
        same = 0
        for one, later in zip(words, words[period:], strict=False):
            same = same + 1 if one == later else 0
            if same == period * (LOOP - 1):
                return True
    return False


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def distinct_ngrams(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams of all texts, given as words, over all n-grams; None if no text is that long."""
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None
