"""The options of the training recipes: the model, the data, and TRL's own with what this project adds or refuses."""

import os
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

import deepspeed
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from sarlang_sft.attention import CHOICES
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import parse_ops
from sarlang_sft.loading import DTYPES
from sarlang_sft.mixture import DataSource, parse_sources
from sarlang_sft.records import TASKS

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
    report_to: None | str | list[str] = field(  # noqa: RUF036  (the parser takes them in this order)
        default="wandb",
        metadata={
            "help": "Where the log goes: wandb (offline without a key), tensorboard, trackio, in YAML also a list of "
            "them, or none."
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
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise InputError(f"report_to `{name}`: choose wandb, tensorboard, trackio or none")
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
