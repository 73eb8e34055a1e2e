"""Convert class folders, `<split>/<class>/*.{png,jpg,jpeg,bmp,tif}`, to a data folder.

    python data_prep/convert_folders.py --root MSTAR --out data/mstar --source MSTAR

Every image gets four dialogues: its class, a yes and a no question (balanced), and a general caption.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.class_folders import convert_folders
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import DATA_FOLDER, print_manifest, write_data_folder
from sarlang_sft.sarlang import VQA_PROMPT, check_prompts
from sarlang_sft.sarlang_texts import CAPTION_PROMPT
from sarlang_sft.whole_output import check_replaceable


@dataclass
class FolderArguments:
    root: str = field(metadata={"help": "Folder with train/ and test/, each with one folder per class."})
    out: str = field(metadata={"help": "Data folder to write."})
    source: str = field(default="folders", metadata={"help": "Name of the data set, kept in every record."})
    val_fraction: float = field(default=0.02, metadata={"help": "Part of train that becomes val if there is no val/."})
    caption_prompt: str = field(default=CAPTION_PROMPT, metadata={"help": "Prompt of the captions."})
    vqa_prompt: str = field(default=VQA_PROMPT, metadata={"help": "Prompt of questions; must hold {question}."})
    seed: int = field(default=0, metadata={"help": "Draws the classes of the no questions."})


def main() -> None:
    (args,) = parse_arguments([FolderArguments], __doc__)
    check_prompts(vqa=args.vqa_prompt, caption=args.caption_prompt)
    root = Path(args.root)
    check_replaceable(Path(args.out), DATA_FOLDER)
    records, rejections, inputs = convert_folders(
        root, args.source, args.val_fraction, args.caption_prompt, args.vqa_prompt, args.seed
    )
    manifest = write_data_folder(Path(args.out), records, rejections, root, inputs)
    print_manifest(manifest)
    print(f"Data folder: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
