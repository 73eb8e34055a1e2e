"""Check a file of words for texts from boxes: its form, its grammar, and whether what it says is true.

    python data_prep/lint_wording.py --wording my_words.yaml --classes ship "oil rig"

The wording is tried on random boxes of the classes, and every text read back. Exit code 1 on errors; what is only
doubtful is said. docs/text_from_boxes.md tells what a wording holds.
"""

import sys
from dataclasses import dataclass, field

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.findings import FOUND_ERRORS
from sarlang_sft.language.linting import CLASSES, lint
from sarlang_sft.language.wording import read_content


@dataclass
class LintArguments:
    wording: str = field(metadata={"help": "A file of words, or a built-in wording."})
    classes: list[str] = field(default_factory=lambda: list(CLASSES), metadata={"help": "Classes to try it with."})
    seed: int = field(default=0, metadata={"help": "Draws the boxes it is tried on."})


def main() -> None:
    (args,) = parse_arguments([LintArguments], __doc__)
    remarks = lint(read_content(args.wording), tuple(args.classes), args.seed)
    for remark in remarks:
        print(f"{'error' if remark.error else 'warning'}: {remark.text}")
    errors = sum(remark.error for remark in remarks)
    print(f"{args.wording}: {errors} errors, {len(remarks) - errors} warnings")
    sys.exit(FOUND_ERRORS if errors else 0)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
