r"""Linear probe of a contrastive model: logistic regression on its frozen image features, classes as folders.

    python eval/linear_probe.py --model runs/sarclip --train MSTAR/train --test MSTAR/test --out probe.json

The weight of L2 is chosen on a part of the training images, never on the test. Few-shot, over three draws:

    python eval/linear_probe.py --model ViT-B-32 --weights ViT-B-32.safetensors --train MSTAR/train --test MSTAR/test \
        --shots 4 --seeds 0 1 2 --out probe_4_shots.json
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.class_folder import check_same_classes, read_class_folder
from sarlang_sft.contrastive.linear_probe import linear_probe
from sarlang_sft.contrastive.model_choice import ModelChoice
from sarlang_sft.contrastive.recognition import draw_confusion, show_recognition, training_protocol, write_recognition
from sarlang_sft.contrastive.results import show_figures
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.whole_output import check_file


@dataclass
class ProbeArguments:
    """What to probe, and on what."""

    train: str = field(metadata={"help": "Folder with one folder of images per class, to fit on."})
    test: str = field(metadata={"help": "The same classes with other images, to score on."})
    out: str = field(metadata={"help": "The JSON file to write the figures to."})
    shots: int | None = field(
        default=None,
        metadata={"help": "Fit on so many images of every class; L2 is chosen on as many others, at most 4."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "One fit for each, which draws shots and the part for L2."}
    )
    confusion: str | None = field(default=None, metadata={"help": "Also draw what is taken for what: a PNG file."})
    batch_size: int = field(default=64, metadata={"help": "Images at a time."})

    def __post_init__(self) -> None:
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("--seeds: give one or more different whole numbers from 0 on")
        if self.batch_size < 1:
            raise ValueError(f"--batch_size {self.batch_size}: must be 1 or more")


def main() -> None:
    choice, args = parse_arguments([ModelChoice, ProbeArguments], __doc__)
    out = Path(args.out)
    check_file(out)
    train, test = (
        read_class_folder(Path(args.train), option="--train"),
        read_class_folder(Path(args.test), option="--test"),
    )
    check_same_classes(train, test)
    model = choice.load()
    runs, chosen = linear_probe(model, train, test, args.shots, args.seeds, args.batch_size)
    protocol = training_protocol(args.shots, args.seeds)
    figures = write_recognition(out, "linear_probe", protocol, choice.name, test, runs, chosen)
    print(show_figures(figures))
    print(show_recognition(figures))
    if args.confusion:
        draw_confusion(figures, Path(args.confusion))
        print(f"Confusion matrix: {args.confusion}")
    print(f"Figures: {out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
