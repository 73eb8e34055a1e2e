"""Ensembles of contrastive models, on tiny ones that have learned two different domains."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sarlang_sft.contrastive.ensemble_points import choose_point, mean_figure, plan_points
from sarlang_sft.contrastive.ensemble_sets import (
    evaluate_set,
    mean_of_scores,
    mean_recall,
    read_set,
    score_sets,
)
from sarlang_sft.contrastive.ensembles import (
    average,
    copy_state,
    greedy,
    interpolations,
    load_ingredients,
    mix,
    state_hash,
    uniform,
    weighted,
)
from sarlang_sft.contrastive.models import CONFIG, WEIGHTS, ContrastiveModel, load_model, save_model
from sarlang_sft.errors import InputError

STRIPES = ("harbour", "forest", "open_field")  # told apart by the direction of stripes
SPOTS = ("tank", "truck", "howitzer")  # by the place of a bright spot


def picture(kind: str, rng: np.random.Generator) -> np.ndarray:
    pixels = rng.exponential(30, (64, 64))
    if kind in STRIPES:
        along = np.indices((64, 64))[: 1 + (kind == "open_field")].sum(0) if kind != "forest" else np.indices((64, 64))[1]
        pixels += 100 * ((along // 6) % 2)
    else:
        left = 4 + 20 * SPOTS.index(kind) + rng.integers(0, 4)
        pixels[24:40, left : left + 14] += 200
    return pixels.clip(0, 255).astype(np.uint8)


def write_classes(root: Path, classes: tuple[str, ...], count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(name, rng)).save(root / name / f"{number}.png")
    return root


def teach(model: ContrastiveModel, classes: tuple[str, ...], steps: int, seed: int, rate: float = 1e-3) -> None:
    rng = np.random.default_rng(seed)
    texts = model.tokenizer([f"a radar image of a {name.replace('_', ' ')}." for name in classes])
    model.model.train()
    optimiser = torch.optim.AdamW(model.model.parameters(), rate)
    for _ in range(steps):
        labels = torch.from_numpy(rng.integers(0, len(classes), 24))
        images = [model.picture(Image.fromarray(picture(classes[label], rng)).convert("RGB")) for label in labels]
        out = model.model(torch.stack(images), texts)
        logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        functional.cross_entropy(logits, labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that knows stripes, two taught spots from it, and images of both domains."""
    root = tmp_path_factory.mktemp("ensemble")
    torch.manual_seed(0)
    made = {"stripes": write_classes(root / "stripes/val", STRIPES, 20, 1)}
    made["spots"] = write_classes(root / "spots/val", SPOTS, 20, 2)
    made["spots_test"] = write_classes(root / "spots/test", SPOTS, 10, 3)
    model = load_model("sar-vit-tiny")
    teach(model, STRIPES, 40, 0)
    save_model(model, root / "before")
    before = copy_state(model.model)
    for name, seed, steps in (("after", 1, 40), ("other", 2, 15)):
        model.model.load_state_dict(before)
        teach(model, SPOTS, steps, seed)
        save_model(model, root / name)
    return made | {name: root / name for name in ("before", "after", "other")}


def spec(name: str, folder: Path) -> str:
    return f"{name}=zero_shot:{folder}"
