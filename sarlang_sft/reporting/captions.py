"""Caption scores as rows of a table, whatever metrics the files hold."""

from typing import Any, NamedTuple

NAMES = {
    "cider": "CIDEr", "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L", "meteor": "METEOR", "spice": "SPICE", "bert_score": "BERTScore",
}  # fmt: skip


class Part(NamedTuple):
    """Captions of one run that are scored together: metric -> value, and CIDEr's interval."""

    run: str
    part: str
    protocol: str
    scored: int
    metrics: dict[str, float]
    interval: dict[str, float]


def caption_parts(results: dict[str, dict[str, Any]]) -> list[Part]:
    """All captions of every file, then each style (concise, complex) where there are several."""
    rows = []
    for name, result in results.items():
        styles = result["by_style"] if len(result["by_style"]) > 1 else {}
        for part, entry in {"all": {**result["overall"], **result}, **styles}.items():
            rows.append(Part(name, part, result["protocol"], entry["scored"], entry["metrics"], entry))
    return rows
