"""Count how often the protocols `published` and `exact` differ, and why: the tables of docs/scoring.md.

On predictions, without a judge:

    python docs/count_differences.py --predictions outputs/demo/predictions_after.jsonl --data outputs/demo/data

On rows with the replies of a judge, JSON lines with `question, ground_truth, predicted, judge` ("1" or "0"):

    python docs/count_differences.py --judged vqa_rows.jsonl
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.scoring.exact import exact_verdict, question_type
from sarlang_sft.scoring.predictions import join_predictions
from sarlang_sft.scoring.published import published_verdict

EXAMPLES = 2


class Answer(NamedTuple):
    """An answer and what a judge says of it; `judged` is None where none was asked."""

    question: str
    label: str
    predict: str
    judged: bool | None


def read_judged(path: Path) -> list[Answer]:
    """Rows with the replies of a judge."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Answer(row["question"], row["ground_truth"], row["predicted"], row["judge"] == "1") for row in rows]


def read_predicted(predictions: Path, data: Path) -> list[Answer]:
    """The answers of a test split."""
    rows = join_predictions(predictions, data, "test", captions=False).rows
    return [Answer(row.question, row.label, row.predict or "", None) for row in rows]


def _plain(text: str) -> str:
    return text.lower().strip(" .")


def why_published_alone(answer: Answer) -> str:
    """Why the published rule finds an answer right that `exact` does not."""
    label, predict = answer.label.lower(), answer.predict.lower()
    if label not in predict:
        return "the judge says so"
    if not re.search(rf"(?<![^\W_]){re.escape(label)}(?![^\W_])", predict):
        return "a number inside something longer" if label.strip(".").isdigit() else "a part of a longer word"
    return "it stands beside something else"


def why_exact_alone(answer: Answer) -> str:
    """Why `exact` finds an answer right that the published rule does not."""
    label, predict = _plain(answer.label), _plain(answer.predict)
    if label == predict:
        why = "a full stop"
    elif set(re.findall(r"[^,\s]+", label)) == set(re.findall(r"[^,\s]+", predict)):
        why = "the order of words, or one twice"
    elif re.search(rf"(?<![^\W_]){re.escape(label)}(?![^\W_])", predict):
        why = "a full stop, and words around the answer"
    elif predict.startswith("there "):
        why = "a whole sentence"
    elif question_type(answer.label) == "count":
        why = "a number in words"
    else:
        why = "a plural, a synonym or another spelling"
    if published_verdict(answer.label, answer.predict) is False:
        return f"{why}; the rule for yes, no and numbers allows no other spelling"
    return f"{why}; {'no judge' if answer.judged is None else 'the judge says no'}"


def count(answers: Iterable[Answer]) -> tuple[Counter[str], dict[str, Counter[str]], dict[str, list[str]]]:
    """Agreement; reasons by who finds right what the other does not; and examples of every reason."""
    agreement: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {"published alone": Counter(), "exact alone": Counter()}
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for answer in answers:
        ruled = published_verdict(answer.label, answer.predict)
        published = answer.judged is True if ruled is None else ruled
        exact = exact_verdict(answer.label, answer.predict, answer.question)
        if published == exact:
            agreement["both right" if exact else "both wrong"] += 1
            continue
        who = "exact alone" if exact else "published alone"
        why = why_exact_alone(answer) if exact else why_published_alone(answer)
        agreement[who] += 1
        reasons[who][why] += 1
        shown = f"`{answer.predict}` for `{answer.label}`"
        if shown not in examples[why] and len(examples[why]) < EXAMPLES:
            examples[why].append(shown)
    return agreement, reasons, examples


def print_tables(answers: list[Answer]) -> None:
    """As Markdown."""
    agreement, reasons, examples = count(answers)
    print(f"\n| of {len(answers):,} answers | right by `exact` | wrong by `exact` |\n| --- | --- | --- |")
    print(f"| right by `published` | {agreement['both right']:,} | {agreement['published alone']:,} |")
    print(f"| wrong by `published` | {agreement['exact alone']:,} | {agreement['both wrong']:,} |")
    print("\n| right by | why | answers | such as |\n| --- | --- | --- | --- |")
    for who, counted in reasons.items():
        for why, number in counted.most_common():
            print(f"| {who} | {why} | {number:,} | {', '.join(examples[why])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judged", type=Path, help="rows with the replies of a judge")
    parser.add_argument("--predictions", type=Path, help="predictions of eval/generate.py")
    parser.add_argument("--data", type=Path, help="the data folder that they answer")
    options = parser.parse_args()
    if not options.judged and not (options.predictions and options.data):
        parser.error("give --judged, or --predictions and --data")
    print_tables(read_judged(options.judged) if options.judged else read_predicted(options.predictions, options.data))


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
