"""What a backbone makes of images by their size: tokens, stretching, and the shapes that it refuses."""

import math
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, ProcessorMixin

from sarlang_sft.backbones import BACKBONES, Backbone, find_backbone
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import LARGEST_ASPECT
from sarlang_sft.loading import load_processor

SMALLEST_SIDE = 16  # pixels, where no backbone is chosen
MOST_STRETCH = 4.0

_QWEN2 = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}}
_QWEN3 = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
_CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
_TILINGS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_SIDES = [384 * tiles for tiles in range(1, 7)]


@dataclass(frozen=True)
class Released:
    """The settings that a family's released models have in their `preprocessor_config.json` on the hub.

    Attributes:
        patch: Side of a patch of the vision tower, in pixels.
        image_processor: Settings of the image processor.
        processor: Settings of the processor around it.
    """

    patch: int
    image_processor: dict[str, Any]
    processor: dict[str, int]


RELEASED = {
    "qwen2_vl": Released(14, _QWEN2, {}),
    "qwen2_5_vl": Released(14, _QWEN2, {}),
    "qwen3_vl": Released(16, _QWEN3, {}),
    "llava": Released(14, _CLIP, {"patch_size": 14}),
    "llava_next": Released(14, {**_CLIP, "image_grid_pinpoints": _TILINGS}, {"patch_size": 14}),
    "llava_onevision": Released(
        14,
        {
            "size": {"height": 384, "width": 384},
            "image_grid_pinpoints": [[height, width] for height in _SIDES for width in _SIDES],
        },
        {"num_image_tokens": 729},
    ),
}


@dataclass(frozen=True)
class Sight:
    """A backbone's processor, and `factor`, the side in pixels of what it shows its model as one image token."""

    processor: ProcessorMixin
    factor: int

    def tokens(self, width: int, height: int) -> int:
        """Image tokens of an image of this size in pixels; raises ValueError where the processor refuses it."""
        return self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0]

    def stretch(self, width: int, height: int) -> float:
        """How many times its sides are stretched: pixels behind its tokens per stored pixel, as the square root."""
        return math.sqrt(self.tokens(width, height) / (width * height)) * self.factor


def choose_sight(model: str | None, family: str | None, max_pixels: int | None) -> Sight | None:
    """The eyes of a model, or of a family's released models where there is none at hand; None if neither is given.

    Args:
        model: Folder or name on the hub; only its configuration and processor are read.
        max_pixels: As in training; None keeps the processor's own.

    Raises:
        InputError: Both are given, the family is unknown, or the model cannot be used.
    """
    if model and family:
        raise InputError(f"--family {family}: --model {model} says what family it is; give one of the two")
    if model:
        backbone = find_backbone(model)
        patch = AutoConfig.from_pretrained(model).vision_config.patch_size
        return Sight(load_processor(model, backbone, max_pixels), _factor(patch, backbone))
    if not family:
        if max_pixels is not None:
            raise InputError(f"--max_pixels {max_pixels}: belongs to a backbone; give --model or --family as well")
        return None
    if family not in BACKBONES:
        raise InputError(f"--family {family}: unknown; choose one of {', '.join(BACKBONES)}")
    backbone, released = BACKBONES[family], RELEASED[family]
    with tempfile.TemporaryDirectory() as folder:
        backbone.build_tiny(Path(folder), [], 0)
        processor = load_processor(folder, backbone)
        processor.image_processor = type(processor.image_processor)(**released.image_processor)
        vars(processor).update(released.processor)
        processor.save_pretrained(folder)
        return Sight(load_processor(folder, backbone, max_pixels), _factor(released.patch, backbone))


def _factor(patch: int, backbone: Backbone) -> int:
    return patch * math.isqrt(backbone.patches_per_image_token)


@cache
def shape_problem(sight: Sight | None, width: int, height: int) -> tuple[str, str] | None:
    """(kind of finding, detail) about an image of this size in pixels, the gravest one, or None."""
    size = f"{width} x {height} pixels"
    if sight is None and max(width, height) > LARGEST_ASPECT * min(width, height):
        return "elongated_image", size
    if sight is None:
        return ("tiny_image", size) if min(width, height) < SMALLEST_SIDE else None
    try:
        stretch = sight.stretch(width, height)
    except ValueError as error:
        return "elongated_image", f"{size}: {error}"
    if min(width, height) < sight.factor:
        return "tiny_image", f"{size}, one image token is {sight.factor} wide; its sides become {stretch:.2g} times"
    if not 1 / MOST_STRETCH <= stretch <= MOST_STRETCH:
        return "strongly_resized", f"{size}: its sides become {stretch:.2g} times as long"
    return None
