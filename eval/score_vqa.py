"""Score the answers to a split's questions (all that are no captions).

The project's own deterministic protocol:

    python eval/score_vqa.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol exact --out runs/qwen/vqa_exact.json

The published one, to compare with published numbers; what its paid judge would decide counts as wrong and is reported:

    python eval/score_vqa.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol published --out runs/qwen/vqa_published.json
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.reporting.pictures import confusion_picture
from sarlang_sft.scoring.predictions import count_problems, join_predictions, made_from, summary, write_result
from sarlang_sft.scoring.vqa import score_vqa


@dataclass
class ScoreArguments:
    """What to score and how."""

    predictions: str = field(metadata={"help": "predictions.jsonl written by eval/generate.py"})
    data: str = field(metadata={"help": "The data folder that was answered"})
    out: str = field(metadata={"help": "The JSON file to write the scores to"})
    split: str = field(default="test", metadata={"help": "The split that was answered: train, val or test"})
    protocol: str = field(
        default="exact", metadata={"help": "exact (deterministic) or published (the authors' rule, without its judge)"}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "Score only these applications, e.g. classification; default: all"}
    )
    confusion: str | None = field(
        default=None, metadata={"help": "Also write the confusion matrix of the classification questions: a PNG file"}
    )


def main() -> None:
    (arguments,) = parse_arguments([ScoreArguments], __doc__)
    predictions, data = Path(arguments.predictions), Path(arguments.data)
    rows, problems = join_predictions(predictions, data, arguments.split, captions=False)
    rows = [row for row in rows if not arguments.tasks or row.task in arguments.tasks]
    if not rows:
        raise InputError(f"--tasks {' '.join(arguments.tasks)}: the split has no question of these applications")
    result = {**score_vqa(rows, arguments.protocol), "problems": count_problems(problems)}
    origin = made_from(predictions, data, arguments.split, arguments.tasks)
    write_result(Path(arguments.out), {**result, "made_from": origin})
    print(summary(result))
    if "undecided" in result:
        print(
            f"{result['undecided']} of {result['n']} answers need the published protocol's judge and count as wrong; "
            f"were all of them right, the score would be {result['upper_bound']:.4f}"
        )
    if arguments.confusion:
        classified = [row for row in rows if row.task == "classification"]
        confusion_picture(classified, Path(arguments.confusion), "Top-1")
        print(f"Confusion matrix: {arguments.confusion}")
    print(f"Scores: {arguments.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
