"""Derive every answer that was built from boxes a second time, from the boxes of a data folder.

    python data_prep/check_answers.py --data data/boxes

Exit code 1 if one is not true, or cannot be read: after edits by hand, for instance. Rewritten captions are in other
words than those of the templates, so that they are reported as not understood.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.findings import FOUND_ERRORS
from sarlang_sft.language.recheck import print_recheck, recheck


@dataclass
class CheckArguments:
    data: str = field(metadata={"help": "Data folder of build_from_boxes.py."})
    shown: int = field(default=20, metadata={"help": "Disagreements that are printed."})


def main() -> None:
    (args,) = parse_arguments([CheckArguments], __doc__)
    true, false = recheck(Path(args.data))
    print_recheck(true, false, args.shown)
    sys.exit(FOUND_ERRORS if false else 0)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
