"""How varied captions are: n-grams that differ, and how much each caption is like the others."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocoevalcap.bleu import bleu_scorer

from sarlang_sft.scoring.caption_statistics import LONGEST_NGRAM, distinct_ngrams, words_of

SAMPLE = 200  # captions for self-BLEU, which compares each with all others


def diversity(captions: Mapping[str, str]) -> dict[str, Any]:
    """How varied captions are.

    Args:
        captions: By the ids of their dialogues, which choose the sample.

    Returns:
        `captions`; `different` ones; `distinct`: for n = 1..4 the different n-grams over all n-grams; `self_bleu_4`,
        0..1, of a `sample` of at most `SAMPLE` captions, see [`self_bleu`]. Less of the last two is more varied; both
        depend on how many captions there are.
    """
    words = {name: words_of(text) for name, text in captions.items()}
    chosen = sorted(captions, key=lambda name: hashlib.sha256(name.encode()).digest())[:SAMPLE]
    return {
        "captions": len(captions),
        "different": len({*captions.values()}),
        "distinct": {str(n): distinct_ngrams(list(words.values()), n) for n in range(1, LONGEST_NGRAM + 1)},
        "self_bleu_4": self_bleu([words[name] for name in chosen]),
        "sample": len(chosen),
    }


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """The mean BLEU-4 of each text, given as words, against all others (Zhu et al., "Texygen", SIGIR 2018), 0..1.

    Counted by pycocoevalcap with the closest reference's length; None of fewer than two texts.
    """
    if len(texts) < 2:
        return None
    cooked = [bleu_scorer.precook(" ".join(words), n=LONGEST_NGRAM) for words in texts]
    lengths = [length for length, _ in cooked]
    # The two highest counts of every n-gram tell the highest of all texts but one.
    highest: dict[tuple[str, ...], tuple[int, int]] = {}
    for _, counts in cooked:
        for ngram, count in counts.items():
            first, second = highest.get(ngram, (0, 0))
            highest[ngram] = (count, first) if count > first else (first, max(second, count))
    scores = []
    for number, (words, (_, counts)) in enumerate(zip(texts, cooked, strict=True)):
        others = {ngram: highest[ngram][count == highest[ngram][0]] for ngram, count in counts.items()}
        references = (lengths[:number] + lengths[number + 1 :], others)
        scorer = bleu_scorer.BleuScorer(n=LONGEST_NGRAM)
        scorer.crefs, scorer.ctest = [references], [bleu_scorer.cook_test(" ".join(words), references)]
        scores.append(scorer.compute_score(option="closest")[0][LONGEST_NGRAM - 1])
    return float(np.mean(scores))
