r"""Full fine-tuning of a LLaVA model on a data folder.

    python recipes/llava_full.py                                     # the demo's base: a tiny model on optical scenes
    torchrun --nproc_per_node 8 recipes/llava_full.py --model_name_or_path llava-hf/llava-1.5-7b-hf \
        --data data/sarlang --output_dir runs/llava_7b_full --deepspeed deepspeed_configs/zero3.json

Dialogues of an image share its tokens (image trees, docs/image_trees.md; `--image_trees false` is the flat path).
The loss is on the answers only. The language model trains; `--projector full` and `--vision_tower full` add theirs,
`--tuning full` both (docs/tuning.md). The model, its processor and its image operations land in `output_dir`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import find_backbone
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.loading import build_skeleton, load_processor, load_weights
from sarlang_sft.roll_call import ending_together
from sarlang_sft.runs import open_run
from sarlang_sft.training import (
    build_trainer,
    check_supervision,
    leave_if_stopped,
    make_collator,
    make_missing_inputs,
    plan_rows,
    prepare_attention,
    prepare_tuning,
    save_result,
)
from sarlang_sft.tuning import TUNINGS, TuningArguments

DEMO = Path(__file__).parent / "configs" / "demo_llava_base.yaml"


@dataclass
class FullModelArguments(ModelArguments):
    """The model to start from; in float32, because the optimiser's small steps vanish in bfloat16 weights."""

    dtype: str = field(
        default="float32", metadata={"help": "Type of the weights; `--bf16 true` computes in bfloat16 all the same."}
    )


@dataclass
class FullTuningArguments(TuningArguments):
    """How each component is tuned; here the language model in full by default."""

    tuning: str = field(default="language_model", metadata={"help": f"A named way to tune: {', '.join(TUNINGS)}."})


def main() -> None:
    arguments = [FullModelArguments, FullTuningArguments, DataArguments, TrainArguments]
    model_args, tuning, data, training = parse_arguments(arguments, __doc__, DEMO)
    make_missing_inputs(model_args, data, training)

    backbone = find_backbone(model_args.model_name_or_path, recipes="llava")
    processor = load_processor(model_args.model_name_or_path, backbone, data.max_pixels)
    skeleton = build_skeleton(model_args.model_name_or_path, backbone, training.hf_deepspeed_config)
    attention = prepare_attention(model_args, data, training)
    trainable, quantisation = prepare_tuning(skeleton, backbone, model_args, tuning, training)
    run = open_run(model_args, tuning, data, training)
    plan = plan_rows(processor, backbone, skeleton.config, data, training)
    collator = make_collator(processor, backbone, data, attention, run)
    check_supervision(collator, plan.train)

    model = load_weights(
        model_args.model_name_or_path, backbone, model_args.dtype, attention.by_config(), quantisation
    )
    trainer = build_trainer(model, collator, plan, attention, trainable, tuning, data, training, run)
    result = trainer.train()
    leave_if_stopped(trainer)
    save_result(trainer, data, result.metrics)


if __name__ == "__main__":
    with ending_together():
        main()
