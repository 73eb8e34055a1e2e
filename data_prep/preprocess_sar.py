"""Turn radar images into 8-bit pictures as SARLANG-1M's authors did: one polarisation, speckle filter, log, stretch.

    python data_prep/preprocess_sar.py --root OpenEarthMap-SAR --out data/oem_png
    python data_prep/preprocess_sar.py --root BigEarthNet-S1 --out data/ben_png --bands VV VH --combine colour
    python data_prep/preprocess_sar.py --root scenes --out data/tiles --nodata 0 --tile 512

Reads 8- and 16-bit, float and complex GeoTIFF of any size, PNG, JPEG and BMP. A stopped run goes on where it was when
it is started again. docs/preprocessing.md says what is done and why.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.preprocessing import Chain
from sarlang_sft.preprocessing_run import preprocess_folder, print_summary


@dataclass
class PreprocessArguments:
    root: str = field(metadata={"help": "Folder with the images, at any depth."})
    out: str = field(metadata={"help": "Folder for the PNGs, in the same tree, and for what was done to each."})
    workers: int | None = field(
        default=None, metadata={"help": "Processes, of about 0.5 GB each. Default: all cores."}
    )
    strict: bool = field(default=False, metadata={"help": "End with exit code 2 if any image cannot be used."})


def main() -> None:
    args, chain = parse_arguments([PreprocessArguments, Chain], __doc__)
    summary = preprocess_folder(Path(args.root), Path(args.out), chain, args.workers)
    print_summary(summary)
    if args.strict and summary["rejected"]:
        raise InputError(f"--strict: {sum(summary['rejected'].values())} images cannot be used (see above)")
    print(f"Pictures: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
