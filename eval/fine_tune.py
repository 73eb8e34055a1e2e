r"""Fine-tuned recognition: the image tower of a contrastive model with a linear head, trained end to end.

    python eval/fine_tune.py --model runs/sarclip --train MSTAR/train --test MSTAR/test --seeds 0 1 2 \
        --out runs/sarclip/fine_tuned.json

Every seed starts from the model's weights; the last epoch is scored, so that nothing is chosen by the test. Augmenting
operations are those of the model's own --image_ops, and those given here: they are applied in training alone.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.class_folder import check_same_classes, read_class_folder
from sarlang_sft.contrastive.fine_tuning import Schedule, fine_tuned
from sarlang_sft.contrastive.model_choice import ModelChoice
from sarlang_sft.contrastive.recognition import draw_confusion, show_recognition, training_protocol, write_recognition
from sarlang_sft.contrastive.results import show_figures
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.whole_output import check_file


@dataclass
class FineTuneArguments:
    """What to train, on what, and how."""

    train: str = field(metadata={"help": "Folder with one folder of images per class, to train on."})
    test: str = field(metadata={"help": "The same classes with other images, to score on."})
    out: str = field(metadata={"help": "The JSON file to write the figures to."})
    shots: int | None = field(default=None, metadata={"help": "Train on so many images of every class."})
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "One training for each: head, order, shots and augmentation."}
    )
    epochs: int = field(default=10, metadata={"help": "Times that every image is seen."})
    learning_rate: float = field(default=3e-5, metadata={"help": "At the start; it falls to 0 as a cosine."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of AdamW."})
    batch_size: int = field(default=32, metadata={"help": "Images at a time."})
    confusion: str | None = field(default=None, metadata={"help": "Also draw what is taken for what: a PNG file."})

    def __post_init__(self) -> None:
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("--seeds: give one or more different whole numbers from 0 on")
        if min(self.batch_size, self.epochs) < 1 or self.learning_rate <= 0:
            raise ValueError("--batch_size, --epochs and --learning_rate must be above 0")


def main() -> None:
    choice, args = parse_arguments([ModelChoice, FineTuneArguments], __doc__)
    out = Path(args.out)
    check_file(out)
    schedule = Schedule(args.epochs, args.learning_rate, args.weight_decay, args.batch_size)
    train, test = (
        read_class_folder(Path(args.train), option="--train"),
        read_class_folder(Path(args.test), option="--test"),
    )
    check_same_classes(train, test)
    model = choice.load()
    runs, trained = fine_tuned(model, train, test, args.shots, args.seeds, schedule)
    protocol = training_protocol(args.shots, args.seeds)
    figures = write_recognition(out, "fine_tuned", protocol, choice.name, test, runs, trained)
    print(show_figures(figures))
    print(show_recognition(figures))
    if args.confusion:
        draw_confusion(figures, Path(args.confusion))
        print(f"Confusion matrix: {args.confusion}")
    print(f"Figures: {out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
