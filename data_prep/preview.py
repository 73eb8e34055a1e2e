"""Show what a model will see of a data folder in training: pictures after the resize, tokens, and which are trained.

    python data_prep/preview.py --data data/sarlang --model Qwen/Qwen2.5-VL-7B-Instruct --out preview.html

Without --out it is printed. Pictures and tokens are those of the processor and the collator of a training with the
same options; the model's weights are never read, so a folder without them will do.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.arguments import DataArguments
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.preview import make_sheet
from sarlang_sft.preview_pages import takes_colours, terminal_lines, write_page
from sarlang_sft.records import SPLITS


@dataclass
class PreviewArguments:
    model: str = field(metadata={"help": "Folder or hub name of the model: its config and processor are read."})
    split: str = field(default="train", metadata={"help": "Split to show.", "choices": list(SPLITS)})
    images: int = field(default=12, metadata={"help": "At most this many images, with all of their dialogues."})
    seed: int | None = field(default=None, metadata={"help": "Draws the images; default: the first ones."})
    out: str | None = field(default=None, metadata={"help": "Web page to write; default: print to the terminal."})


def main() -> None:
    args, data = parse_arguments([PreviewArguments, DataArguments], __doc__)
    sheet = make_sheet(args.model, data, args.split, args.images, args.seed)
    if args.out:
        write_page(sheet, Path(args.out))
        print(f"Preview: {args.out}")
    else:
        for line in terminal_lines(sheet, takes_colours(sys.stdout)):
            print(line)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
