"""TRL's trainer with the mask of image trees, one loss for every way of batching, and honest speed figures."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers.trainer_optimizer import is_optimizer_factory
from trl import SFTTrainer

from sarlang_sft.adapters import start_from_data
from sarlang_sft.attention import tree_mask
from sarlang_sft.backbones import Backbone
from sarlang_sft.collate import IGNORED
from sarlang_sft.errors import InputError
from sarlang_sft.flops import FlopCount, count_flops
from sarlang_sft.fsdp import check_sharded, gather_head, name_layers, shard_on_cpu
from sarlang_sft.meter import Meter, speed_of
from sarlang_sft.optimiser import parameter_groups
from sarlang_sft.packing import PlannedRows
from sarlang_sft.supervision import answer_weights, first_tokens
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.val_loss import Batch


class DialogueTrainer(SFTTrainer):
    """Trains on [`PlannedRows`], flat or in trees.

    The loss is the mean over all supervised tokens of the global batch, whatever the packing, the gradient
    accumulation and the number of ranks; `loss_weighting: answer` makes it the mean over answers instead.
    """

    def plan(self, rows: PlannedRows, backbone: Backbone, attention: str) -> None:
        """Give the trainer its rows; TRL's constructor accepts nothing but a `datasets.Dataset`.

        Args:
            attention: The language model's attention, by its name in transformers.
        """
        self.train_dataset = rows
        self.attention = attention
        self.image_token_id = self.processing_class.tokenizer.convert_tokens_to_ids(backbone.image_token)
        self.flops: FlopCount = count_flops(self.model, backbone)
        self.meter: Meter | None = None
        # Qwen classes declare that they take no loss arguments, which would make gradient accumulation average over
        # batches instead of tokens; the loss is computed here and takes them.
        self.model_accepts_loss_kwargs = True

    def create_accelerator_and_postprocess(self) -> None:
        """Of transformers; with FSDP2 on the CPU too."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.args.use_cpu:
            shard_on_cpu(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def _prepare_for_training(self, *words: Any) -> tuple[nn.Module, DataLoader]:
        """The model as it trains, and its data; cut by FSDP2 for certain if that is asked for."""
        if self.is_fsdp_enabled:
            name_layers(self.accelerator, self.model)
        prepared = super()._prepare_for_training(*words)
        if self.is_fsdp_enabled:
            check_sharded(self.model)
            gather_head(self.model)
        return prepared

    def start_from_data(self, rows: list[Any]) -> None:
        """Let EVA choose where the adapters start, see `adapters.start_from_data`."""
        if self.model.device != self.args.device:  # DeepSpeed moves it later
            self.model.to(self.args.device)
        start_from_data(self.model, [self._prepare_inputs(self.data_collator([row])) for row in rows])

    def set_learning_rates(self, backbone: Backbone, tuning: TuningArguments) -> None:
        """Give every component its learning rate, where the configuration names any.

        Raises:
            InputError: The optimiser groups the parameters by itself.
        """
        rate = self.args.learning_rate
        if set(tuning.rates(rate).values()) == {rate} and tuning.loraplus_lr_ratio == 1:
            return
        optimiser, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        if is_optimizer_factory(optimiser) or options.keys() & {"params", "model", "optimizer_dict"}:
            raise InputError(f"optim {self.args.optim}: cannot give components a learning rate; use adamw_torch")
        decaying = self.get_decay_parameter_names(self.model)
        groups = parameter_groups(self.model, backbone, tuning, rate, self.args.weight_decay, decaying)
        self.optimizer_cls_and_kwargs = optimiser, {**options, "params": groups}

    def _get_train_sampler(self, train_dataset: PlannedRows | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the plan is the order

    def _prepare_inputs(self, inputs: Batch) -> dict[str, Any]:
        """Tensors on the device, `segments` turned into the attention mask there: it is too large to be sent."""
        inputs = super()._prepare_inputs({name: value for name, value in inputs.items() if name != "images"})
        if "segments" in inputs:
            inputs["attention_mask"] = tree_mask(inputs.pop("segments"), self.attention)
        return inputs

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The batches of one step, as the trainer takes them; counts them and how long they were waited for."""
        self.meter = self.meter or Meter(time.perf_counter())
        batches, items = super().get_batch_samples(self.meter.timed(epoch_iterator), num_batches, device)
        for batch in batches:
            # TRL's head scores every token on a CPU and only the supervised ones on a GPU.
            self.meter.add(batch, self.image_token_id, scores_everything=device.type == "cpu")
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | int | None:
        """What the loss of a step is divided by: supervised tokens, or answers, of all batches and ranks."""
        if self.args.loss_weighting == "answer":
            firsts = [first_tokens(batch["labels"]) for batch in batch_samples]
            batch_samples = [{"labels": torch.where(first, 0, IGNORED)} for first in firsts]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum over the supervised tokens of this batch, divided by the items of the whole step."""
        if return_outputs or num_items_in_batch is None:
            raise ValueError("predict: only the loss is computed; eval/generate.py writes answers")
        ranks = self.accelerator.num_processes  # whose gradients are averaged
        return self._loss_sum(model, inputs) / num_items_in_batch.clamp(min=1) * ranks

    def _loss_sum(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The sum over the supervised tokens of a batch, or over its answers of their means."""
        losses = -model(**inputs, fused_lm_head=True, use_cache=False).log_probs
        if self.args.loss_weighting == "answer":
            losses = losses * answer_weights(inputs["labels"])[:, 1:]
        return losses.sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed since the last line, checkpoints and evaluation included: over all ranks, with the longest
        wait for data and the highest peak of memory."""
        if "loss" in logs:
            meter, self.meter = self.meter, Meter(time.perf_counter())
            logs.update(speed_of(meter, self.args.device, self.flops, self.accelerator.gather))
        super().log(logs, start_time)
