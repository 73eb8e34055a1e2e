r"""SARCap: a CoCa, contrastive and captioning, trained on a data folder with captions, in one stage or several.

    torchrun --nproc_per_node 8 recipes/sarcap.py --config recipes/configs/sarcap_vit_l_14.yaml
    python recipes/sarcap.py --model_name_or_path coca_ViT-L-14 --weights coca_laion2b.safetensors \
        --data data/sarlang --output_dir runs/sarcap --micro_batch_size 16 --caption_loss_weight 1

The loss is the contrastive one of recipes/sarclip.py plus that of every caption token, weighed by
`--contrastive_loss_weight` and `--caption_loss_weight`. eval/caption.py lets the result write captions by beam search;
all that evaluates a SARCLIP takes it, too. docs/sarclip.md has the whole road.
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
