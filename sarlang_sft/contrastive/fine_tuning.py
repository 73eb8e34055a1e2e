"""Fine-tuned recognition: an image tower with a linear head, trained end to end."""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from sarlang_sft.contrastive.class_folder import ClassFolder, few_shots
from sarlang_sft.contrastive.features import read_pictures
from sarlang_sft.contrastive.linear_probe import before_projection
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.recognition import Scored
from sarlang_sft.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, its rate falling to 0 as a cosine over all steps."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int


def fine_tune(
    model: ContrastiveModel, train: ClassFolder, schedule: Schedule, seed: int, unreadable: dict[Path, str]
) -> tuple[ContrastiveModel, nn.Linear]:
    """A trained copy of the model, without its projection where it has one, and the head on top.

    The augmenting operations among the model's `image_ops` are applied here and nowhere else. The last epoch counts.

    Args:
        seed: Draws the head, the order of images, and the augmentation.
        unreadable: Takes the training images that cannot be read, with the reason.

    Raises:
        InputError: No image can be read, or the loss is no finite number.
    """
    tuned = replace(model, model=copy.deepcopy(model.model))
    paths, labels = train.paths, torch.from_numpy(train.labels)
    batch = math.ceil(len(paths) / math.ceil(len(paths) / schedule.batch_size))  # nearly equal batches
    with torch.random.fork_rng(), before_projection(tuned):
        torch.manual_seed(seed)
        head = nn.Linear(_width(tuned), len(train.names)).to(model.device)
        tower = tuned.model.visual
        weights = [*tower.parameters(), *head.parameters()]
        optimiser = torch.optim.AdamW(weights, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        steps = schedule.epochs * math.ceil(len(paths) / batch)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
        tower.train()
        for epoch in range(schedule.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(paths))
            what = f"seed {seed}, epoch {epoch + 1} of {schedule.epochs}"
            shuffled = [paths[row] for row in order]
            for rows, pictures in read_pictures(tuned, shuffled, batch, unreadable, what, (seed, epoch)):
                features = tuned.model.encode_image(pictures.to(model.device), normalize=False)
                loss = functional.cross_entropy(head(features), labels[order[rows]].to(model.device))
                if not loss.isfinite():
                    raise InputError(f"--learning_rate {schedule.learning_rate}: the loss is {loss}; take a lower one")
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
                rates.step()
        # Batch norm's running statistics lag behind the weights where steps are few, as with shots.
        again = read_pictures(tuned, paths, batch, unreadable, f"seed {seed}, batch norm")
        update_bn((pictures for _, pictures in again), tower, model.device)
        tower.eval()
    if unreadable.keys() >= {*paths}:
        raise InputError(f"--train {train.root}: none of its {len(paths)} images can be read")
    return tuned, head


def _width(model: ContrastiveModel) -> int:
    """Of the features that [`before_projection`] lets through."""
    picture = model.picture(Image.new("RGB", (8, 8)))[None].to(model.device)
    with torch.inference_mode():
        return model.model.encode_image(picture, normalize=False).shape[1]


def score(model: ContrastiveModel, head: nn.Linear, test: ClassFolder, batch_size: int) -> Scored:
    """The logits of the test images that can be read."""
    unreadable: dict[Path, str] = {}
    logits, found = [], []
    with before_projection(model):
        for rows, pictures in read_pictures(model, test.paths, batch_size, unreadable, test.root.name):
            found += rows
            with torch.inference_mode():
                features = model.model.encode_image(pictures.to(model.device), normalize=False)
                logits.append(head(features).float().cpu())
    if not found:
        raise InputError(f"--test {test.root}: none of its {len(test.paths)} images can be read")
    return Scored(torch.cat(logits).numpy(), test.labels[found], unreadable)


def fine_tuned(
    model: ContrastiveModel,
    train: ClassFolder,
    test: ClassFolder,
    shots: int | None,
    seeds: list[int],
    schedule: Schedule,
) -> tuple[list[Scored], dict[str, Any]]:
    """Train on `train`, or `shots` images of every class, once per seed, and score each on `test`."""
    unreadable: dict[Path, str] = {}
    runs = []
    for seed in seeds:
        seen = train if shots is None else train.only(few_shots(train, shots, seed)[0])
        tuned, head = fine_tune(model, seen, schedule, seed, unreadable)
        runs.append(score(tuned, head, test, schedule.batch_size))
    return runs, {
        "train_images": len({*seen.paths} - unreadable.keys()),
        "train_unreadable": {str(at): why for at, why in unreadable.items()},
    }
