"""The TRL trainer assembled: arguments, data, model, and what is saved at the end."""

import os
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import deepspeed
import pyarrow.compute as pc
import torch
from datasets.table import InMemoryTable
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from sarlang_sft.backbones import BACKBONES, Backbone
from sarlang_sft.collate import DialogueCollator
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import parse_ops, save_ops
from sarlang_sft.records import TASKS, image_root_of, read_dialogue_table, write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.tuning import (
    TuningArguments,
    check_components,
    component_table,
    count_components,
    freeze_components,
    lora_config,
)

SAMPLE_SCENES = 200


@dataclass
class ModelArguments:
    """The model to start from."""

    model_name_or_path: str = field(metadata={"help": "Folder or hub name of the model to tune."})
    dtype: str = field(
        default="bfloat16", metadata={"help": "Weights are loaded as bfloat16, float16 or float32 (or `auto`)."}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "sdpa, or flash_attention_2 where flash-attn is installed."}
    )
    tiny_folder: str | None = field(
        default=None,
        metadata={"help": "If this model_name_or_path is missing, an untaught tiny model is made there (demo)."},
    )
    tiny_family: str = field(
        default="qwen2_5_vl", metadata={"help": f"Family of the tiny model: {', '.join(BACKBONES)}."}
    )

    def __post_init__(self) -> None:
        if self.tiny_family not in BACKBONES:
            raise InputError(f"tiny_family `{self.tiny_family}`: choose one of {', '.join(BACKBONES)}")


@dataclass
class DataArguments:
    """What to learn from."""

    data: str = field(metadata={"help": "Data folder written by data_prep/convert_*.py."})
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


@dataclass
class TrainArguments(SFTConfig):
    """TRL's SFTConfig; on a machine without a GPU it trains on the CPU, over gloo under torchrun, `bf16` off."""

    max_length: int | None = field(default=None, metadata={"help": "Not used: bound the image by max_pixels instead."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator reads every column."}
    )

    def __post_init__(self) -> None:
        if self.max_length is not None:
            raise InputError(
                "max_length: cutting a sequence cuts image tokens; bound the image with max_pixels instead"
            )
        if self.packing or self.padding_free:
            raise InputError("packing and padding_free: TRL offers them for text only; leave them off")
        if Path(self.output_dir or "").is_file():
            raise InputError(f"output_dir {self.output_dir}: is a file; give the name of a folder")
        if self.resume_from_checkpoint and not Path(self.resume_from_checkpoint).is_dir():
            raise InputError(f"resume_from_checkpoint {self.resume_from_checkpoint}: no such folder")
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.bf16 = bool(self.bf16)
            self.dataloader_pin_memory = False
        if self.deepspeed:
            _prepare_deepspeed(self.use_cpu)
        if self.use_cpu and "WORLD_SIZE" in os.environ:
            self.ddp_backend = "gloo"
        super().__post_init__()


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
        folder = Path(data.data)
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


def load_dialogues(data: DataArguments, split: str) -> datasets.Dataset:
    """The dialogues of a split as rows of `read_dialogue_table`; images stay paths."""
    table = read_dialogue_table(Path(data.data), split)
    if data.tasks:
        table = table.filter(pc.field("task").isin(data.tasks))
    if split == "train" and len(table) == 0:
        raise InputError(
            f"data {data.data}: the split train holds no dialogue" + (f" of {data.tasks}" if data.tasks else "")
        )
    return datasets.Dataset(InMemoryTable(table))


def make_collator(processor: ProcessorMixin, backbone: Backbone, data: DataArguments) -> DialogueCollator:
    """The collator of a data folder's dialogues."""
    root = image_root_of(Path(data.data), data.image_root)
    return DialogueCollator(processor, backbone, root, data.image_ops)


def check_supervision(collator: DialogueCollator, dialogues: datasets.Dataset) -> None:
    """Collate one dialogue before any model is loaded; raises [`InputError`] if no token of it would carry loss."""
    collator([dialogues[0]])


class SaveImageOps(TrainerCallback):
    """Puts the image operations into every checkpoint, so that each can be evaluated as it was trained."""

    def __init__(self, image_ops: list[str]) -> None:
        self.image_ops = image_ops

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Called by the trainer on every rank after a checkpoint is written."""
        if state.is_world_process_zero:
            save_ops(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.image_ops)


def build_trainer(
    model: PreTrainedModel,
    collator: DialogueCollator,
    dialogues: datasets.Dataset,
    tuning: TuningArguments,
    data: DataArguments,
    training: TrainArguments,
) -> SFTTrainer:
    """TRL's trainer with our collator; prints the component table and refuses to train anything else than it says."""
    backbone = collator.backbone
    peft_config = lora_config(model, backbone, tuning)
    if peft_config is None:
        freeze_components(model, backbone, tuning)
    trainer = SFTTrainer(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=dialogues,
        eval_dataset=load_dialogues(data, "val") if training.eval_strategy != "no" else None,
        processing_class=collator.processor,
        peft_config=peft_config,
        callbacks=[SaveImageOps(data.image_ops)],
    )
    # Qwen classes declare that they take no loss arguments, which makes gradient accumulation average over batches
    # instead of tokens; TRL computes the loss itself and divides by the tokens of the whole step if this is set.
    trainer.model_accepts_loss_kwargs = True
    counts = count_components(trainer.model, backbone)
    check_components(counts, tuning)
    if trainer.is_world_process_zero():
        print(component_table(counts), flush=True)
    return trainer


def save_result(trainer: SFTTrainer, data: DataArguments, metrics: dict[str, float]) -> None:
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
        if adapter.is_file():
            expected = sum(parameter.requires_grad for parameter in trainer.model.parameters())
            sizes = [tensor.numel() for tensor in load_file(adapter).values()]
            if len(sizes) != expected or not all(sizes):
                raise RuntimeError(
                    f"{adapter}: holds {len(sizes)} tensors ({sizes.count(0)} empty), expected {expected}"
                )
        print(f"Done: {out}", flush=True)
