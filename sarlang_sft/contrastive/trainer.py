"""transformers' trainer for image-text pairs: one loss over the batches of all ranks, features cached for memory."""

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sarlang_sft.checkpoints import check_checkpoint
from sarlang_sft.contrastive.accumulation import Outputs, backward_of_batch
from sarlang_sft.contrastive.arguments import PairTrainArguments
from sarlang_sft.contrastive.losses import Rows, caption_loss, contrastive_loss, gather_rows
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.pairs import Pairs
from sarlang_sft.contrastive.val_retrieval import score_val
from sarlang_sft.errors import InputError
from sarlang_sft.meter import peak_memory
from sarlang_sft.resumable import ResumableTrainer
from sarlang_sft.run_files import append_evaluation
from sarlang_sft.val_loss import Batch

WEIGHTS = "trained.safetensors"  # in a checkpoint
LARGEST_SCALE = 100.0  # of the logits; arXiv 2103.00020, section 2.5


class Towers(nn.Module):
    """An open_clip model with one forward for all of its uses, as DDP and accelerate wrap it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, captions: bool) -> Outputs:
        """`image_features` and `text_features` (b, D), `logit_scale`; with `captions` also `logits` and `labels`."""
        if captions:
            return self.model(images, tokens)
        return {
            "image_features": self.model.encode_image(images, normalize=True),
            "text_features": self.model.encode_text(tokens, normalize=True),
            "logit_scale": self.model.logit_scale.exp(),
        }

    def train(self, mode: bool = True) -> "Towers":
        """A locked image tower keeps its statistics of batch normalisation."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.model.visual.parameters()):
            self.model.visual.eval()
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None, every_n_layers: int, offload: bool
    ) -> None:
        """Called by transformers if `gradient_checkpointing` is set; open_clip checkpoints every block in one way.

        Raises:
            InputError: Another way is asked for, or the image tower is a ResNet, which open_clip does not checkpoint.
        """
        if activation_checkpointing_kwargs or every_n_layers != 1 or offload:
            raise InputError(
                "activation_checkpointing_kwargs: open_clip's towers have no such options; leave them out"
            )
        if isinstance(self.model.visual, ModifiedResNet):
            raise InputError("gradient_checkpointing: a ResNet is not checkpointed; lower micro_batch_size instead")
        self.model.set_grad_checkpointing(True)


class BoundTemperature(TrainerCallback):
    """Keeps the logits' scale between 1 and 100 after every step."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: object
    ) -> None:
        """Called after every step of the optimiser."""
        with torch.no_grad():
            model.model.logit_scale.clamp_(0, math.log(LARGEST_SCALE))


class PairTrainer(Trainer):
    """Trains on batches of `batches.PairCollator`; what goes through the towers at a time is a micro-batch."""

    args: PairTrainArguments

    def give(self, contrastive: ContrastiveModel, pairs: Pairs) -> None:
        """Give the trainer the model with all that belongs to it, and the pairs that its data set draws from."""
        self.contrastive = contrastive
        self.pairs = pairs
        self.part_losses: dict[str, list[torch.Tensor]] = {}
        self.since = time.perf_counter()
        self.pairs_seen = 0
        self.waited = 0.0
        self.add_callback(BoundTemperature())

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # each epoch has its order

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """What has two dimensions or more decays, as in open_clip: no gains, biases or temperature."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The batch of one step; counts how long it was waited for."""
        start = time.perf_counter()
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.waited += time.perf_counter() - start
        return found

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """This rank's share of the loss of a batch, after its backward pass."""
        model.train()
        images = inputs["images"]
        inputs = self._prepare_inputs({name: value for name, value in inputs.items() if name != "images"})
        rows = self.find_rows(inputs)
        args = self.args
        with_captions = args.caption_loss_weight > 0
        tokens = inputs["tokens"]

        def contrastive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return args.contrastive_loss_weight * contrastive_loss(image, text, scale, rows, args.negatives)

        micro = args.micro_batch_size or len(images)
        if with_captions:
            pad = self.contrastive.model.pad_id
            # Captions of unreadable images are not learned.
            tokens = tokens.masked_fill(~inputs["valid"][:, None], pad)
            own = (tokens[:, 1:] != pad).sum()
            total = self.accelerator.reduce(own.clone(), "sum") / self.accelerator.num_processes
            captioning = partial(self._caption_loss, tokens=total, pad=pad)
        with self.compute_loss_context_manager():
            losses = backward_of_batch(
                model,
                {"images": inputs["pixel_values"], "tokens": tokens},
                micro,
                contrastive,
                captioning if with_captions else None,
                self.accelerator.backward,
                partial(self.accelerator.no_sync, model),
            )
        for name, loss in losses.items():
            self.part_losses.setdefault(name, []).append(loss)
        self.pairs_seen += len(images)
        return sum(losses.values())

    def _caption_loss(self, outputs: Outputs, tokens: torch.Tensor, pad: int) -> torch.Tensor:
        return self.args.caption_loss_weight * caption_loss(outputs["logits"], outputs["labels"], tokens, pad)

    def find_rows(self, inputs: Batch) -> Rows:
        """What this rank's pairs of a batch stand for beside those of all ranks."""
        images, texts, valid = (gather_rows(inputs[name]) for name in ("image", "text", "valid"))
        own = [inputs[name].cpu().numpy() for name in ("image", "text")]
        every = [values.cpu().numpy() for values in (images, texts)]
        image_knows = self.pairs.true_of(own[0], every[1])
        text_knows = self.pairs.true_of(every[0], own[1]).T
        device = inputs["valid"].device
        first = dist.get_rank() * len(own[0]) if dist.is_initialized() else 0
        return Rows(torch.tensor(image_knows, device=device), torch.tensor(text_knows, device=device), valid, first)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss (times their weights), the temperature and the speed since the last line."""
        if "loss" in logs and self.part_losses:
            for name, losses in self.part_losses.items():
                mean = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
                logs[name] = round(mean.item(), 5)
            seconds = time.perf_counter() - self.since
            logs["logit_scale"] = round(self.contrastive.model.logit_scale.exp().item(), 3)
            logs["pairs_per_s"] = round(self.pairs_seen * self.accelerator.num_processes / seconds, 1)
            logs["data_wait"] = round(self.waited / seconds, 4)
            logs["peak_memory_gb"] = round(peak_memory(self.args.device) / 1e9, 2)
            self.part_losses, self.pairs_seen, self.waited, self.since = {}, 0, 0.0, time.perf_counter()
        super().log(logs, start_time)


class PairRunTrainer(ResumableTrainer, PairTrainer):
    """A [`PairTrainer`] that belongs to a run: its weights kept and brought back, retrieval on `val` scored."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, and the statistics of batch normalisation."""
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            held = self.model.model.state_dict()
            save_file(
                {name: held[name].contiguous().clone() for name in self.trained_names()}, Path(output_dir) / WEIGHTS
            )

    def trained_names(self) -> list[str]:
        """Of the tensors of a checkpoint."""
        model = self.model.model
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        return [name for name in model.state_dict() if name not in frozen]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._bring_back(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not self.interruption.stopping:
            best = Path(self.state.best_model_checkpoint)
            check_checkpoint(best)
            self._bring_back(best)

    def _bring_back(self, checkpoint: Path) -> None:
        stored = load_file(checkpoint / WEIGHTS)
        if stored.keys() != set(self.trained_names()):
            raise InputError(f"{checkpoint}: does not hold the tensors that train here; choose another output_dir")
        self.model.model.load_state_dict(stored, strict=False)

    def evaluate(
        self,
        eval_dataset: Pairs | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Retrieval among the pairs of `val`, all captions of an image counted: `eval_mean_recall` and its parts.

        Batches and ranks change nothing of it: all ranks take the first one's statistics of batch normalisation, which
        are those that are saved. The metrics go to `evaluations.jsonl` in the output folder.
        """
        training = self.model_wrapped.training
        self.model_wrapped.eval()
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                metrics = score_val(
                    self.contrastive, eval_dataset or self.eval_dataset, self.run.ranks, self.check_interrupted
                )
        finally:
            self.model_wrapped.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        if self.is_world_process_zero():
            append_evaluation(Path(self.args.output_dir), self.state.global_step, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
