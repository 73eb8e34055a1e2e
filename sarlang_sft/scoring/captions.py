"""Scores of captions, as SARLANG-1M's authors count them and as the field does, over a split and its parts.

`official` is the rule of Evaluate_caption.py (arXiv 2504.03254): every row against its one reference, words split at
blanks, so that "harbor." is not "harbor". `standard` tokenises with the PTB tokeniser and holds one prediction per
image and style against all references of that image and style.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sarlang_sft.errors import InputError
from sarlang_sft.scoring import facts
from sarlang_sft.scoring.bert_score import Encoder, bert_score, find_encoder
from sarlang_sft.scoring.caption_statistics import caption_statistics
from sarlang_sft.scoring.intervals import mean_with_interval
from sarlang_sft.scoring.java_metrics import find_corenlp, meteor, ptb_tokenise, spice
from sarlang_sft.scoring.ngrams import Caption, bleu, check_references, cider, rouge_l
from sarlang_sft.scoring.predictions import Row, break_down, group_by
from sarlang_sft.scoring.vocabulary import VOCABULARY

# The version of the rules, to be raised by whoever changes a score, and what they are.
PROTOCOLS: dict[str, dict[str, str | int]] = {
    "official": {"version": 1, "tokens": "blanks", "references": "one"},
    "standard": {"version": 1, "tokens": "ptb-3.4.1", "references": "all of image and style"},
}
METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice", "bert_score")
PLAIN_METRICS = ("bleu", "rouge_l", "cider")  # without Java, jars or a model

Positions = tuple[int, ...]


@dataclass(frozen=True)
class Chosen:
    """Which metrics are counted, CIDEr always.

    Attributes:
        corenlp: Folder with the jars of SPICE.
        encoder: Of BERTScore.
        not_computed: Why other metrics are not counted.
    """

    metrics: tuple[str, ...] = PLAIN_METRICS
    corenlp: Path | None = None
    encoder: Encoder | None = None
    not_computed: dict[str, str] = field(default_factory=dict)


def choose_metrics(
    metrics: Sequence[str], spice_jar: Path | None, bert_model: Path | None, bert_layer: int | None
) -> Chosen:
    """The metrics of a list, those left out for which something is missing here; nothing is downloaded.

    Args:
        metrics: Of `METRICS`; empty for all.
        spice_jar: Folder of the CoreNLP jars; None to look beside SPICE's own jar.
        bert_model: Folder of an encoder; None to do without BERTScore.
        bert_layer: Which of its layers, see [`find_encoder`].

    Raises:
        InputError: A name is no metric, or a folder does not hold what it should.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise InputError(f"--metrics {' '.join(unknown)}: must be of {', '.join(METRICS)}")
    wanted = [name for name in METRICS if name in (metrics or METRICS) or name == "cider"]
    not_computed = {}
    corenlp, encoder = None, None
    if "spice" in wanted:
        corenlp, missing = find_corenlp(spice_jar)
        not_computed |= {} if corenlp else {"spice": missing}
    if "bert_score" in wanted:
        encoder = find_encoder(bert_model, bert_layer) if bert_model else None
        not_computed |= {} if encoder else {"bert_score": "it needs the folder of an encoder: give it as --bert_model"}
    return Chosen(tuple(name for name in wanted if name not in not_computed), corenlp, encoder, not_computed)


def score_captions(rows: Sequence[Row], protocol: str, chosen: Chosen = Chosen()) -> dict[str, Any]:
    """Caption metrics over all and by style, task, subset, source and resolution; `value` is CIDEr with its interval.

    The interval is bootstrapped over images. Every group is scored by itself, as if the split held nothing else, and
    has the full `metrics`. A missing prediction counts as an empty caption; `of_answered` has the scores without
    those. `scored` is the number of predictions compared: rows under `official`, images with style under `standard`,
    where `differing` says how many of those had unequal predictions (the first one is taken). `statistics` and `facts`
    are of one caption per image and style under both protocols; `not_computed` says what is missing, and why.

    Args:
        rows: Captions with their predictions; at least one.
        protocol: One of `PROTOCOLS`.

    Raises:
        InputError: There is no row, no reference has a word, or the protocol is unknown.
    """
    _check_protocol(protocol)
    if not rows:
        raise InputError("no captions to score: the split or the predictions are empty")
    every = tuple(range(len(rows)))
    together = _by_image_and_style(rows, every)
    answered = tuple(
        sorted(
            one for made_of in _made_of(rows, every, protocol) if _said(rows, made_of) is not None for one in made_of
        )
    )
    parts = {"by_style": group_by(rows, lambda row: row.style or "none", lambda group: {"rows": tuple(group)})}
    parts |= break_down(rows, lambda group: {"rows": tuple(group)})
    groups = [every, answered, *(part["rows"] for named in parts.values() for part in named.values())]
    scores = _score_groups(rows, [group for group in dict.fromkeys(groups) if group], protocol, chosen)
    whole = scores[every]
    result: dict[str, Any] = {
        "protocol": protocol,
        "n": len(rows),
        "answered": whole["answered"],
        "overall": {name: whole[name] for name in ("value", "low", "high")},
        "of_answered": {"n": len(answered), **scores[answered]} if answered else None,
        "metrics": whole["metrics"],
        "scored": whole["scored"],
    }
    if protocol == "standard":
        told = [{rows[one].predict for one in made_of} - {None} for made_of in together]
        result["differing"] = sum(len(texts) > 1 for texts in told)
    result |= {
        breakdown: {name: {"n": part["n"], **scores[part["rows"]]} for name, part in named.items()}
        for breakdown, named in parts.items()
    }
    captions = [replace(rows[made_of[0]], predict=_said(rows, made_of)) for made_of in together]
    return result | _beside(captions, chosen)


def _beside(captions: Sequence[Row], chosen: Chosen) -> dict[str, Any]:
    by_style = group_by(
        captions,
        lambda row: row.style or "none",
        lambda group: caption_statistics([captions[one] for one in group]),
    )
    not_computed = {**chosen.not_computed, "truncated": "predictions do not say whether they reached the token limit"}
    found = facts.score_facts(captions)
    if found is None:
        not_computed["facts"] = "no image of the captions has boxes"
    return {
        "statistics": {**caption_statistics(captions), "by_style": by_style},
        "facts": found,
        "not_computed": not_computed,
    }


def rules_of(protocol: str, chosen: Chosen) -> dict[str, str | int]:
    """What a signature says of a protocol and its metrics; raises [`InputError`] if the protocol is unknown."""
    _check_protocol(protocol)
    rules: dict[str, str | int] = {"protocol": protocol, **PROTOCOLS[protocol], "metrics": "+".join(chosen.metrics)}
    if chosen.encoder:
        rules["bert"] = f"{chosen.encoder.folder.resolve().name} layer {chosen.encoder.layer}"
    rules |= {"facts": facts.VERSION, "synonyms": VOCABULARY.hash}
    return {**rules, "pycocoevalcap": version("pycocoevalcap")}


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: must be one of {', '.join(PROTOCOLS)}")


def _score_groups(
    rows: Sequence[Row], groups: Sequence[Positions], protocol: str, chosen: Chosen
) -> dict[Positions, dict[str, Any]]:
    """Scores of each group of rows. What is the same caption in several groups is taken apart only once."""
    made_of = [_made_of(rows, group, protocol) for group in groups]
    place = {one: index for index, one in enumerate(dict.fromkeys(one for group in made_of for one in group))}
    places = [[place[one] for one in group] for group in made_of]
    written = [
        Caption(rows[one[0]].images, _said(rows, one) or "", [rows[index].label for index in one]) for one in place
    ]
    captions = _tokenised(written) if protocol == "standard" else written
    check_references(captions)
    metrics: dict[str, Callable[[], list[dict[str, float]]]] = {
        "bleu": lambda: bleu(captions, places),
        "meteor": lambda: meteor(captions, places),
        "rouge_l": lambda: rouge_l(captions, places),
        "spice": lambda: spice(captions, places, chosen.corenlp),
        "bert_score": lambda: bert_score(written, places, chosen.encoder),
    }
    ciders = cider(captions, places)
    found: list[dict[str, float]] = [{} for _ in groups]
    for name in chosen.metrics:
        values = [{"cider": float(scores.mean())} for scores in ciders] if name == "cider" else metrics[name]()
        found = [known | value for known, value in zip(found, values, strict=True)]
    return {
        group: {
            **mean_with_interval(scores, [captions[one].image for one in members]),
            "answered": sum(rows[one].predict is not None for one in group),
            "scored": len(members),
            "metrics": values,
        }
        for group, members, scores, values in zip(groups, places, ciders, found, strict=True)
    }


def _made_of(rows: Sequence[Row], group: Positions, protocol: str) -> list[Positions]:
    """The rows of a group that are scored as one caption."""
    return [(one,) for one in group] if protocol == "official" else _by_image_and_style(rows, group)


def _by_image_and_style(rows: Sequence[Row], group: Positions) -> list[Positions]:
    members: dict[tuple[tuple[str, ...], str | None], list[int]] = {}
    for one in group:
        members.setdefault((rows[one].images, rows[one].style), []).append(one)
    return [tuple(found) for found in members.values()]


def _said(rows: Sequence[Row], made_of: Positions) -> str | None:
    return next((rows[one].predict for one in made_of if rows[one].predict is not None), None)


def _tokenised(captions: Sequence[Caption]) -> list[Caption]:
    texts = list(dict.fromkeys(text for caption in captions for text in (caption.predict, *caption.references)))
    tokens = dict(zip(texts, ptb_tokenise(texts), strict=True))
    return [
        replace(caption, predict=tokens[caption.predict], references=[tokens[text] for text in caption.references])
        for caption in captions
    ]
