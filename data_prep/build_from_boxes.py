"""Build questions, captions and dialogues from boxes or masks: COCO, Pascal VOC, YOLO, DOTA, class or instance masks.

    python data_prep/build_from_boxes.py --annotations instances.json --image_root images --out data/boxes
    python data_prep/build_from_boxes.py --annotations train=labels/train test=labels/val --format yolo \\
        --image_root images --out data/boxes --texts vqa captions

SARLANG-1M's SARVQA1 anew, from the annotations of SARDet-100K (its val images are SARLANG's test images):

    python data_prep/build_from_boxes.py --source SARDet-100K --texts vqa --wording sarlang --out data/sarvqa1 \\
        --annotations train=SARDet_100K/Annotations/train.json test=SARDet_100K/Annotations/val.json \\
        --image_root SARDet_100K/JPEGImages

Every answer is derived from the boxes twice, the second time by a checker. card.md in the folder counts what was built
beside SARLANG-1M's numbers, annotations.jsonl lists every box and image that was mended or left out, with the reason.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.annotations.accounts import account_for, print_accounts, problem_lines
from sarlang_sft.annotations.cleaning import carve_images, label_images
from sarlang_sft.annotations.model import AnnotationOptions
from sarlang_sft.annotations.reading import FORMATS, read_annotations
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.language.building import TextArguments, build_texts
from sarlang_sft.language.card import write_card
from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import DATA_FOLDER, SPLITS, check_fraction, print_manifest, write_data_folder
from sarlang_sft.whole_output import check_replaceable


@dataclass
class BoxArguments:
    annotations: list[str] = field(
        metadata={"help": "Files or folders of annotations, each PATH or SPLIT=PATH (train, val, test)."}
    )
    image_root: str = field(metadata={"help": "Folder of the images, at any depth."})
    out: str = field(metadata={"help": "Data folder to write."})
    format: str = field(
        default="auto",
        metadata={
            "help": "Format of the annotations; auto looks at the files, but cannot tell masks.",
            "choices": ["auto", *FORMATS],
        },
    )
    source: str = field(default="boxes", metadata={"help": "Name of the data set, kept in every record."})
    split: str = field(
        default="train", metadata={"help": "Split of annotations that state none.", "choices": list(SPLITS)}
    )
    val_fraction: float = field(default=0.02, metadata={"help": "Part of train that becomes val if none is stated."})
    test_fraction: float = field(
        default=0.0,
        metadata={"help": "Part of train that becomes test if none is stated: whole images, by their names."},
    )
    class_names: str | None = field(
        default=None, metadata={"help": "Names of class numbers, for YOLO and masks: lines, or YAML with `names`."}
    )
    voc_corners: str = field(
        default="auto",
        metadata={
            "help": "Whether pixels of VOC corners count from 1 or from 0; auto: from 0 if any corner is 0.",
            "choices": ["auto", "one_based", "zero_based"],
        },
    )
    min_area: int = field(default=9, metadata={"help": "Smallest part of a mask that counts as an object, in pixels."})
    count_components: bool = field(
        default=False, metadata={"help": "In class masks no objects touch: count connected parts as objects."}
    )
    keep_difficult: bool = field(
        default=False, metadata={"help": "Speak of boxes that are marked as difficult or as crowds, too."}
    )


def main() -> None:
    args, texts = parse_arguments([BoxArguments, TextArguments], __doc__)
    check_replaceable(Path(args.out), DATA_FOLDER)
    check_fraction(args.val_fraction)
    check_fraction(args.test_fraction, "--test_fraction")
    wording = read_wording(texts.wording)
    options = AnnotationOptions(args.class_names, args.voc_corners, args.min_area, args.count_components)
    annotations = read_annotations(args.annotations, args.format, args.split, options)
    images, problems = label_images(annotations, Path(args.image_root), args.keep_difficult)
    images = carve_images(images, {"test": args.test_fraction, "val": args.val_fraction})
    built = build_texts(images, annotations.classes, args.source, wording, texts)
    accounts = account_for(annotations, images, problems) | {"without_texts": len(images) - len(built.records)}
    facts = {"annotations": accounts, "classes": built.classes, **texts.facts(wording)}
    files = {
        "annotations.jsonl": problem_lines(problems),
        "card.md": write_card(built.records, facts, args.source),
        "wording.yaml": wording.dump(),
    }
    out, inputs = Path(args.out), annotations.inputs
    manifest = write_data_folder(out, built.records, built.rejections, Path(args.image_root), inputs, facts, files)
    print_accounts(accounts)
    print_manifest(manifest)
    print(f"Data folder: {out}; what was built: {out / 'card.md'}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
