"""Convert the SARLANG-1M release (or a sample in its layout) to a data folder.

    python data_prep/convert_sarlang.py --root SARLANG-1M --out data/sarlang

The text files are found at any depth and in any case; images by their stem. Rows that cannot be used are counted in
manifest.json and listed with their reason in rejected.jsonl; no image is decoded and none is copied.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.records import print_manifest, write_data_folder
from sarlang_sft.sarlang import CAPTION_PROMPT, VQA_PROMPT, Prompts, convert


@dataclass
class ConvertArguments:
    root: str = field(metadata={"help": "Unpacked release, with Text/ and the images below it."})
    out: str = field(metadata={"help": "Data folder to write."})
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images; default: --root."})
    val_fraction: float = field(default=0.02, metadata={"help": "Part of the training images that becomes val."})
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
    if "{question}" not in args.vqa_prompt:
        raise InputError("--vqa_prompt must hold {question}, the place of the question")
    root, image_root = Path(args.root), Path(args.image_root or args.root)
    prompts = Prompts(args.caption_prompt, args.complex_caption_prompt, args.vqa_prompt, args.class_prefix)
    records, rejections, inputs = convert(root, image_root, args.val_fraction, prompts)
    manifest = write_data_folder(Path(args.out), records, rejections, image_root, inputs)
    print_manifest(manifest)
    print(f"Data folder: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
