"""The options of the training recipes: the model, the data, and TRL's own with what this project adds or refuses."""

import os
import shutil
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from sarlang_sft.attention import CHOICES
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.batch_size import accumulation_steps, check_deepspeed_batch, read_deepspeed
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import parse_ops
from sarlang_sft.launch import this_launch
from sarlang_sft.loading import DTYPES
from sarlang_sft.mixture import DataSource, parse_sources
from sarlang_sft.records import TASKS
from sarlang_sft.roll_call import call_roll
from sarlang_sft.scoring.predictions import CAPTION_TASK
from sarlang_sft.shards import DEFAULT_CACHE, DEFAULT_CACHE_GB

FIXED = (
    ("save_only_model", False, "such checkpoints cannot be gone on from"),
    ("ignore_data_skip", False, "a resumed run would see rows twice"),
    ("auto_find_batch_size", False, "rows are planned for one batch size"),
    ("logging_nan_inf_filter", False, "it hides a loss that is no number, at which training stops here"),
    ("enable_jit_checkpoint", False, "SIGTERM and SIGINT write a checkpoint anyway"),
    ("fsdp_config", None, "FSDP2 is run in one way here; DeepSpeed's files have other ways (docs/scale.md)"),
    ("push_to_hub", False, "it would upload the folder before the result is in its place; use `hf upload` afterwards"),
)
TORCH_ADAMW = ("adamw_torch", "adamw_torch_fused")
ANSWERED = ("accuracy", *(f"accuracy_{task}" for task in TASKS if task != CAPTION_TASK), "cider")  # by val_questions
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
            "help": "Data folder written by data_prep/convert_*.py, or the URL of one in shards (s3://..., "
            "docs/scale.md); in YAML also a list of {path, weight, tasks, subsets, caps, image_root} (docs/data.md)."
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
    max_bad_images: int = field(
        default=10,
        metadata={"help": "So many unreadable images are left out of a run, with a message; one more stops it."},
    )
    shard_cache: str | None = field(
        default=None, metadata={"help": f"Folder for shards fetched from a URL; default: {DEFAULT_CACHE}."}
    )
    shard_cache_gb: float = field(
        default=DEFAULT_CACHE_GB, metadata={"help": "Size of that folder; what is unused for longest makes room."}
    )
    shard_window: int = field(
        default=4, metadata={"help": "Shards whose images are mixed with each other, for every rank (docs/scale.md)."}
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
        if self.shard_window < 1:
            raise InputError(f"shard_window {self.shard_window}: must be at least 1")
        if not self.shard_cache_gb > 0:
            raise InputError(f"shard_cache_gb {self.shard_cache_gb}: must be above 0")
        if self.max_bad_images < 0:
            raise InputError(f"max_bad_images {self.max_bad_images}: must be 0 (the first one stops the run) or more")
        self.sources()

    def sources(self) -> list[DataSource]:
        """The data folders of the mixture."""
        return parse_sources(self.data, self.tasks, self.image_root, self.shard_cache, self.shard_cache_gb)


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
    fsdp: bool | None = field(
        default=None,
        metadata={"help": "Cut weights, gradients and the optimiser's state among ranks by FSDP2 (docs/scale.md)."},
    )
    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: go on from the newest complete checkpoint in output_dir, if there is one; a checkpoint's "
            "folder: go on from that; never: refuse an output_dir that holds a run (docs/operations.md)."
        },
    )
    max_hours: float | None = field(
        default=None,
        metadata={"help": "After so many hours write a checkpoint and leave with exit code 75, as on SIGTERM."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: training stops at a loss that is no number."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - transformers' parser takes no other order
        default="wandb",
        metadata={
            "help": "Where the log goes: wandb (offline without a key), tensorboard, trackio, in YAML also a list of "
            "them, or none."
        },
    )
    loss_weighting: str = field(
        default="token", metadata={"help": "token: mean over supervised tokens; answer: every answer weighs the same."}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of a step over all ranks: gradient_accumulation_steps follows from their number, so that as "
            "much is learned on fewer GPUs."
        },
    )
    rendezvous_timeout: float = field(
        default=300, metadata={"help": "Seconds that the ranks wait for each other at the start."}
    )
    val_questions: int = field(
        default=0,
        metadata={
            "help": "Every evaluation also asks so many questions of the split val, of all data folders with their "
            "tasks and subsets: always the same, image by image in the order of a hash of the images' names. Gives "
            "eval_accuracy and eval_accuracy_TASK (protocol exact) and, of captions, eval_cider (official)."
        },
    )
    val_batch_size: int = field(default=16, metadata={"help": "Of val_questions, how many a device answers at once."})
    val_max_new_tokens: int = field(default=64, metadata={"help": "Longest answer to val_questions, in tokens."})

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
        if self.resume_from_checkpoint:
            raise InputError(f"resume_from_checkpoint {self.resume_from_checkpoint}: say `resume` instead")
        if self.resume not in ("auto", "never") and not Path(self.resume).is_dir():
            raise InputError(f"resume {self.resume}: no such folder; give auto, never or a checkpoint's folder")
        if self.ddp_timeout < 1:
            raise InputError(f"ddp_timeout {self.ddp_timeout}: must be at least 1 second")
        if self.max_hours is not None and not self.max_hours > 0:
            raise InputError(f"max_hours {self.max_hours}: must be above 0")
        for name, wanted, why in FIXED:
            if vars(self)[name] != wanted:
                raise InputError(f"{name} {vars(self)[name]}: must stay {wanted}: {why}")
        self._check_sharding()
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.use_cpu:
            if self.activation_offloading:
                raise InputError("activation_offloading: moves activations off the GPU; there is none here")
            self.bf16 = bool(self.bf16)
            self.dataloader_pin_memory = False
        if not self.rendezvous_timeout > 0:
            raise InputError(f"rendezvous_timeout {self.rendezvous_timeout}: must be above 0")
        per_device, steps = self.per_device_train_batch_size, self.gradient_accumulation_steps
        if self.global_batch_size is not None:
            self.gradient_accumulation_steps = accumulation_steps(
                self.global_batch_size, per_device, steps, this_launch().count
            )
        call_roll(self.rendezvous_timeout)
        if self.deepspeed:
            check_deepspeed_batch(self.deepspeed, per_device, self.gradient_accumulation_steps)
            if self.optim not in TORCH_ADAMW and "optimizer" in read_deepspeed(self.deepspeed):
                raise InputError(
                    f"optim {self.optim}: deepspeed {self.deepspeed} has an optimizer block, which would be taken "
                    "instead; leave one of them out"
                )
            _prepare_deepspeed(self.use_cpu, timedelta(seconds=self.ddp_timeout))
        if self.use_cpu and "WORLD_SIZE" in os.environ:
            self.ddp_backend = "gloo"
        self.hf_deepspeed_config = None  # which transformers sets only if there is one
        super().__post_init__()
        if self.n_gpu > 1:
            print(f"One of {self.n_gpu} GPUs is used; for all: torchrun --nproc_per_node {self.n_gpu}", flush=True)
            self._n_gpu = 1  # nn.DataParallel would deal out patches, not images, and more rows than are planned
        zero, gathers = self.hf_deepspeed_config, "stage3_gather_16bit_weights_on_model_save"
        if zero and zero.is_zero3() and not zero.is_true(f"zero_optimization.{gathers}"):
            raise InputError(f"deepspeed {self.deepspeed}: set {gathers} to true; ZeRO-3 saves no weights without it")
        if self.save_total_limit == 1 and self.metric_for_best_model:
            self.save_total_limit = 2  # transformers would end by deleting the last one for the best
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise InputError(f"report_to `{name}`: choose wandb, tensorboard, trackio or none")
        if self.checkpointed != "both" and not self.gradient_checkpointing:
            raise InputError(f"checkpointed {self.checkpointed}: gradient_checkpointing is off; leave one of them out")
        self._check_evaluation()

    def _check_sharding(self) -> None:
        if not self.fsdp:
            return
        if self.deepspeed:
            raise InputError(f"fsdp and deepspeed {self.deepspeed}: choose one of them")
        if "WORLD_SIZE" not in os.environ:
            raise InputError("fsdp: cuts a model among ranks; start them by `torchrun --nproc_per_node N`")
        if self.optim not in TORCH_ADAMW:
            raise InputError(f"optim {self.optim}: not verified with fsdp; use adamw_torch, or ZeRO-2 instead of fsdp")

    def _check_evaluation(self) -> None:
        for name, lowest in (("val_questions", 0), ("val_batch_size", 1), ("val_max_new_tokens", 1)):
            if vars(self)[name] < lowest:
                raise InputError(f"{name} {vars(self)[name]}: must be at least {lowest}")
        for name in ("val_questions", "metric_for_best_model", "eval_on_start"):
            if self.eval_strategy == "no" and vars(self)[name]:
                raise InputError(f"{name} {vars(self)[name]}: nothing is evaluated; set --eval_strategy steps")
        metric = self.metric_for_best_model or "loss"
        if metric.removeprefix("eval_") not in ("loss", *ANSWERED):
            raise InputError(f"metric_for_best_model {metric}: choose one of loss, {', '.join(ANSWERED)}, all of val")
        if metric.removeprefix("eval_") in ANSWERED and not self.val_questions:
            raise InputError(f"metric_for_best_model {metric}: needs answers; set --val_questions 200, for example")
        self._check_saves_what_it_scores(metric)

    def _check_saves_what_it_scores(self, metric: str) -> None:
        if (
            self.metric_for_best_model
            and self.save_strategy in ("steps", "epoch")
            and not self._saves_what_it_scores()
        ):
            raise InputError(
                f"metric_for_best_model {metric}: the best step may have no checkpoint; set eval_strategy (now "
                f"{self.eval_strategy.value}) to save_strategy (now {self.save_strategy.value}), and eval_steps (now "
                f"{self.eval_steps:g}) to a multiple of save_steps (now {self.save_steps:g})"
            )

    def _saves_what_it_scores(self) -> bool:
        if self.eval_strategy == "epoch" or self.save_strategy == "epoch":
            return self.eval_strategy == self.save_strategy
        ratio = self.eval_steps / self.save_steps  # two numbers of steps, or two shares of the training
        return (self.eval_steps < 1) == (self.save_steps < 1) and abs(ratio - round(ratio)) < 1e-6 <= ratio


def _prepare_deepspeed(on_cpu: bool, timeout: timedelta) -> None:
    """Start DeepSpeed's process group before any model is loaded: ZeRO-3 partitions weights while they load."""
    if on_cpu and not (shutil.which("c++") or shutil.which("g++")):
        raise InputError("deepspeed on a CPU compiles its communication kernels: install a C++ compiler (g++)")
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", timeout=timeout, verbose=False)
