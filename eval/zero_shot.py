r"""Zero-shot recognition with a contrastive model: ROOT/<class>/<images>, the folders' names are the classes.

    python eval/zero_shot.py --model runs/sarclip --root MSTAR/test --templates sar --out runs/sarclip/mstar.json

Every image goes to the class whose sentences are nearest: the mean of the templates' unit features. Writes top-1, -3
and -5 with 95% intervals, accuracies by class and their mean, and what is taken for what. Folder names are spoken with
spaces for underscores; a YAML or JSON file says better names:

    python eval/zero_shot.py --model ViT-B-32 --weights ViT-B-32.safetensors --root MSTAR/test --templates mine.yaml \
        --class_names names.yaml --out mstar.json --confusion mstar.png

The template sets have the sizes of SARVLM's; their wording is this project's own.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.class_folder import read_class_folder
from sarlang_sft.contrastive.model_choice import ModelChoice
from sarlang_sft.contrastive.recognition import draw_confusion, show_recognition, write_recognition
from sarlang_sft.contrastive.results import show_figures
from sarlang_sft.contrastive.zero_shot import read_templates, zero_shot
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.whole_output import check_file


@dataclass
class ZeroShotArguments:
    """What to recognise, and with what."""

    root: str = field(metadata={"help": "Folder with one folder of images per class."})
    out: str = field(metadata={"help": "The JSON file to write the figures to."})
    templates: str = field(
        default="sar",
        metadata={
            "help": "sar, optical, sar_opt, or a YAML file with sentences under `templates:`, {} for the class."
        },
    )
    class_names: str | None = field(
        default=None, metadata={"help": "YAML or JSON: folder name to spoken name, for every folder."}
    )
    confusion: str | None = field(default=None, metadata={"help": "Also draw what is taken for what: a PNG file."})
    batch_size: int = field(default=64, metadata={"help": "Images at a time."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"--batch_size {self.batch_size}: must be 1 or more")


def main() -> None:
    choice, args = parse_arguments([ModelChoice, ZeroShotArguments], __doc__)
    out = Path(args.out)
    check_file(out)
    templates = read_templates(args.templates)
    folder = read_class_folder(Path(args.root), Path(args.class_names) if args.class_names else None)
    model = choice.load()
    scored = zero_shot(model, folder, templates, args.batch_size)
    protocol = f"{len(templates)} templates, {args.templates}"
    figures = write_recognition(out, "zero_shot", protocol, choice.name, folder, [scored], {"templates": templates})
    print(show_figures(figures))
    print(show_recognition(figures))
    if args.confusion:
        draw_confusion(figures, Path(args.confusion))
        print(f"Confusion matrix: {args.confusion}")
    print(f"Figures: {out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
