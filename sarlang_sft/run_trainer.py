"""The trainer of dialogues as a run: its weights kept and brought back, its split `val` scored."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from tqdm import tqdm
from transformers.trainer_utils import speed_metrics

from sarlang_sft.attention import answering_attention
from sarlang_sft.checkpoints import check_checkpoint
from sarlang_sft.collate import IGNORED
from sarlang_sft.fsdp import gather_state
from sarlang_sft.inference import TunedModel
from sarlang_sft.loading import bring_back
from sarlang_sft.packing import PlannedRows
from sarlang_sft.resumable import ResumableTrainer
from sarlang_sft.run_files import append_evaluation
from sarlang_sft.runs import Run
from sarlang_sft.saved_weights import check_saved
from sarlang_sft.supervision import first_tokens
from sarlang_sft.tracking import WandbTracker
from sarlang_sft.trainer import DialogueTrainer
from sarlang_sft.val_answers import Share, answer_sample, judge, score, write_answers
from sarlang_sft.val_loss import read_batches, share_out
from sarlang_sft.val_questions import ValQuestion


class RunTrainer(ResumableTrainer, DialogueTrainer):
    """A [`DialogueTrainer`] that belongs to a run."""

    def join(
        self, run: Run, image_ops: list[str], questions: Sequence[ValQuestion], tracker: WandbTracker | None
    ) -> None:
        """Make this training the run's.

        Args:
            image_ops: Kept in every checkpoint, so that each can be evaluated as it was trained.
            questions: Answered in every evaluation.
        """
        super().join(run, image_ops, tracker)
        self.questions = questions
        self.unreadable: set[Path] = set()  # images of the questions

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, or the model, with its processor; every tensor of it, or an error."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=gather_state(self.model))
        elif self._is_zero3:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:  # as it is; of ZeRO-1 and -2 transformers saves a copy, in which nothing is tied
            self._save(output_dir)
        if self.args.should_save:
            check_saved(Path(output_dir or self.args.output_dir), self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Resume; models without adapters by the names that their checkpoints have, see `bring_back`."""
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            bring_back(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.interruption.stopping:
            return
        check_checkpoint(Path(self.state.best_model_checkpoint))
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            bring_back(self.model, Path(self.state.best_model_checkpoint))

    def evaluate(
        self,
        eval_dataset: PlannedRows | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """`eval_loss`, the mean over all supervised tokens (or answers) of the split `val`; scores of its questions.

        Neither depends on batches, packing and ranks, and training goes on as if nothing had been evaluated. The
        answers go to `val_answers/step-<step>.jsonl` in the output folder, the metrics to `evaluations.jsonl`. With
        DeepSpeed, training must have begun.

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
        if self.is_world_process_zero():
            append_evaluation(Path(self.args.output_dir), self.state.global_step, metrics)
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
        return losses / items if items else float("nan")  # no image of val can be read

    def _val_scores(self) -> dict[str, float]:
        in_step = self.is_fsdp_enabled or self._is_zero3
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
