"""Write a sample of simulated SAR scenes in the layout of the SARLANG-1M release.

    python data_prep/make_sample.py --out outputs/sample --images 200 --seed 0

Every scene comes as a radar image (SARimages/) and as an optical twin (RGBimages/), with questions of all seven
applications, concise and complex captions as CSV and JSON, and its truth in truth.json. Same seed, same bytes.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.sample import write_sample


@dataclass
class SampleArguments:
    out: str = field(metadata={"help": "Folder to write; an earlier sample there is replaced."})
    images: int = field(default=200, metadata={"help": "Number of scenes."})
    seed: int = field(default=0, metadata={"help": "Same seed, same bytes."})
    test_fraction: float = field(default=0.2, metadata={"help": "Part of the scenes that is the test split."})
    size: int = field(default=96, metadata={"help": "Side of the images in pixels."})
    looks: float = field(default=4.0, metadata={"help": "Number of looks of the speckle; fewer is noisier."})


def main() -> None:
    (args,) = parse_arguments([SampleArguments], __doc__)
    write_sample(Path(args.out), args.images, args.seed, args.test_fraction, args.size, args.looks)
    print(f"Sample of {args.images} scenes: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
