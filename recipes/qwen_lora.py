r"""LoRA fine-tuning of a Qwen-VL model on a data folder.

    python recipes/qwen_lora.py                                     # the demo: a tiny model on simulated scenes, CPU
    torchrun --nproc_per_node 8 recipes/qwen_lora.py --config recipes/configs/qwen2_5_vl_7b_lora.yaml
    torchrun --nproc_per_node 8 recipes/qwen_lora.py --config recipes/configs/qwen2_5_vl_7b_lora.yaml \
        --deepspeed deepspeed_configs/zero2.json

Dialogues of an image share its tokens (image trees, docs/image_trees.md; `--image_trees false` is the flat path).
The loss is on the answers only. Adapters sit on the language model's linear layers; `--tuning qlora`, `dora`,
`lora_projector` and others change that in one word (docs/tuning.md). The adapter, its processor and its image
operations land in `output_dir`.
"""

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
from sarlang_sft.tuning import TuningArguments

DEMO = Path(__file__).parent / "configs" / "demo.yaml"


def main() -> None:
    arguments = [ModelArguments, TuningArguments, DataArguments, TrainArguments]
    model_args, tuning, data, training = parse_arguments(arguments, __doc__, DEMO)
    make_missing_inputs(model_args, data, training)

    backbone = find_backbone(model_args.model_name_or_path, recipes="qwen")
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
