"""BLEU, ROUGE-L and CIDEr of many groups of captions; pycocoevalcap counts, every caption is taken apart once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge.rouge import Rouge

from sarlang_sft.errors import InputError

Groups = Sequence[Sequence[int]]
"""Positions of captions that are scored together, as if there were no others."""


@dataclass(frozen=True)
class Caption:
    """One predicted caption of an image with the references it is held against; an absent prediction is empty."""

    image: tuple[str, ...]
    predict: str
    references: list[str]


def bleu(captions: Sequence[Caption], groups: Groups) -> list[dict[str, float]]:
    """`bleu_1 .. bleu_4` of each group, 0..1: matches counted over its captions, the closest reference's length."""
    references = [bleu_scorer.cook_refs(caption.references) for caption in captions]
    predicted = [
        bleu_scorer.cook_test(caption.predict, cooked) for caption, cooked in zip(captions, references, strict=True)
    ]
    return [_bleu_of([references[one] for one in group], [predicted[one] for one in group]) for group in groups]


def _bleu_of(references: list[object], predicted: list[object]) -> dict[str, float]:
    scorer = bleu_scorer.BleuScorer(n=4)
    scorer.crefs, scorer.ctest = references, predicted
    scores, _ = scorer.compute_score(option="closest")
    return {f"bleu_{n}": float(score) for n, score in enumerate(scores, start=1)}


def rouge_l(captions: Sequence[Caption], groups: Groups) -> list[dict[str, float]]:
    """`rouge_l` of each group, 0..1: the mean over its captions."""
    rouge = Rouge()
    scores = np.array([rouge.calc_score([caption.predict], caption.references) for caption in captions])
    return [{"rouge_l": float(scores[group].mean())} for group in map(list, groups)]


def cider(captions: Sequence[Caption], groups: Groups) -> list[np.ndarray]:
    """CIDEr-D per caption of each group, shape (captions of the group,), 0..10; a group's CIDEr is the mean.

    Words weigh by how few captions of the group use them in their references: the CIDEr of a whole is not the mean of
    its parts. Of a single caption, and where no reference has a word, it is 0.
    """
    references = [cider_scorer.cook_refs(caption.references) for caption in captions]
    predicted = [cider_scorer.cook_test(caption.predict) for caption in captions]
    return [_cider_of([references[one] for one in group], [predicted[one] for one in group]) for group in groups]


def _cider_of(references: list[list[dict]], predicted: list[dict]) -> np.ndarray:
    if not any(counts for texts in references for counts in texts):
        return np.zeros(len(predicted))
    scorer = cider_scorer.CiderScorer()
    scorer.crefs, scorer.ctest = references, predicted
    return scorer.compute_score()[1]


def caption_metrics(captions: Sequence[Caption]) -> dict[str, float]:
    """The corpus' `bleu_1 .. bleu_4`, `rouge_l` (0..1) and `cider` (0..10).

    Raises:
        InputError: There is no caption, or no reference has a word.
    """
    check_references(captions)
    groups = [range(len(captions))]
    ciders = cider(captions, groups)[0]
    return bleu(captions, groups)[0] | rouge_l(captions, groups)[0] | {"cider": float(ciders.mean())}


def check_references(captions: Sequence[Caption]) -> None:
    """Raises [`InputError`] if there is no caption, or no reference has a word."""
    if not any(reference.split() for caption in captions for reference in caption.references):
        raise InputError("no captions to score: the split is empty or its reference captions have no words")
