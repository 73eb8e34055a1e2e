"""A trainer whose training is a run: evaluated, checkpointed, stopped on request, and gone on with."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput, speed_metrics

from sarlang_sft.attention import answering_attention
from sarlang_sft.checkpoints import check_checkpoint, new_checkpoint, rotate_checkpoints
from sarlang_sft.collate import IGNORED
from sarlang_sft.divergence import Diverged, are_numbers, find_diverged, stop_diverged
from sarlang_sft.fsdp import gather_state
from sarlang_sft.imagery import save_ops
from sarlang_sft.inference import TunedModel
from sarlang_sft.interruption import EvaluationInterrupted, Interruption
from sarlang_sft.loader_workers import start_worker_server, use_worker_server
from sarlang_sft.loading import bring_back
from sarlang_sft.lost_ranks import naming_lost_ranks
from sarlang_sft.packing import PlannedRows
from sarlang_sft.progress import Progress, load_progress, save_progress
from sarlang_sft.run_files import append_evaluation
from sarlang_sft.runs import Run
from sarlang_sft.saved_weights import check_saved
from sarlang_sft.supervision import first_tokens
from sarlang_sft.tracking import WandbTracker
from sarlang_sft.trainer import DialogueTrainer
from sarlang_sft.val_answers import Share, answer_sample, judge, score, write_answers
from sarlang_sft.val_loss import Batch, read_batches, share_out
from sarlang_sft.val_questions import ValQuestion
from sarlang_sft.watchdog import Watchdog


class Continuation(TrainerCallback):
    """Goes on where the checkpoint of a resumed run was written, and has checkpoints from which that can be done."""

    def __init__(self, trainer: "RunTrainer") -> None:
        self.trainer = trainer
        self.saves_at_end = False  # of the epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called when transformers has loaded what it knows of, and trackers are ready."""
        self.trainer.go_on()
        self.trainer.make_up_for_evaluation()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """A checkpoint of an epoch's last step also holds what the epoch ends with: it is gone on from behind that."""
        if control.should_save and state.epoch == int(state.epoch):
            control.should_save, self.saves_at_end = False, True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Called when an epoch is over, or training ends within it."""
        control.should_save |= self.saves_at_end
        self.saves_at_end = False
        return control


class RunTrainer(DialogueTrainer):
    """A [`DialogueTrainer`] that belongs to a run."""

    def join(
        self, run: Run, image_ops: list[str], questions: Sequence[ValQuestion], tracker: WandbTracker | None
    ) -> None:
        """Make this training the run's.

        Args:
            image_ops: Kept in every checkpoint, so that each can be evaluated as it was trained.
            questions: Answered in every evaluation.
        """
        self.run = run
        self.image_ops = image_ops
        self.questions = questions
        self.unreadable: set[Path] = set()  # images of the questions
        self.tracker = tracker
        self.losses: list[torch.Tensor] = []  # of this step's batches on this rank
        self.images: list[list[str]] = []  # which they showed
        self.saving_seconds = 0.0
        self.watchdog = Watchdog(run.ranks, self.args.ddp_timeout)
        self.interruption = Interruption(run.ranks, self.args.max_hours)
        if run.checkpoint is not None:
            self.args.eval_on_start = False  # the run has begun already
        self.add_callback(self.interruption)
        self.add_callback(Continuation(self))

    def train(self) -> TrainOutput:
        """Train, from the run's checkpoint on if it has one."""
        self.watchdog.start()
        try:
            with naming_lost_ranks(self.watchdog):
                return super().train(resume_from_checkpoint=self.run.checkpoint)
        except EvaluationInterrupted:  # of an evaluation before the first step: nothing is new
            self.interruption.stop(self.state, self.control)
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            return TrainOutput(self.state.global_step, 0.0, {})
        finally:
            self.watchdog.stop()

    def _run_epoch(self, **where: Any) -> None:
        """Nothing, if the run was killed behind its last step: transformers would take one more."""
        if self.state.global_step < self.state.max_steps:
            if self.args.dataloader_num_workers:
                start_worker_server()  # should it have been killed, multiprocessing's own would die of any signal
            super()._run_epoch(**where)
        else:
            self.control.should_training_stop = True

    def get_train_dataloader(self) -> DataLoader:
        """The loader, whose workers come from a process that does not train."""
        loader = super().get_train_dataloader()
        use_worker_server(loader.base_dataloader)
        return loader

    def _save_checkpoint(self, model: nn.Module, trial: None) -> None:
        """What transformers writes, and what it forgets; complete, or not at all."""
        start = time.perf_counter()
        self.check_weights()
        out, step = Path(self.args.output_dir), self.state.global_step
        self.watchdog.progress(step, "saving")
        self.store_flos()
        if self.state.best_global_step == step:
            self.state.best_model_checkpoint = str(out / f"checkpoint-{step}")
        with new_checkpoint(out, step, self.run.facts, self.run.ranks) as building:
            self.save_model(str(building), _internal_call=True)
            self._save_optimizer_and_scheduler(str(building))
            self._save_scaler(str(building))
            self._save_rng_state(str(building))
            progress = Progress(
                self._tr_loss.item(), self._globalstep_last_logged, self._total_loss_scalar,
                self.interruption.owes_evaluation,
            )  # fmt: skip
            save_progress(building, progress, self.args.process_index)
            if self.args.should_save:
                save_ops(building, self.image_ops)
                self.state.save_to_json(str(building / "trainer_state.json"))
            self.watchdog.progress(step, "saving")
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(out, self.args.save_total_limit, Path(best) if best else None)
        self.saving_seconds += time.perf_counter() - start

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

    def go_on(self) -> None:
        """Put back what transformers forgets of the checkpoint that the run is resumed from."""
        if self.run.checkpoint is None:
            return
        out, folder = Path(self.args.output_dir), self.run.checkpoint.parent
        best = (out if folder.resolve() == out.resolve() else folder) / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir():  # the output folder may have been moved, or is named otherwise
            self.state.best_model_checkpoint = str(best)
        progress = load_progress(self.run.checkpoint, self.args.process_index, self.args.world_size)
        self._tr_loss += progress.loss_since_log
        self._globalstep_last_logged = progress.last_logged
        self._total_loss_scalar = progress.loss_logged
        self.interruption.owes_evaluation = progress.owes_evaluation

    def make_up_for_evaluation(self) -> None:
        """Evaluate the step that the run was stopped at, if it would have been evaluated."""
        if not self.interruption.owes_evaluation:
            return
        if self._determine_best_metric(self._evaluate(None, None), None):
            self.state.best_model_checkpoint = str(self.run.checkpoint)
        self.interruption.owes_evaluation = False

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **options)
        except EvaluationInterrupted:
            self.interruption.owes_evaluation = True
            self.control.should_evaluate = False  # or the end of the epoch would begin with it again
            self.interruption.stop(self.state, self.control)
            super()._maybe_log_save_evaluate(*args, **options)

    def check_interrupted(self) -> None:
        """Leave an evaluation when training is to stop; asked before every batch, equally often on every rank."""
        self.watchdog.progress(self.state.global_step, "evaluating")
        if self.is_in_train and self.interruption.asked():
            raise EvaluationInterrupted

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

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The batches of one step; remembers what they show."""
        reading = self.watchdog.reading(epoch_iterator, self.state.global_step + 1)
        batches, items = super().get_batch_samples(reading, num_batches, device)
        self.losses, self.images = [], [batch["images"] for batch in batches]
        return batches, items

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of a batch, after its backward pass."""
        self.watchdog.progress(self.state.global_step + 1, "training")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss)
        return loss

    def _get_grad_norm(
        self, model: nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        """Called before every step of the optimiser; raises [`InputError`] if a loss or the gradient is no number."""
        norm = super()._get_grad_norm(model, grad_norm)
        # Under fp16 an infinite gradient is how the loss scale finds its size.
        found = find_diverged(self.losses, None if self.args.fp16 else norm, self.images)
        if found:
            stop_diverged(found, self.state.global_step + 1, self.args)
        return norm

    @property
    def _is_zero3(self) -> bool:
        plugin = self.args.deepspeed_plugin
        return plugin is not None and plugin.zero_stage == 3

    def check_weights(self) -> None:
        """Raise [`InputError`] if any rank's weights are no numbers; every rank must ask."""
        finite = are_numbers(self.model.parameters(), cut=self._is_zero3)
        if self.run.ranks.any(not finite):
            stop_diverged(
                Diverged("the weights are no numbers after it", self.images), self.state.global_step, self.args
            )

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The mean loss at the end is that of the whole run, however often resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, start_time)
