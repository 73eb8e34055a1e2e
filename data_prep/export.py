"""Write a data folder in the format of another project.

    python data_prep/export.py --data data/sarlang --format llamafactory --out exports/sarlang

Formats: llamafactory, swift, llava, trl, trl_completion, sarchat, webdataset, vlmevalkit; docs/formats.md says what
each holds. Rows refer to the images where they are; WebDataset shards hold them. import_records.py reads all but
vlmevalkit back.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.formats.exporting import export, print_export
from sarlang_sft.formats.table import FORMATS
from sarlang_sft.records import SPLITS, image_root_of


@dataclass
class ExportArguments:
    data: str = field(metadata={"help": "Data folder."})
    format: str = field(metadata={"help": "Format to write.", "choices": list(FORMATS)})
    out: str = field(metadata={"help": "Folder to write; an earlier export there is replaced."})
    split: list[str] = field(
        default_factory=lambda: list(SPLITS), metadata={"help": "Splits to write.", "choices": list(SPLITS)}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images; default: the manifest's."})
    image_paths: str | None = field(
        default=None,
        metadata={
            "help": "How rows name images; default: relative to the image root for llava, absolute for others.",
            "choices": ["absolute", "relative"],
        },
    )
    shard_size: int = field(default=1000, metadata={"help": "Records per WebDataset shard."})


def main() -> None:
    (args,) = parse_arguments([ExportArguments], __doc__)
    data, out = Path(args.data), Path(args.out)
    image_root = image_root_of(data, args.image_root)
    summary = export(data, args.format, out, image_root, args.split, args.image_paths, args.shard_size)
    print_export(summary)
    print(f"Export: {out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
