"""A trainer whose training is a run: checkpointed, stopped on request, and gone on with, whatever it trains."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from sarlang_sft.checkpoints import new_checkpoint, rotate_checkpoints
from sarlang_sft.divergence import Diverged, are_numbers, find_diverged, stop_diverged
from sarlang_sft.imagery import save_ops
from sarlang_sft.interruption import EvaluationInterrupted, Interruption
from sarlang_sft.loader_workers import start_worker_server, use_worker_server
from sarlang_sft.lost_ranks import naming_lost_ranks
from sarlang_sft.progress import Progress, load_progress, save_progress
from sarlang_sft.runs import Run
from sarlang_sft.tracking import WandbTracker
from sarlang_sft.val_loss import Batch
from sarlang_sft.watchdog import Watchdog


class Continuation(TrainerCallback):
    """Goes on where the checkpoint of a resumed run was written, and has checkpoints from which that can be done."""

    def __init__(self, trainer: "ResumableTrainer") -> None:
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


class ResumableTrainer(Trainer):
    """Goes before another subclass of transformers' trainer, which learns; batches must have `images`, their names."""

    def join(self, run: Run, image_ops: list[str], tracker: WandbTracker | None) -> None:
        """Make this training the run's.

        Args:
            image_ops: Kept in every checkpoint, so that each can be evaluated as it was trained.
        """
        self.run = run
        self.image_ops = image_ops
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The mean loss at the end is that of the whole run, however often resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, start_time)
