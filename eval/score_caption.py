r"""Score the captions of a split with BLEU, METEOR, ROUGE-L and CIDEr, and their facts where images have boxes.

The field's standard, PTB tokens and all references of an image and style:

    python eval/score_caption.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol standard --out runs/qwen/caption_standard.json

The rule of the dataset's authors, to compare with published numbers:

    python eval/score_caption.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol official --out runs/qwen/caption_official.json

SPICE needs the jars of Stanford CoreNLP 3.6.0 (--spice_jar), BERTScore the folder of an encoder (--bert_model):
nothing is downloaded. What the figures mean: docs/scoring_captions.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.scoring.caption_summary import caption_summary
from sarlang_sft.scoring.captions import METRICS, choose_metrics, rules_of, score_captions
from sarlang_sft.scoring.predictions import count_problems, join_predictions, made_from, summary, write_result
from sarlang_sft.scoring.signature import signature


@dataclass
class ScoreArguments:
    """What to score and how."""

    predictions: str = field(metadata={"help": "predictions.jsonl written by eval/generate.py"})
    data: str = field(metadata={"help": "The data folder that was captioned"})
    out: str = field(metadata={"help": "The JSON file to write the scores to"})
    split: str = field(default="test", metadata={"help": "The split that was captioned: train, val or test"})
    protocol: str = field(
        default="standard", metadata={"help": "standard (PTB tokens, all references) or official (the authors' rule)"}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": f"Of {', '.join(METRICS)}; default: all whose files are there. CIDEr is always counted"},
    )
    spice_jar: str | None = field(
        default=None, metadata={"help": "Folder of stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar"}
    )
    bert_model: str | None = field(default=None, metadata={"help": "Folder of BERTScore's model, such as RoBERTa's"})
    bert_layer: int | None = field(
        default=None, metadata={"help": "Its layer to compare, from 1; default: three quarters of them, as 9 of 12"}
    )


def main() -> None:
    (arguments,) = parse_arguments([ScoreArguments], __doc__)
    predictions, data = Path(arguments.predictions), Path(arguments.data)
    spice_jar = Path(arguments.spice_jar) if arguments.spice_jar else None
    bert_model = Path(arguments.bert_model) if arguments.bert_model else None
    chosen = choose_metrics(arguments.metrics, spice_jar, bert_model, arguments.bert_layer)
    rows, problems = join_predictions(predictions, data, arguments.split, captions=True)
    result = {
        "signature": signature(rules_of(arguments.protocol, chosen), rows, arguments.split),
        **score_captions(rows, arguments.protocol, chosen),
        "problems": count_problems(problems),
    }
    write_result(Path(arguments.out), {**result, "made_from": made_from(predictions, data, arguments.split)})
    print(summary(result))
    print(caption_summary(result))
    print(f"Scores (value is CIDEr): {arguments.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
