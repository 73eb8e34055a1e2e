"""Ensembles in weight space: models of one architecture averaged into one, which costs no more than one of them.

Interpolation between a model before and after fine-tuning: WiSE-FT, Wortsman et al., arXiv 2109.01903, section 3.
Uniform and greedy soups of several fine-tuned models: Wortsman et al., arXiv 2203.05482, section 2 and algorithm 1.
Both expect models that were fine-tuned from the same weights; others can be averaged, and the figures show the harm.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from open_clip import CLIPTextCfg, CLIPVisionCfg
from open_clip.coca_model import MultimodalCfg
from torch import nn

from sarlang_sft.contrastive.models import SHOWN, ContrastiveModel, load_model, other_shapes
from sarlang_sft.errors import InputError

State = dict[str, torch.Tensor]
Parts = Mapping[str, float]  # how much of each model; the sum is 1

UNIFORM, GREEDY, WEIGHTED = "uniform", "greedy", "weighted"
SECTIONS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
# Fields of open_clip's configurations that change training or what a model starts from, and nothing in evaluation.
NOT_IN_EVALUATION = ("patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained", "hf_model_pretrained")


class Ingredients(NamedTuple):
    """Models that can be averaged.

    Attributes:
        model: The first, into which [`fill`] puts averages.
        states: The weights of all by name, float32 on the CPU; all of them are held at once.
    """

    model: ContrastiveModel
    states: dict[str, State]


def load_ingredients(
    names: Sequence[str], device: str = "cpu", resize_mode: str | None = None, image_ops: list[str] | None = None
) -> Ingredients:
    """Load models that shall be averaged, and make sure that they can be.

    Args:
        resize_mode: Of all, instead of each one's own, see [`load_model`].
        image_ops: Likewise.

    Raises:
        InputError: One cannot be loaded, or is not alike, see [`check_alike`].
    """
    different = list(dict.fromkeys(names))
    first = load_model(different[0], device=device, resize_mode=resize_mode, image_ops=image_ops)
    states = {different[0]: copy_state(first.model)}
    for name in different[1:]:
        other = load_model(name, resize_mode=resize_mode, image_ops=image_ops)
        check_alike(different[0], first, name, other)
        states[name] = copy_state(other.model)
    return Ingredients(first, states)


def check_alike(first_name: str, first: ContrastiveModel, name: str, other: ContrastiveModel) -> None:
    """Raise [`InputError`] unless two models differ in their weights alone.

    Beside shapes, what leaves no trace in them is compared, too: activations, heads, tokenizer, `preprocess` and
    `image_ops`. An average of models that see their images differently fits none of both ways.
    """
    if found := other_shapes(other.model.state_dict(), first.model.state_dict()):
        raise InputError(f"model {name}: is of another architecture than {first_name}: {found}; average models of one")
    same = "fine-tune both with the same, or set --resize_mode and --image_ops for all"
    compared = (
        ("architecture", architecture(first.config), architecture(other.config), "average models of one"),
        ("preprocess", asdict(first.preprocess), asdict(other.preprocess), same),
    )
    for what, ours, theirs, way_out in compared:
        keys = [key for key in {**ours, **theirs} if _plain(ours.get(key)) != _plain(theirs.get(key))]
        if keys:
            told = "; ".join(f"{key} is {theirs.get(key)}, not {ours.get(key)}" for key in keys[:SHOWN])
            raise InputError(f"model {name}: has another {what} than {first_name}: {told}; {way_out}")
    if first.image_ops != other.image_ops:
        raise InputError(
            f"model {name}: has the image_ops {other.image_ops}, and {first_name} has {first.image_ops}; {same}"
        )


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's `model_cfg` as one flat mapping with the defaults filled in, without what only training reads."""
    flat = {"quick_gelu": False, "custom_text": False}
    for key, value in config.items():
        if key in SECTIONS:
            filled = asdict(SECTIONS[key](**value))
            flat |= {f"{key}.{name}": one for name, one in filled.items() if name not in NOT_IN_EVALUATION}
        else:
            flat[key] = value
    return flat


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # as JSON has it


def average(states: Sequence[State], weights: Sequence[float]) -> State:
    """The weighted average of models: theta = sum of weights[i] x states[i].

    Floating-point tensors are summed in float64 and rounded once to their own dtype (float32 from [`load_model`]), so
    one model of weight 1 comes out bit by bit. Models of weight 0 are left out.

    - `logit_scale` is the logarithm of 1 / temperature and is averaged as it stands, as in WiSE-FT: what comes out is
      the geometric mean of the scales.
    - BatchNorm's running means and variances (ResNet towers) are averaged like weights. They are then the average of
      the models' statistics, not those of the averaged network, which re-estimating them on training images would give
      (Jordan et al., arXiv 2211.08403).
    - Integer buffers (`num_batches_tracked`, which evaluation does not read) are counts of one run and are not
      averaged: those of the model with most weight are taken, the first of equals.

    Args:
        states: With the same keys and shapes.
        weights: One for each state, 0 or more, with the sum 1.
    """
    used = [(state, weight) for state, weight in zip(states, weights, strict=True) if weight]
    main = max(used, key=lambda one: one[1])[0]
    averaged = {}
    for key, value in main.items():
        if value.is_floating_point():
            total = used[0][0][key].double() * used[0][1]
            for state, weight in used[1:]:
                total += state[key].double() * weight
            averaged[key] = total.to(value.dtype)
        else:
            averaged[key] = value.clone()
    return averaged


def mix(states: Mapping[str, State], parts: Parts) -> State:
    """[`average`] by name."""
    return average([states[name] for name in parts], list(parts.values()))


def interpolations(before: str, after: str, alphas: Sequence[float]) -> dict[float, Parts]:
    """The parts of two models at each alpha: 1 - alpha of the first, alpha of the second.

    Raises:
        InputError: An alpha is not between 0 and 1.
    """
    if wrong := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
        raise InputError(f"alphas {wrong[0]}: must lie between 0 (the first model) and 1 (the second)")
    if before == after:
        raise InputError(f"between {before}: names the same model twice; give the one before and the one after")
    return {alpha: {before: 1 - alpha, after: alpha} for alpha in sorted({*alphas})}


def uniform(names: Sequence[str]) -> Parts:
    """Equal parts of several models."""
    return dict.fromkeys(names, 1 / len(names))


def weighted(names: Sequence[str], weights: Sequence[float]) -> Parts:
    """Parts in the ratio of the weights given.

    Raises:
        InputError: There is not one positive weight for every model.
    """
    if len(weights) != len(names) or min(weights) <= 0:
        raise InputError(f"soup_weights: needs a number above 0 for each of the {len(names)} models of soup_of")
    return {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}


def greedy(names: Sequence[str], figure: Callable[[Parts], float]) -> Parts:
    """The greedy soup: from the best model on, each that does not make the figure fall is added in equal parts.

    Args:
        figure: Of a soup, the higher the better, on a set that is for choosing.
    """
    alone = {name: figure({name: 1.0}) for name in names}
    ranked = sorted(names, key=lambda name: -alone[name])
    chosen, best = [ranked[0]], alone[ranked[0]]
    for name in ranked[1:]:
        reached = figure(uniform([*chosen, name]))
        if reached >= best:
            chosen, best = [*chosen, name], reached
    return uniform(chosen)


def fill(model: ContrastiveModel, state: State) -> ContrastiveModel:
    """Put weights into a model, in place, and return it."""
    model.model.load_state_dict(state)
    return model


def copy_state(model: nn.Module) -> State:
    """A model's weights and buffers, copied to the CPU."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}


def state_hash(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors in the order of their names, in hexadecimal.

    It tells weights, not files: the same model in another format has the same.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key]
        digest.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
