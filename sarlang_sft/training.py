"""The TRL trainer assembled: arguments, data, model, and what is saved at the end."""

import math
import os
import shutil
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import deepspeed
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import SFTConfig

from sarlang_sft.adapters import keep_initial, lora_config, save_as_lora
from sarlang_sft.attention import CHOICES, FLEX, Attention, check_isolates_branches, choose_attention
from sarlang_sft.backbones import BACKBONES, DTYPES, Backbone, component_of
from sarlang_sft.box_texts import write_table
from sarlang_sft.collate import DialogueCollator
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import parse_ops, save_ops
from sarlang_sft.lengths import measure
from sarlang_sft.mixture import DataSource, Mixture, parse_sources, read_mixture
from sarlang_sft.packing import (
    Layout,
    LeftOut,
    PlannedRows,
    describe_left_out,
    describe_plan,
    find_left_out,
    plan_epochs,
    write_left_out,
)
from sarlang_sft.quantisation import quantisation
from sarlang_sft.records import TASKS, read_dialogue_table, write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.trainable import (
    Trainable,
    check_trainable,
    choose_trainable,
    component_table,
    count_components,
    freeze_all_but,
    own_name,
    run_frozen_without_gradient,
)
from sarlang_sft.trainer import DialogueTrainer
from sarlang_sft.trees import TreeCollator
from sarlang_sft.tuning import TuningArguments

SAMPLE_SCENES = 200
CHECKPOINTED = ("both", "vision_tower", "language_model")


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(metadata={"help": "Folder or hub name of the model to tune."})
    dtype: str = field(
        default="bfloat16", metadata={"help": "Weights are loaded as bfloat16, float16 or float32 (or `auto`)."}
    )
    attn_implementation: str = field(default="auto", metadata={"help": f"One of {', '.join(CHOICES)}."})
    tiny_folder: str | None = field(
        default=None,
        metadata={"help": "If this model_name_or_path is missing, an untaught tiny model is made there (demo)."},
    )
    tiny_family: str = field(
        default="qwen2_5_vl", metadata={"help": f"Family of the tiny model: {', '.join(BACKBONES)}."}
    )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype `{self.dtype}`: choose one of {', '.join(DTYPES)}")
        if self.tiny_family not in BACKBONES:
            raise InputError(f"tiny_family `{self.tiny_family}`: choose one of {', '.join(BACKBONES)}")


@dataclass
class DataArguments:
    """What to learn from."""

    data: str = field(
        metadata={
            "help": "Data folder written by data_prep/convert_*.py; in YAML also a list of {path, weight, tasks, "
            "subsets, caps, image_root} (docs/data.md)."
        }
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the data folder's."}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": f"Learn only these applications, of {', '.join(TASKS)}; default: all."}
    )
    image_ops: list[str] = field(
        default_factory=list,
        metadata={"help": "Image operations in order, e.g. log standardise crop:64 shift:4; saved with the result."},
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Upper bound of width x height after the resize; default: the processor's."}
    )
    image_trees: bool = field(
        default=True,
        metadata={"help": "Dialogues of an image share its tokens (docs/image_trees.md); false: one per row, flat."},
    )
    max_tokens_per_row: int = field(default=4096, metadata={"help": "Image trees are packed into rows up to this."})
    turns_per_image: int | None = field(
        default=None, metadata={"help": "Dialogues of an image per epoch, drawn anew each time; default: all."}
    )
    sample_folder: str | None = field(
        default=None,
        metadata={"help": "If this data folder is missing, it is made of 200 simulated scenes (demo)."},
    )
    sample_images: str = field(
        default="SARimages", metadata={"help": "Images of the simulated scenes: SARimages or RGBimages (optical)."}
    )

    def __post_init__(self) -> None:
        parse_ops(self.image_ops)
        for task in self.tasks:
            if task not in TASKS:
                raise InputError(f"tasks: `{task}` is no application; choose from {', '.join(TASKS)}")
        if self.max_tokens_per_row < 1:
            raise InputError(f"max_tokens_per_row {self.max_tokens_per_row}: must be at least 1")
        if self.turns_per_image is not None and self.turns_per_image < 1:
            raise InputError(f"turns_per_image {self.turns_per_image}: must be at least 1; leave it out for all")
        self.sources()

    def sources(self) -> list[DataSource]:
        """The data folders of the mixture."""
        return parse_sources(self.data, self.tasks, self.image_root)


@dataclass
class TrainArguments(SFTConfig):
    """TRL's SFTConfig; on a machine without a GPU it trains on the CPU, over gloo under torchrun, `bf16` off."""

    max_length: int | None = field(default=None, metadata={"help": "Not used: bound the image by max_pixels instead."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator reads every column."}
    )
    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "Rows per device: dialogues, or with image trees rows of max_tokens_per_row."}
    )
    dataloader_num_workers: int = field(
        default=2, metadata={"help": "Processes per rank that read and prepare the next rows."}
    )
    checkpointed: str = field(
        default="both",
        metadata={
            "help": "Whose activations gradient_checkpointing computes twice instead of keeping: both, vision_tower "
            "or language_model (none: `gradient_checkpointing: false`)."
        },
    )
    loss_weighting: str = field(
        default="token", metadata={"help": "token: mean over supervised tokens; answer: every answer weighs the same."}
    )

    def __post_init__(self) -> None:
        if self.max_length is not None:
            raise InputError(
                "max_length: cutting a sequence cuts image tokens; bound the image with max_pixels instead"
            )
        if self.packing or self.padding_free:
            raise InputError("packing and padding_free: TRL's are for text only; image trees pack by themselves")
        if self.loss_weighting not in ("token", "answer"):
            raise InputError(f"loss_weighting `{self.loss_weighting}`: choose token or answer")
        if self.checkpointed not in CHECKPOINTED:
            raise InputError(f"checkpointed `{self.checkpointed}`: choose one of {', '.join(CHECKPOINTED)}")
        if self.use_liger_kernel:
            raise InputError(
                "use_liger_kernel: not verified for any family here; leave it off (the head is fused without it)"
            )
        if not self.average_tokens_across_devices:
            raise InputError(
                "average_tokens_across_devices: must stay on: the loss is the mean over all ranks' tokens"
            )
        if self.dataloader_persistent_workers:
            raise InputError("dataloader_persistent_workers: must stay off: every epoch draws its rows anew")
        if self.loss_type != "nll" or self.label_smoothing_factor:
            raise InputError("loss_type and label_smoothing_factor: only the plain loss (nll, 0) is computed")
        if Path(self.output_dir or "").is_file():
            raise InputError(f"output_dir {self.output_dir}: is a file; give the name of a folder")
        if self.resume_from_checkpoint and not Path(self.resume_from_checkpoint).is_dir():
            raise InputError(f"resume_from_checkpoint {self.resume_from_checkpoint}: no such folder")
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.use_cpu:
            if self.activation_offloading:
                raise InputError("activation_offloading: moves activations off the GPU; there is none here")
            self.bf16 = bool(self.bf16)
            self.dataloader_pin_memory = False
        if self.deepspeed:
            _prepare_deepspeed(self.use_cpu)
        if self.use_cpu and "WORLD_SIZE" in os.environ:
            self.ddp_backend = "gloo"
        self.hf_deepspeed_config = None  # which transformers sets only if there is one
        super().__post_init__()
        if self.checkpointed != "both" and not self.gradient_checkpointing:
            raise InputError(f"checkpointed {self.checkpointed}: gradient_checkpointing is off; leave one of them out")


def _prepare_deepspeed(on_cpu: bool) -> None:
    """Start DeepSpeed's process group before any model is loaded: ZeRO-3 partitions weights while they load."""
    if on_cpu and not (shutil.which("c++") or shutil.which("g++")):
        raise InputError("deepspeed on a CPU compiles its communication kernels: install a C++ compiler (g++)")
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", verbose=False)


def make_missing_inputs(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Make the demo's sample and tiny model where they are missing, on one rank per node.

    Only the folders that the configuration itself names for that are made: another `--data` or `--model_name_or_path`
    that does not exist stays an error.
    """
    with training.main_process_first(desc="making missing inputs"):
        folder = Path(data.sources()[0].path)
        if data.data == data.sample_folder and not (folder / "manifest.json").is_file():
            sample = folder.parent / "sample"
            if not (sample / "truth.json").is_file():
                print(
                    f"{folder} is missing: making a sample of {SAMPLE_SCENES} simulated scenes in {sample}", flush=True
                )
                write_sample(sample, SAMPLE_SCENES, seed=0)
            image_root = sample / data.sample_images
            records, rejections, inputs = convert(sample, image_root, 0.02, Prompts())
            write_data_folder(folder, records, rejections, image_root, inputs)
        base = Path(model.model_name_or_path)
        if model.model_name_or_path == model.tiny_folder and not (base / "config.json").is_file():
            print(f"{base} is missing: making an untaught tiny {model.tiny_family} there", flush=True)
            dialogues = read_dialogue_table(folder, "train")["turns"].to_pylist()
            texts = [text for dialogue in dialogues for turn in dialogue for text in turn.values()]
            BACKBONES[model.tiny_family].build_tiny(base, texts, training.seed)


def prepare_attention(model: ModelArguments, data: DataArguments, training: TrainArguments) -> Attention:
    """Choose the attention kernels, print them, and refuse image trees for models that would mix their branches."""
    if data.image_trees:
        check_isolates_branches(model.model_name_or_path, data.max_tokens_per_row)
    half = model.dtype != "float32" or bool(training.bf16 or training.fp16)
    attention = choose_attention(model.attn_implementation, data.image_trees, not training.use_cpu, half)
    if training.process_index == 0:
        print(attention, flush=True)
    return attention


def prepare_tuning(
    skeleton: PreTrainedModel,
    backbone: Backbone,
    model: ModelArguments,
    tuning: TuningArguments,
    training: TrainArguments,
) -> tuple[Trainable, BitsAndBytesConfig | None]:
    """What trains, and how the weights are quantised; refuses what cannot be before any weight is loaded."""
    zero3 = training.deepspeed_plugin is not None and training.deepspeed_plugin.zero_stage == 3
    if zero3 and (tuning.bits() or tuning.init_lora_weights != "default"):
        raise InputError(
            "deepspeed: ZeRO-3 cuts the weights that quantisation, pissa and eva read whole; use "
            "deepspeed_configs/zero2.json"
        )
    if not tuning.adapts() and model.dtype != "float32" and not (training.bf16 or training.fp16):
        raise InputError(
            f"dtype {model.dtype}: weights of 16 bits round small steps away; set --bf16 true, which computes in 16 "
            "bits and keeps what trains in 32, or --dtype float32"
        )
    trainable = choose_trainable(skeleton, backbone, tuning)
    return trainable, quantisation(skeleton, backbone, tuning.bits(), model.dtype)


class Plan(NamedTuple):
    """The rows to train on, and those of the split `val` where the run evaluates."""

    train: PlannedRows
    val: PlannedRows | None


def plan_rows(
    processor: ProcessorMixin,
    backbone: Backbone,
    config: PretrainedConfig,
    data: DataArguments,
    training: TrainArguments,
) -> Plan:
    """Plan the rows of the whole training; prints what an epoch consists of and what is left out.

    What is left out also goes to `left_out.jsonl` in the output folder, one line per dialogue. Evaluation takes all
    dialogues of the wanted tasks and subsets once, whatever the weights and caps.
    """
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    context = config.get_text_config().max_position_embeddings
    _check_pixels(processor, data.max_pixels, context)
    layout = Layout(data.image_trees, data.max_tokens_per_row, data.turns_per_image, per_step, context=context)
    sources = data.sources()
    out = Path(training.output_dir) / "left_out.jsonl" if training.process_index == 0 else None
    train = _plan_split(sources, "train", layout, processor, backbone, data, training, out)
    val = None
    if training.eval_strategy != "no":
        everything = [replace(source, weight=1.0, caps={}) for source in sources]
        per_step = training.per_device_eval_batch_size
        layout = Layout(data.image_trees, data.max_tokens_per_row, None, per_step, False, context)
        val = _plan_split(everything, "val", layout, processor, backbone, data, training, None)
    # Counting used the tokenizer's threads; in loader workers, which are forked, it would warn about them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Plan(train, val)


def _check_pixels(processor: ProcessorMixin, max_pixels: int | None, context: int) -> None:
    if max_pixels is None:
        return
    side = math.isqrt(max_pixels)
    [tokens] = processor._get_num_multimodal_tokens(image_sizes=[(side, side)])["num_image_tokens"]
    if tokens > context:
        raise InputError(
            f"max_pixels {max_pixels}: an image of that many takes {tokens:,} tokens, the model's context has "
            f"{context:,}; set it to at most {max_pixels * context // tokens}"
        )


def _plan_split(
    sources: list[DataSource],
    split: str,
    layout: Layout,
    processor: ProcessorMixin,
    backbone: Backbone,
    data: DataArguments,
    training: TrainArguments,
    left_out_file: Path | None,
) -> PlannedRows:
    table, unwritten = write_table(read_mixture(sources, split), processor, backbone, data.image_ops)
    lengths = measure(table, processor, backbone, data.image_ops)
    left_out = [LeftOut(row, reason) for row, reason in unwritten.items()]
    left_out += [found for found in find_left_out(lengths, layout) if found.dialogue not in unwritten]
    if training.process_index == 0:
        print("\n".join(f"{split} {line}" for line in describe_left_out(left_out, table)), end="\n" * bool(left_out))
    if left_out_file:
        write_left_out(left_out_file, left_out, table)
    mixture = Mixture(sources, table)
    epochs = plan_epochs(mixture, lengths, left_out, layout, training.seed, 1)
    wanted = math.ceil(training.num_train_epochs)
    if training.max_steps > 0:
        wanted = math.ceil(training.max_steps * layout.rows_per_step / len(epochs[0]))
    if layout.shuffle and wanted > 1:
        epochs = plan_epochs(mixture, lengths, left_out, layout, training.seed, wanted)
    if training.process_index == 0:
        print(f"{split} {describe_plan(epochs, lengths, layout)}", flush=True)
    return PlannedRows(table, epochs, data.image_trees)


def make_collator(
    processor: ProcessorMixin, backbone: Backbone, data: DataArguments, attention: Attention
) -> TreeCollator | DialogueCollator:
    """The collator of the planned rows."""
    if not data.image_trees:
        return DialogueCollator(processor, backbone, data.image_ops)
    row_length = data.max_tokens_per_row if attention.language_model == FLEX else None
    return TreeCollator(processor, backbone, data.image_ops, row_length)


def check_supervision(collator: TreeCollator | DialogueCollator, rows: PlannedRows) -> None:
    """Collate one row before any model is loaded; raises [`InputError`] if a token or an image of it is missing."""
    collator([rows[0]])


class SaveImageOps(TrainerCallback):
    """Puts the image operations into every checkpoint, so that each can be evaluated as it was trained."""

    def __init__(self, image_ops: list[str]) -> None:
        self.image_ops = image_ops

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Called by the trainer on every rank after a checkpoint is written."""
        if state.is_world_process_zero:
            save_ops(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.image_ops)


class CheckpointComponent(TrainerCallback):
    """Leaves activation checkpointing on in one component only."""

    def __init__(self, backbone: Backbone, component: str) -> None:
        self.backbone = backbone
        self.component = component

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: object
    ) -> None:
        """Called after the trainer has turned checkpointing on everywhere."""
        for name, module in model.named_modules():
            if isinstance(module, GradientCheckpointingLayer):
                own = own_name(name.removeprefix("module."))
                module.gradient_checkpointing &= component_of(own, self.backbone) == self.component


def build_trainer(
    model: PreTrainedModel,
    collator: TreeCollator | DialogueCollator,
    plan: Plan,
    attention: Attention,
    trainable: Trainable,
    tuning: TuningArguments,
    data: DataArguments,
    training: TrainArguments,
) -> DialogueTrainer:
    """TRL's trainer with our collator; prints the component table and refuses to train anything else than it says."""
    backbone = collator.backbone
    peft_config = lora_config(model, backbone, trainable, tuning)
    if peft_config is None:
        freeze_all_but(model, trainable)
    callbacks: list[TrainerCallback] = [SaveImageOps(data.image_ops)]
    if training.checkpointed != "both":
        callbacks.append(CheckpointComponent(backbone, training.checkpointed))
    trainer = DialogueTrainer(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=plan.train.dialogues,
        eval_dataset=plan.val,
        processing_class=collator.processor,
        peft_config=peft_config,
        callbacks=callbacks,
    )
    trainer.plan(plan.train, backbone, attention.language_model)
    run_frozen_without_gradient(trainer.model, backbone)
    check_trainable(trainer.model, trainable)
    if trainer.is_world_process_zero():
        counts = count_components(trainer.model, backbone, trainable)
        print(component_table(counts, trainable, tuning), flush=True)
    if not trainer.is_deepspeed_enabled:  # which keeps weights in 32 bits beside those of the model
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # 16 bits would round small steps away
    if tuning.init_lora_weights == "eva":
        trainer.start_from_data([plan.train[number] for number in range(min(tuning.eva_rows, len(plan.train)))])
    if tuning.init_lora_weights == "pissa" and trainer.is_world_process_zero():
        keep_initial(trainer.model, Path(training.output_dir))
    trainer.set_learning_rates(backbone, tuning)
    return trainer


def save_result(trainer: DialogueTrainer, data: DataArguments, metrics: dict[str, float]) -> None:
    """Write the adapter (or model), its processor, image operations and metrics to the top of the output folder.

    Raises:
        RuntimeError: The adapter file does not hold every trained tensor in full (as ZeRO-3 could leave it).
    """
    trainer.save_model()
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero():
        out = Path(trainer.args.output_dir)
        save_ops(out, data.image_ops)
        adapter = out / "adapter_model.safetensors"
        if isinstance(trainer.model, PeftModel):
            expected = sum(parameter.requires_grad for parameter in trainer.model.parameters())
            sizes = [tensor.numel() for tensor in load_file(adapter).values()]
            if len(sizes) != expected or not all(sizes):
                raise RuntimeError(
                    f"{adapter}: holds {len(sizes)} tensors ({sizes.count(0)} empty), expected {expected}"
                )
            if trainer.model.peft_config["default"].init_lora_weights == "pissa":
                save_as_lora(trainer.model, out)
        print(f"Done: {out}", flush=True)
