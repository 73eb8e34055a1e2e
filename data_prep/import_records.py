"""Read files of another project into a data folder.

    python data_prep/import_records.py --source train.jsonl --format swift --image_root images --out data/theirs

Formats are those of export.py, and the files may come from it or from others. Images are found below --image_root by
their path, or where that is their authors' own, by its end. Rows that cannot be used are counted in manifest.json and
listed with their reason in rejected.jsonl. WebDataset shards write their images to --image_root, a new folder.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.formats.importing import import_folder, print_left_out
from sarlang_sft.formats.table import IMPORTABLE
from sarlang_sft.records import SPLITS, print_manifest


@dataclass
class ImportArguments:
    source: str = field(metadata={"help": "File, or folder with files at any depth."})
    format: str = field(metadata={"help": "Format to read.", "choices": list(IMPORTABLE)})
    out: str = field(metadata={"help": "Data folder to write."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the folder of --source, or OUT_images."}
    )
    split: str = field(
        default="train", metadata={"help": "Split of files whose name states none.", "choices": list(SPLITS)}
    )
    val_fraction: float = field(default=0.02, metadata={"help": "Part of train that becomes val if none is stated."})


def main() -> None:
    (args,) = parse_arguments([ImportArguments], __doc__)
    image_root = Path(args.image_root) if args.image_root else None
    manifest, left_out = import_folder(
        Path(args.source), args.format, Path(args.out), image_root, args.split, args.val_fraction
    )
    print_manifest(manifest)
    print_left_out(left_out)
    print(f"Data folder: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
