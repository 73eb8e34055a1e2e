"""TRL's trainer with the mask of image trees, one loss for every way of batching, and honest speed figures."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import speed_metrics
from trl import SFTTrainer

from sarlang_sft.adapters import start_from_data
from sarlang_sft.attention import answering_attention, tree_mask
from sarlang_sft.backbones import Backbone
from sarlang_sft.collate import IGNORED
from sarlang_sft.errors import InputError
from sarlang_sft.flops import FlopCount, count_flops
from sarlang_sft.inference import TunedModel
from sarlang_sft.loading import bring_back
from sarlang_sft.meter import Meter, speed_of
from sarlang_sft.optimiser import parameter_groups
from sarlang_sft.packing import PlannedRows
from sarlang_sft.supervision import answer_weights, first_tokens
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.val_answers import Answer, Share, answer_sample, judge, score, write_answers
from sarlang_sft.val_loss import Batch, read_batches, share_out
from sarlang_sft.val_questions import ValQuestion


class AnswerLog(Protocol):
    """Shows answers where a run is tracked."""

    def log_answers(self, step: int, answers: list[Answer]) -> None: ...


class DialogueTrainer(SFTTrainer):
    """Trains on [`PlannedRows`], flat or in trees.

    The loss is the mean over all supervised tokens of the global batch, whatever the packing, the gradient
    accumulation and the number of ranks; `loss_weighting: answer` makes it the mean over answers instead.
    """

    def plan(
        self, rows: PlannedRows, backbone: Backbone, attention: str, questions: Sequence[ValQuestion] = ()
    ) -> None:
        """Give the trainer its rows; TRL's constructor accepts nothing but a `datasets.Dataset`.

        Args:
            attention: The language model's attention, by its name in transformers.
            questions: Answered in every evaluation.
        """
        self.train_dataset = rows
        self.questions = questions
        self.unreadable: set[Path] = set()
        self.tracker: AnswerLog | None = None
        self.attention = attention
        self.image_token_id = self.processing_class.tokenizer.convert_tokens_to_ids(backbone.image_token)
        self.flops: FlopCount = count_flops(self.model, backbone)
        self.meter: Meter | None = None
        # Qwen classes declare that they take no loss arguments, which would make gradient accumulation average over
        # batches instead of tokens; the loss is computed here and takes them.
        self.model_accepts_loss_kwargs = True

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Resume; models without adapters by the names that their checkpoints have, see `bring_back`."""
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            bring_back(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            bring_back(self.model, Path(self.state.best_model_checkpoint))

    def _get_train_sampler(self, train_dataset: PlannedRows | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the plan is the order

    def _prepare_inputs(self, inputs: Batch) -> dict[str, Any]:
        """Tensors on the device, `segments` turned into the attention mask there: it is too large to be sent."""
        inputs = super()._prepare_inputs(inputs)
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

    def evaluate(
        self,
        eval_dataset: PlannedRows | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """`eval_loss`, the mean over all supervised tokens (or answers) of the split `val`; scores of its questions.

        Neither depends on batches, packing and ranks, and training goes on as if nothing had been evaluated. The
        answers go to `val_answers/step-<step>.jsonl` in the output folder. With DeepSpeed, training must have begun.

        Args:
            eval_dataset: Rows for the loss instead of those of `val`.
            ignore_keys: Of transformers; nothing but the loss is computed.
        """
        rows, start = eval_dataset or self.eval_dataset, time.time()
        with self._evaluating():
            metrics = {"loss": self._val_loss(rows)}
            if self.questions:
                metrics |= self._val_scores()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        batches = len(share_out(len(rows), 0, self.args.world_size, self.args.per_device_eval_batch_size))
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=len(rows), num_steps=batches)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout, no gradients, and random numbers that training does not miss."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        training = self.model_wrapped.training
        self.model_wrapped.eval()
        if self.is_in_train:
            self.optimizer.eval()  # schedule-free ones have other weights to evaluate; each step puts it back
        try:
            with torch.random.fork_rng(devices), torch.no_grad(), self.compute_loss_context_manager():
                yield
        finally:
            self.model_wrapped.train(training)

    def check_interrupted(self) -> None:
        """Called before every batch of an evaluation, equally often on every rank."""

    def _val_loss(self, rows: PlannedRows) -> float:
        rank, ranks, device = self.args.process_index, self.args.world_size, self.args.device
        # DDP would wait for the other ranks; DeepSpeed brings the weights together in its own forward alone.
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        numbers = share_out(len(rows), rank, ranks, self.args.per_device_eval_batch_size)
        batches = read_batches(rows, numbers, self.data_collator, self.args)
        total = torch.zeros(2, dtype=torch.float64, device=device)  # losses, items
        hidden = self.args.disable_tqdm or rank > 0
        for batch in tqdm(batches, desc="val loss", unit=" batches", total=len(numbers), leave=False, disable=hidden):
            self.check_interrupted()
            labels = batch["labels"]
            items = first_tokens(labels) if self.args.loss_weighting == "answer" else labels != IGNORED
            loss = self._loss_sum(model, self._prepare_inputs(batch))
            total += torch.stack([loss.double(), items.sum().to(device)])
        losses, items = self.accelerator.reduce(total, "sum").tolist()
        return losses / items

    def _val_scores(self) -> dict[str, float]:
        plugin = self.args.deepspeed_plugin
        in_step = self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        share = Share(self.args.process_index, self.args.world_size, in_step)
        first = share.rank == 0
        collator = self.data_collator
        tuned = TunedModel(self.model, collator.processor, collator.backbone, collator.image_ops)
        size, longest = self.args.val_batch_size, self.args.val_max_new_tokens
        progress = first and not self.args.disable_tqdm
        with answering_attention(self.model, self.attention):
            said = answer_sample(tuned, self.questions, share, size, longest, self.check_interrupted, progress)
        answers = judge(self.questions, said)
        if first:
            unanswered = [question for place, question in enumerate(self.questions) if place not in said]
            unreadable = {path for question in unanswered for path in question.paths} - self.unreadable
            if unreadable:
                self.unreadable |= unreadable
                print(
                    f"val answers: {len(unanswered):,} questions are left out, since their images cannot be read: "
                    f"{len(unreadable):,} (such as {min(unreadable)})"
                )
            step = self.state.global_step
            path = Path(self.args.output_dir) / "val_answers" / f"step-{step:06}.jsonl"
            write_answers(path, self.questions, said, answers)
            if self.tracker is not None:
                self.tracker.log_answers(step, answers)
        return score(self.questions, answers)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed since the last line, checkpoints and evaluation included: over all ranks, with the longest
        wait for data and the highest peak of memory."""
        if "loss" in logs:
            meter, self.meter = self.meter, Meter(time.perf_counter())
            logs.update(speed_of(meter, self.args.device, self.flops, self.accelerator.gather))
        super().log(logs, start_time)
