r"""SARCLIP: contrastive training of image and text on a data folder with captions, in one stage or several.

    make demo-sarclip                                               # a tiny model on simulated scenes, CPU
    torchrun --nproc_per_node 8 recipes/sarclip.py --config recipes/configs/sarclip_vit_l_14.yaml
    python recipes/sarclip.py --model_name_or_path ViT-B-32 --weights RemoteCLIP-ViT-B-32.safetensors \
        --data data/sarlang --output_dir runs/sarclip --tuning lora --global_batch_size 512 --micro_batch_size 64

The pairs of all ranks are told apart, with exact gradients; `--micro_batch_size` bounds what is in memory at a time.
Pairs that are true of each other are no negatives (`--negatives`). Each stage goes on after a kill where its last
complete checkpoint is, and the next begins with its result. docs/sarclip.md has the whole road.
"""

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.arguments import PairDataArguments, PairModelArguments, PairTrainArguments, split_stages
from sarlang_sft.contrastive.training import check_stages, train_stage
from sarlang_sft.contrastive.tuning import PairTuning
from sarlang_sft.roll_call import ending_together


def main() -> None:
    arguments = [PairModelArguments, PairTuning, PairDataArguments, PairTrainArguments]
    model, tuning, data, training = parse_arguments(arguments, __doc__)
    stages = split_stages(model, tuning, data, training)
    check_stages(stages)
    for stage in stages:
        train_stage(stage)


if __name__ == "__main__":
    with ending_together():
        main()
