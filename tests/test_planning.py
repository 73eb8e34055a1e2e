"""The planner's bytes against torch's own count of a real step on a CPU."""

from pathlib import Path

import pytest
import torch
from conftest import make_trainer, with_adapters
from torch.distributed._tools.mem_tracker import MemTracker

from sarlang_sft.backbones import BACKBONES, component_of
from sarlang_sft.loading import build_skeleton, load_processor
from sarlang_sft.planning_rehearsal import COUNTED, Batch, Precision, rehearse
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.trainable import choose_trainable, freeze_all_but, own_name, run_frozen_without_gradient
from sarlang_sft.tuning import TuningArguments

ROW = 2048


def counted_step(trainer: RunTrainer) -> tuple[int, Batch]:
    """Peak bytes of one forward and backward pass beside the weights, counted by torch, and the batch it computed."""
    rows = trainer.train_dataset
    inputs = trainer.data_collator([rows[0]])
    tokens, images = inputs["input_ids"].shape[1], len(rows[0])
    processor = trainer.processing_class
    height, width = (inputs["image_grid_thw"][0, 1:] * processor.image_processor.patch_size).tolist()
    model = trainer._wrap_model(trainer.model)
    if trainer.args.gradient_checkpointing:
        trainer._activate_gradient_checkpointing(trainer.args) if False else None
    tracker = MemTracker()
    tracker.track_external(model)
    cpu = torch.device("cpu")
    before = tracker.get_tracker_snapshot()[cpu]["Total"]
    with tracker:
        trainer.training_step(model, inputs, torch.tensor(1))
    return tracker.get_tracker_snapshot("peak")[cpu]["Total"] - before, Batch(1, tokens, images, width, height, tokens - 1)
