r"""Score the answers to a split's questions (all that are no captions). docs/scoring.md says what the figures mean.

The project's own deterministic protocol:

    python eval/score_vqa.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol exact --out runs/qwen/vqa_exact.json

The published one, to compare with published numbers; without a judge, what it would decide counts as wrong and is
reported:

    python eval/score_vqa.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol published --out runs/qwen/vqa_published.json --judge_model gpt-4o-mini --judge_prices 0.15 0.6

A local model as judge of what `exact` does not find right, see docs/serving.md:

    python eval/score_vqa.py --predictions runs/qwen/predictions.jsonl --data data/sarlang --split test \
        --protocol judge --out runs/qwen/vqa_judge.json --judge_model judge --judge_base_url http://127.0.0.1:8000/v1

Against another run on the same questions, answer by answer:

    python eval/score_vqa.py --predictions runs/qwen/predictions.jsonl --compare runs/other/predictions.jsonl \
        --data data/sarlang --split test --out runs/qwen/vqa_against_other.json
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.reporting.pictures import confusion_picture
from sarlang_sft.scoring.comparison import check_comparable, compare_verdicts, comparison_summary
from sarlang_sft.scoring.judge import JudgeArguments, open_judge
from sarlang_sft.scoring.predictions import (
    choose_tasks,
    count_problems,
    join_predictions,
    made_from,
    summary,
    write_result,
)
from sarlang_sft.scoring.signature import signature
from sarlang_sft.scoring.type_figures import figures_summary
from sarlang_sft.scoring.vocabulary import read_vocabulary
from sarlang_sft.scoring.vqa import rules_of, score_vqa, verdicts
from sarlang_sft.signals import leave_at_once


@dataclass
class ScoreArguments:
    """What to score and how."""

    predictions: str = field(metadata={"help": "predictions.jsonl written by eval/generate.py"})
    data: str = field(metadata={"help": "The data folder that was answered"})
    out: str = field(metadata={"help": "The JSON file to write the scores to"})
    split: str = field(default="test", metadata={"help": "The split that was answered: train, val or test"})
    protocol: str = field(
        default="exact",
        metadata={
            "help": "exact (deterministic), published (the authors' rule) or judge (exact, then a judge's verdict)"
        },
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "Score only these applications, e.g. classification; default: all"}
    )
    synonyms: str | None = field(
        default=None, metadata={"help": "Words that exact shall also know: YAML, see scoring/vocabulary.yaml"}
    )
    compare: str | None = field(
        default=None, metadata={"help": "Also compare with the predictions of another run on the same questions"}
    )
    confusion: str | None = field(
        default=None, metadata={"help": "Also write the confusion matrix of the classification questions: a PNG file"}
    )


def main() -> None:
    arguments, judge_arguments = parse_arguments([ScoreArguments, JudgeArguments], __doc__)
    leave_at_once(lambda: None)
    predictions, data = Path(arguments.predictions), Path(arguments.data)
    vocabulary = read_vocabulary(Path(arguments.synonyms) if arguments.synonyms else None)
    rows, problems = join_predictions(predictions, data, arguments.split, captions=False)
    rows = choose_tasks(rows, arguments.tasks)
    if arguments.compare:  # refused before a judge is paid
        other = Path(arguments.compare)
        others, other_problems = join_predictions(other, data, arguments.split, captions=False)
        check_comparable(predictions, problems)
        check_comparable(other, other_problems)
    judge = open_judge(judge_arguments, arguments.protocol, Path(arguments.out))
    rules = rules_of(arguments.protocol, vocabulary, judge.name if judge else "none")
    result = {
        "signature": signature(rules, rows, arguments.split, arguments.tasks),
        **score_vqa(rows, arguments.protocol, judge, vocabulary),
        "problems": count_problems(problems),
        "judge": judge.facts() if judge else None,
    }
    if arguments.compare:
        ours, theirs = (
            verdicts(run, arguments.protocol, judge, vocabulary)
            for run in (rows, choose_tasks(others, arguments.tasks))
        )
        result["comparison"] = {"with": str(other), **compare_verdicts(rows, ours, theirs)}
    origin = made_from(predictions, data, arguments.split, arguments.tasks)
    write_result(Path(arguments.out), {**result, "made_from": origin})
    print("\n".join(filter(None, [summary(result), figures_summary(result)])))
    if result.get("undecided"):
        print(
            f"{result['undecided']} of {result['n']} answers have no verdict of the protocol's judge and count as "
            f"wrong; were all of them right, the score would be {result['upper_bound']:.4f}"
        )
    if arguments.compare:
        print(f"Against {arguments.compare}:\n{comparison_summary(result['comparison'])}")
    if arguments.confusion:
        classified = [row for row in rows if row.task == "classification"]
        confusion_picture(classified, Path(arguments.confusion), "Top-1")
        print(f"Confusion matrix: {arguments.confusion}")
    print(f"Scores: {arguments.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
