r"""Release a merged model, an adapter, or a model trained in full: a folder with a model card, ready for the hub.

    python recipes/release.py --model runs/qwen_merged --run runs/qwen --data data/sarlang \
        --scores runs/qwen/eval/vqa.json runs/qwen/eval/captions.json --out releases/qwen-sar
    python recipes/release.py --model runs/qwen --data data/sarlang --scores runs/qwen/eval/vqa.json \
        --out releases/qwen-sar-lora --push_to USER/qwen-sar-lora

Everything in the card is read from the disk. What is missing, of another model, or failed a check refuses the release;
`--accept 'no_scores: a first look'` releases all the same, and the card tells why.
"""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.publishing import CHECKSUMS, check_login, push, write_release
from sarlang_sft.release_checks import ACCEPTABLE, accept
from sarlang_sft.release_facts import collect
from sarlang_sft.whole_output import check_replaceable


@dataclass
class ReleaseArguments:
    model: str = field(metadata={"help": "Folder of the merged model, the adapter, or the model trained in full."})
    data: list[str] = field(metadata={"help": "Data folders that were trained and scored on."})
    out: str = field(metadata={"help": "Folder to write; its name is the model's, unless --push_to names it."})
    scores: list[str] = field(default_factory=list, metadata={"help": "Files of eval/score_*.py on the split test."})
    baselines: list[str] = field(
        default_factory=list,
        metadata={"help": "Score files to stand beside: the base model's, blind or text-only ones."},
    )
    run: str | None = field(
        default=None, metadata={"help": "Output folder of the training; default: the model's own, or its adapter's."}
    )
    base: str | None = field(
        default=None, metadata={"help": "The base model's name on the hub, if it was trained from a folder."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Of the weights, by the hub's name for it; default: the base model's."}
    )
    data_license: list[str] = field(
        default_factory=list, metadata={"help": "Licences that are not known here: 'SOURCE: LICENCE' ..."}
    )
    accept: list[str] = field(
        default_factory=list,
        metadata={"help": f"Release in spite of a check: 'NAME: why' ..., NAME one of {', '.join(ACCEPTABLE)}."},
    )
    push_to: str | None = field(default=None, metadata={"help": "Also upload it to this USER/REPO on the hub."})
    private: bool = field(default=True, metadata={"help": "Make the repository private, if it is new."})


def main() -> None:
    (args,) = parse_arguments([ReleaseArguments], __doc__)
    out = Path(args.out)
    check_replaceable(out)
    if args.push_to:
        check_login(args.push_to)
    release = collect(
        Path(args.model),
        args.push_to or out.resolve().name,
        Path(args.run) if args.run else None,
        args.base,
        [Path(folder) for folder in args.data],
        [Path(path) for path in args.scores],
        [Path(path) for path in args.baselines],
        args.license,
        args.data_license,
    )
    release = accept(release, args.accept)
    write_release(release, out)
    print(f"Release: {out} (card: README.md; check it with `sha256sum -c {CHECKSUMS}`)")
    if args.push_to:
        print(f"Pushed: {push(out, args.push_to, args.private, HfApi())}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
