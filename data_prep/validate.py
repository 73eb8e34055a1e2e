"""Check a data folder before days of GPU time are spent on it: every image, box, text and count.

    python data_prep/validate.py --data data/sarlang --model Qwen/Qwen2.5-VL-7B-Instruct

Prints what was found, with one example and the remedy of each, and writes every finding as a line of findings.jsonl.
Ends with 0 if there is no error, 1 if there is one (with --strict also a warning), 2 on bad input or configuration.
"""

import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from sarlang_sft.backbone_fit import RELEASED, choose_sight
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.findings import print_summary, write_findings
from sarlang_sft.image_checks import examine_images
from sarlang_sft.records import image_root_of
from sarlang_sft.text_checks import special_tokens
from sarlang_sft.validation import check_manifest, dialogue_findings, image_findings, list_images, print_images
from sarlang_sft.whole_output import check_file


@dataclass
class ValidateArguments:
    data: str = field(metadata={"help": "Data folder to check."})
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images; default: the manifest's."})
    model: str | None = field(
        default=None, metadata={"help": "Model (folder or hub name) whose shape limits, tokens and words count."}
    )
    family: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --model: a family with the limits of its released models.",
            "choices": list(RELEASED),
        },
    )
    max_pixels: int | None = field(default=None, metadata={"help": "Of the backbone, as in training."})
    out: str | None = field(default=None, metadata={"help": "JSON Lines to write; default: findings.jsonl in --data."})
    max_characters: int = field(default=2000, metadata={"help": "Longer questions and answers are warned of."})
    max_image_mb: int = field(default=256, metadata={"help": "Images that decode to more are not decoded."})
    workers: int | None = field(default=None, metadata={"help": "Processes that decode images. Default: all cores."})
    strict: bool = field(default=False, metadata={"help": "Warnings count as errors."})

    def __post_init__(self) -> None:
        for name in ("max_characters", "max_image_mb", "workers"):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise InputError(f"--{name} {vars(self)[name]}: must be at least 1")


def main() -> int:
    (args,) = parse_arguments([ValidateArguments], __doc__)
    data = Path(args.data)
    out = Path(args.out or data / "findings.jsonl")
    check_file(out)
    if out.resolve().parent == data.resolve() and out.name != "findings.jsonl":
        raise InputError(f"--out {out}: lies in the data folder; only findings.jsonl belongs there")
    manifest = check_manifest(data)
    root = image_root_of(data, args.image_root)
    sight = choose_sight(args.model, args.family, args.max_pixels)
    images = list_images(data)
    facts = list(examine_images(root, list(images), args.max_image_mb, args.workers))
    special = special_tokens(sight.processor.tokenizer.all_special_tokens if sight else [])
    findings = chain(
        image_findings(images, facts, sight), dialogue_findings(data, manifest, special, args.max_characters)
    )
    summary = write_findings(findings, out)
    print_images(images, facts, sight)
    print_summary(summary, args.strict)
    return summary.exit_code(args.strict)


if __name__ == "__main__":
    with exit_on_bad_input():
        sys.exit(main())
