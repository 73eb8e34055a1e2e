"""The pictures that a vision tower gets, put together again from a processor's tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension

from sarlang_sft.boxes import Frame
from sarlang_sft.imagery import to_bytes


@dataclass(frozen=True)
class View:
    """One picture of an image.

    Attributes:
        pixels: (H, W, 3) uint8.
        frame: Where the pixels of the picture that `Backbone.frame` describes lie in it.
        tiles: Rows and columns of the tiles that it is cut into.
    """

    pixels: np.ndarray
    frame: Frame
    tiles: tuple[int, int] = (1, 1)


def one_picture(processor: ProcessorMixin, tensors: dict[str, torch.Tensor], number: int) -> list[View]:
    """Families that take every image as one picture of a fixed size.

    Args:
        tensors: Of the processor: `pixel_values` (n, 3, H, W).
        number: Of the image, from 0.
    """
    return [_whole(_bytes(processor, tensors["pixel_values"][number]))]


def joined_patches(processor: ProcessorMixin, tensors: dict[str, torch.Tensor], number: int) -> list[View]:
    """Qwen-VL: patches in the order of the merged tokens, every one repeated in time; see `one_picture`.

    Args:
        tensors: Of the processor: `pixel_values` (P, 3 * time * patch * patch) and `image_grid_thw` (n, 3).
    """
    images = processor.image_processor
    grids = tensors["image_grid_thw"]
    first = int(grids[:number].prod(dim=1).sum())
    _, rows, columns = grids[number].tolist()
    merge, patch = images.merge_size, images.patch_size
    patches = tensors["pixel_values"][first : first + rows * columns]
    shape = (rows // merge, columns // merge, merge, merge, 3, images.temporal_patch_size, patch, patch)
    patches = patches.reshape(shape)[:, :, :, :, :, 0]
    pixels = patches.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
    return [_whole(_bytes(processor, pixels))]


def overview_and_tiles(processor: ProcessorMixin, tensors: dict[str, torch.Tensor], number: int) -> list[View]:
    """LLaVA-NeXT and -OneVision: the image squeezed into a square, and its tiles joined; see `one_picture`.

    Args:
        tensors: Of the processor: `pixel_values` (n, 1 + tiles, 3, side, side) and `image_sizes` (n, 2), the height
            and width of every image.
    """
    overview, *tiles = tensors["pixel_values"][number]
    side = overview.shape[-1]
    height, width = tensors["image_sizes"][number].tolist()
    best = select_best_resolution((height, width), processor.image_processor.image_grid_pinpoints)
    inside = get_patch_output_size(torch.empty(3, height, width, device="meta"), best, ChannelDimension.FIRST)
    margin = [(outer - inner) // 2 for outer, inner in zip(best, inside, strict=True)]
    rows, columns = best[0] // side, best[1] // side
    joined = torch.stack(tiles[: rows * columns]).reshape(rows, columns, 3, side, side)
    joined = joined.permute(2, 0, 3, 1, 4).reshape(3, *best)
    image = Frame.of(width, height)
    tiled = image.resized(inside[1], inside[0]).cropped(-margin[1], -margin[0], best[1], best[0])
    return [
        View(_bytes(processor, overview), image.resized(side, side)),
        View(_bytes(processor, joined), tiled, (rows, columns)),
    ]


def _whole(pixels: np.ndarray) -> View:
    return View(pixels, Frame.of(pixels.shape[1], pixels.shape[0]))


def _bytes(processor: ProcessorMixin, normalised: torch.Tensor) -> np.ndarray:
    """(3, H, W) float as the processor normalised it to (H, W, 3) uint8."""
    images = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    return to_bytes(((normalised * std + mean) / images.rescale_factor).permute(1, 2, 0).numpy())
