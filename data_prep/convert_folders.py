"""Convert class folders, `<split>/<class>/*.{png,jpg,jpeg,bmp,tif}`, to a data folder.

    python data_prep/convert_folders.py --root MSTAR --out data/mstar --source MSTAR

Every image gets its class as a question, yes and no questions (as many with each class), and captions of the families
General and Complex: the class, and what it is a kind of where the wording says so (docs/text_from_boxes.md).
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.class_folders import convert_folders
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import DATA_FOLDER, print_manifest, write_data_folder
from sarlang_sft.whole_output import check_replaceable


@dataclass
class FolderArguments:
    root: str = field(metadata={"help": "Folder with train/ and test/, each with one folder per class."})
    out: str = field(metadata={"help": "Data folder to write."})
    source: str = field(default="folders", metadata={"help": "Name of the data set, kept in every record."})
    val_fraction: float = field(default=0.02, metadata={"help": "Part of train that becomes val if there is no val/."})
    wording: str = field(default="en", metadata={"help": "Words of the texts: a built-in wording, or a file."})
    captions: int = field(default=5, metadata={"help": "Captions of an image, as far as the wording has so many."})
    seed: int = field(default=0, metadata={"help": "Draws forms, and the classes that are asked for."})

    def __post_init__(self) -> None:
        if min(self.captions, self.seed) < 0:
            raise ValueError("--captions and --seed must be 0 or more")


def main() -> None:
    (args,) = parse_arguments([FolderArguments], __doc__)
    wording = read_wording(args.wording)
    root = Path(args.root)
    check_replaceable(Path(args.out), DATA_FOLDER)
    records, rejections, inputs = convert_folders(
        root, args.source, args.val_fraction, wording, args.captions, args.seed
    )
    facts = {"wording": {"name": wording.name, "hash": wording.hash}}
    files = {"wording.yaml": wording.dump()}
    manifest = write_data_folder(Path(args.out), records, rejections, root, inputs, facts, files)
    print_manifest(manifest)
    print(f"Data folder: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
