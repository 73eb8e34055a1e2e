"""Convert the SARLANG-1M release (or a sample in its layout) to a data folder.

    python data_prep/convert_sarlang.py --root SARLANG-1M --out data/sarlang
    python data_prep/convert_sarlang.py --root Text.zip --image_root SARLANG-1M --out data/sarlang --strict

The text files are found at any depth and in any case, unpacked or in Text.zip; images by their stem. Rows that cannot
be used are counted in manifest.json and listed with their reason in rejected.jsonl. The counts are printed beside the
published ones. No image is decoded and none is copied.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import DATA_FOLDER, print_manifest, write_data_folder
from sarlang_sft.sarlang import VQA_PROMPT, Prompts, check_prompts, convert
from sarlang_sft.sarlang_counts import compare_with_published
from sarlang_sft.sarlang_texts import CAPTION_PROMPT, compare_twins
from sarlang_sft.whole_output import check_replaceable


@dataclass
class ConvertArguments:
    root: str = field(metadata={"help": "Unpacked release, with Text/ (or Text.zip) and the images; or Text.zip."})
    out: str = field(metadata={"help": "Data folder to write."})
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images; default: that of --root."})
    val_fraction: float = field(default=0.02, metadata={"help": "Part of the training images that becomes val."})
    strict: bool = field(
        default=False,
        metadata={"help": "Write nothing where CSV and JSON disagree or a count differs from the published one."},
    )
    caption_prompt: str = field(default=CAPTION_PROMPT, metadata={"help": "Prompt of concise captions."})
    complex_caption_prompt: str = field(default=CAPTION_PROMPT, metadata={"help": "Prompt of complex captions."})
    vqa_prompt: str = field(default=VQA_PROMPT, metadata={"help": "Prompt of questions; must hold {question}."})
    class_prefix: str = field(
        default="auto",
        metadata={
            "help": "Official class list before SARVQA1 questions; auto: where SARVQA1 and SARVQA2 are mixed.",
            "choices": ["auto", "always", "never"],
        },
    )


def main() -> None:
    (args,) = parse_arguments([ConvertArguments], __doc__)
    check_prompts(vqa=args.vqa_prompt, caption=args.caption_prompt, complex_caption=args.complex_caption_prompt)
    root = Path(args.root)
    image_root = Path(args.image_root or (root.parent if root.is_file() else root))
    prompts = Prompts(args.caption_prompt, args.complex_caption_prompt, args.vqa_prompt, args.class_prefix)
    check_replaceable(Path(args.out), DATA_FOLDER)
    compare_twins(root, args.strict)
    records, rejections, inputs = convert(root, image_root, args.val_fraction, prompts)
    compare_with_published(records, args.strict)
    manifest = write_data_folder(Path(args.out), records, rejections, image_root, inputs)
    print_manifest(manifest)
    print(f"Data folder: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
