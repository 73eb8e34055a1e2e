r"""How well a contrastive model finds texts for images and images for texts: R@1, R@5, R@10 and MeanRecall.

    python eval/retrieval.py --model runs/sarclip --data data/sarlang --split test --out runs/sarclip/retrieval.json \
        --gallery runs/sarclip/retrieval.png

SARVLM-1M's test, from its CSV, by its own protocol:

    python eval/retrieval.py --model ViT-L-14 --weights sarclip.safetensors --csv test.csv --image_root SARVLM-1M \
        --protocol official --out retrieval.json

Both protocols are computed and kept, `--protocol` says which stands first: `official` takes the pairs as rows, of
which only the same row is right; in `all-positives` every image and every text is there once, and all that are true
are right. See sarlang_sft/contrastive/retrieval.py for ties and intervals.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.gallery import retrieval_gallery
from sarlang_sft.contrastive.model_choice import ModelChoice
from sarlang_sft.contrastive.pairs import read_csv_pairs, read_pairs
from sarlang_sft.contrastive.retrieval import (
    check_protocol,
    draw_pairs,
    encode_pairs,
    show_retrieval,
    write_retrieval,
)
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.signals import leave_at_once
from sarlang_sft.whole_output import check_file


@dataclass
class RetrievalArguments:
    out: str = field(metadata={"help": "The JSON file to write the figures to."})
    data: str | None = field(default=None, metadata={"help": "Data folder whose captions are the texts."})
    split: str = field(default="test", metadata={"help": "Of the data folder: train, val or test."})
    csv: str | None = field(default=None, metadata={"help": "Instead of --data: a CSV with imgpath,caption."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that image paths start from; needed by --csv, else the data folder's."}
    )
    subsets: list[str] = field(default_factory=list, metadata={"help": "Captions of these alone; default: all."})
    leave_out: list[str] = field(default_factory=list, metadata={"help": "Sources whose images are not taken."})
    only: list[str] = field(default_factory=list, metadata={"help": "Sources whose images alone are taken."})
    protocol: str = field(default="all-positives", metadata={"help": "all-positives or official: which stands first."})
    sample: int | None = field(
        default=None, metadata={"help": "Only so many pairs, drawn at random; SARVLM-1M has a test of 5000."}
    )
    seed: int = field(default=0, metadata={"help": "Draws the sample."})
    batch_size: int = field(default=64, metadata={"help": "Images encoded together."})
    gallery: str | None = field(default=None, metadata={"help": "Also write a picture of some queries: a PNG file."})

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.csv):
            raise ValueError("give either --data or --csv")
        if self.csv and not self.image_root:
            raise ValueError("--csv needs --image_root, the folder that its paths start from")
        if self.csv and (self.subsets or self.leave_out or self.only):
            raise ValueError("--subsets, --leave_out and --only need --data: a CSV names no sources")
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError("--batch_size must be at least 1, --seed 0 or more")


def main() -> None:
    choice, args = parse_arguments([ModelChoice, RetrievalArguments], __doc__)
    check_protocol(args.protocol)
    for path in filter(None, [args.out, args.gallery]):
        check_file(Path(path))
    leave_at_once(lambda: None)
    if args.csv:
        pairs = read_csv_pairs(Path(args.csv), Path(args.image_root))
    else:
        pairs = read_pairs(Path(args.data), args.split, args.image_root, args.subsets, args.leave_out, args.only)
    rows = draw_pairs(pairs, args.sample, args.seed)
    model = choice.load()
    encoded = encode_pairs(model, pairs, rows, args.batch_size)
    content = write_retrieval(Path(args.out), choice.name, args.protocol, encoded, asdict(choice) | asdict(args))
    print(show_retrieval(content))
    if args.gallery:
        retrieval_gallery(encoded.pairs, encoded.images, encoded.texts, Path(args.gallery))
        print(f"Gallery: {args.gallery}")
    print(f"Figures: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
