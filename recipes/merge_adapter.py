"""Merge an adapter into its base model for release.

    python recipes/merge_adapter.py --base Qwen/Qwen2.5-VL-7B-Instruct --adapter runs/qwen --out runs/qwen_merged

Finishes only if the merged checkpoint, loaded from its folder alone, gives the adapted model's logits on sample
inputs. The folder holds the processor and the image operations too.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.release import merge_adapter


@dataclass
class MergeArguments:
    base: str = field(metadata={"help": "Folder or hub name of the base model."})
    adapter: str = field(metadata={"help": "Folder of the adapter."})
    out: str = field(metadata={"help": "Folder to write; must not exist."})
    dtype: str = field(default="auto", metadata={"help": "bfloat16, float16, float32, or the base's (auto)."})


def main() -> None:
    (args,) = parse_arguments([MergeArguments], __doc__)
    report = merge_adapter(args.base, args.adapter, Path(args.out), args.dtype)
    print(
        f"The adapter moves the logits by up to {report.effect:.2e}; merging changes them by {report.max_abs_diff:.2e}"
    )
    print(f"Merged model: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
