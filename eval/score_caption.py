"""Score the captions of a split with BLEU, ROUGE-L and CIDEr.

The field's standard, PTB tokens and all references of an image and style:

    python eval/score_caption.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol standard --out runs/qwen/caption_standard.json

The rule of the dataset's authors, to compare with published numbers:

    python eval/score_caption.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol official --out runs/qwen/caption_official.json
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.predictions import count_problems, join_predictions, made_from, summary, write_result


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


def main() -> None:
    (arguments,) = parse_arguments([ScoreArguments], __doc__)
    predictions, data = Path(arguments.predictions), Path(arguments.data)
    rows, problems = join_predictions(predictions, data, arguments.split, captions=True)
    result = {**score_captions(rows, arguments.protocol), "problems": count_problems(problems)}
    write_result(Path(arguments.out), {**result, "made_from": made_from(predictions, data, arguments.split)})
    print(summary(result))
    print("  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items()))
    if result.get("differing"):
        print(f"{result['differing']} images and styles had unequal predictions; the first one was scored")
    print(f"Scores (value is CIDEr): {arguments.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
