r"""Put the vision tower of a SARCLIP into a LLaVA-1.5, for instruction tuning on radar images.

    python recipes/put_tower.py --tower runs/sarclip_vit_l_14 --base llava-hf/llava-1.5-7b-hf \
        --out runs/llava_sarclip_base
    torchrun --nproc_per_node 8 recipes/llava_full.py --config recipes/configs/llava_sarclip_projector.yaml
    torchrun --nproc_per_node 8 recipes/llava_lora.py --config recipes/configs/llava_sarclip_lora.yaml

The folder has the base's language model and tokenizer, the new tower, a processor that shows it pictures as SARCLIP
saw them, and its image operations. The projector is made anew and is to be trained first (the second command); give
--keep_projector if the tower was trained on from the base's own and little changed. The tower's features must equal
those of open_clip, or nothing is written. The base is copied tensor by tensor: a 7B needs the memory of its tower.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.llava_tower import describe, put_tower


@dataclass
class TowerArguments:
    tower: str = field(metadata={"help": "Folder of a contrastive model (recipes/sarclip.py), or hf-hub:OWNER/NAME."})
    base: str = field(metadata={"help": "Folder or hub name of a LLaVA-1.5."})
    out: str = field(metadata={"help": "Folder to write; must not exist."})
    keep_projector: bool = field(
        default=False, metadata={"help": "Keep the base's projector, which knows the features of the base's tower."}
    )
    seed: int = field(default=0, metadata={"help": "Of the new projector's weights."})


def main() -> None:
    (args,) = parse_arguments([TowerArguments], __doc__)
    report = put_tower(args.tower, args.base, Path(args.out), args.keep_projector, args.seed)
    print(describe(report))
    print(f"Model: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
