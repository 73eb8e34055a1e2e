"""Merge an adapter, or several with weights, into their base model for release.

    python recipes/merge_adapter.py --base Qwen/Qwen2.5-VL-7B-Instruct --adapter runs/qwen --out runs/qwen_merged
    python recipes/merge_adapter.py --base Qwen/Qwen2.5-VL-7B-Instruct --adapter runs/a runs/b --weights 0.5 0.5 \\
        --combine ties --out runs/both

The weights are written tensor by tensor, so that a 72B merges in the memory of its largest tensor. Finishes only if
the folder has the base's keys, shapes and dtypes, and the model in it, loaded from there alone, gives the adapted
model's logits on sample inputs; that loads the model, and --no_logits_check leaves it out (docs/release.md).
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.combining import DENSITY, WAYS, Blend
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.release import describe, merge_adapters


@dataclass
class MergeArguments:
    base: str = field(metadata={"help": "Folder or hub name of the base model."})
    adapter: list[str] = field(metadata={"help": "Folder of the adapter, or of several."})
    out: str = field(metadata={"help": "Folder to write; must not exist."})
    dtype: str = field(default="auto", metadata={"help": "bfloat16, float16, float32, or the base's (auto)."})
    weights: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "A weight for each adapter; needed for several."}
    )
    combine: str = field(default="linear", metadata={"help": f"How several become one: {', '.join(WAYS)}."})
    density: float | None = field(
        default=None, metadata={"help": f"Part of the values that ties and dare keep; default: {DENSITY}."}
    )
    no_logits_check: bool = field(
        default=False, metadata={"help": "Load no model and compare no logits: for one that does not fit in memory."}
    )


def main() -> None:
    (args,) = parse_arguments([MergeArguments], __doc__)
    blend = Blend(args.adapter, args.weights, args.combine, args.density)
    report = merge_adapters(args.base, blend, Path(args.out), args.dtype, not args.no_logits_check)
    print(describe(report))
    print(f"Merged model: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
