"""Image trees: an image is encoded once, and everything said about it branches off behind it.

A tree is the list of dialogues about one image. Its sequence is trunk + branch 1 + ... + branch K: the trunk holds the
tokens that all its dialogues begin with, images included, and every branch holds the rest of one dialogue. A token
attends to the trunk and to its own branch only, and positions of every branch go on where the trunk ends, so that loss
and gradients are those of K separate samples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

from sarlang_sft.backbones import Backbone
from sarlang_sft.collate import IGNORED, Encoder, Tokens, expand_images, image_runs, shared_length

Dialogue = dict[str, Any]  # a row of `read_mixture`
TRUNK = 0  # branches count from 1
PADDING = -1


@dataclass(frozen=True)
class TreeTensors:
    """One tree of L tokens: `ids`, `labels`, `branch` (L,) int64, and `positions` (L,) or (3, L) int64."""

    ids: torch.Tensor
    labels: torch.Tensor
    branch: torch.Tensor
    positions: torch.Tensor


def trunk_length(dialogues: list[Tokens]) -> int:
    """How many tokens all dialogues begin with, and that come before the last token ahead of any supervised one.

    A label stands one place behind the token that predicts it; that token must belong to the branch.
    """
    shared = shared_length([dialogue.ids for dialogue in dialogues])
    return min(shared, *(dialogue.supervised.index(True) - 1 for dialogue in dialogues))


def build_tree(
    dialogues: list[Tokens],
    runs: list[int],
    grids: torch.Tensor | None,
    processor: ProcessorMixin,
    backbone: Backbone,
    image_token_id: int,
) -> TreeTensors:
    """Lay the dialogues of one image out as a tree.

    Args:
        dialogues: Tokens with one placeholder per image; all of them hold the same images.
        runs: Number of image tokens of each image.
        grids: (n, 3) patches of each image, where the processor gives them.

    Raises:
        ValueError: The dialogues differ before the end of their images.
    """
    cut = trunk_length(dialogues)
    trunk_ids = dialogues[0].ids[:cut]
    if any(dialogue.ids.count(image_token_id) != len(runs) for dialogue in dialogues) or (
        trunk_ids.count(image_token_id) != len(runs)
    ):
        raise ValueError("the dialogues of a tree must begin with the same images")
    trunk = expand_images(Tokens(trunk_ids, [False] * cut), runs, image_token_id).ids
    positions = backbone.positions(processor, torch.tensor(trunk), grids)
    start = int(positions.max()) + 1 if trunk else 0
    ids, labels = list(trunk), [IGNORED] * len(trunk)
    branch, places = [TRUNK] * len(trunk), [positions]
    for number, dialogue in enumerate(dialogues, start=1):
        own, supervised = dialogue.ids[cut:], dialogue.supervised[cut:]
        ids += own
        labels += [token if flag else IGNORED for token, flag in zip(own, supervised, strict=True)]
        branch += [number] * len(own)
        places.append((torch.arange(len(own)) + start).expand(*positions.shape[:-1], -1))
    return TreeTensors(torch.tensor(ids), torch.tensor(labels), torch.tensor(branch), torch.cat(places, dim=-1))


class TreeCollator(Encoder):
    """Rows of trees to a padded batch; several trees share a row.

    Args:
        row_length: Every row is padded to this many tokens; None pads to the longest of the batch. FlexAttention is
            compiled once per shape, so that a fixed length saves it from doing so at every step.
    """

    def __init__(
        self, processor: ProcessorMixin, backbone: Backbone, image_ops: list[str], row_length: int | None = None
    ) -> None:
        super().__init__(processor, backbone, image_ops)
        self.row_length = row_length

    def __call__(self, rows: list[list[list[Dialogue]]]) -> dict[str, torch.Tensor]:
        """Collate rows; each is a list of trees, each of them a list of dialogues about the same images.

        Returns:
            `input_ids`, `labels` (B, L) int64; `position_ids` (B, L) or (3, B, L) int64; `segments` (B, L, 2) int32:
            the number of a token's tree in its row and of its branch (0 is the trunk), -1 where it is padding; and
            the processor's image tensors. Where no row has anything to keep apart (one tree of one branch each), an
            ordinary `attention_mask` (B, L) stands for `segments`, which causal kernels take without a mask. A batch
            without any image gets a trunk with a black one, see `blank`.

        Raises:
            InputError: A dialogue has no token to learn from, or an image cannot be read; names it.
        """
        trees = [tree for row in rows for tree in row]
        texts, tokenised = self.tokens([dialogue for tree in trees for dialogue in tree])
        firsts = [sum(map(len, trees[:index])) for index in range(len(trees))]
        pictures, prompts = self.pictures([tree[0] for tree in trees]), [texts[first] for first in firsts]
        blank = not pictures
        if blank:
            picture, text = self.blank()
            pictures, prompts = [picture], [*prompts, text]
        batch = self.process(pictures, prompts)
        expanded, mask = batch["input_ids"], batch["attention_mask"].bool()
        images = {name: value for name, value in batch.items() if name.startswith(("pixel_", "image_"))}
        grids = iter(images.get("image_grid_thw", ()))
        built = []
        for index, (tree, first) in enumerate(zip(trees, firsts, strict=True)):
            runs = image_runs(tokenised[first].ids, expanded[index][mask[index]].tolist(), self.image_token_id)
            own = [next(grids) for _ in runs] if "image_grid_thw" in images else []
            built.append(
                build_tree(
                    tokenised[first : first + len(tree)],
                    runs,
                    torch.stack(own) if own else None,
                    self.processor,
                    self.backbone,
                    self.image_token_id,
                )
            )
        places = iter(built)
        laid_out = [[next(places) for _ in row] for row in rows] or [[]]
        if blank:
            laid_out[-1].append(self._trunk_alone(expanded[-1][mask[-1]], images.get("image_grid_thw")))
        return {**self._pad(laid_out), **images}

    def _trunk_alone(self, ids: torch.Tensor, grids: torch.Tensor | None) -> TreeTensors:
        positions = self.backbone.positions(self.processor, ids, grids)
        return TreeTensors(ids, torch.full_like(ids, IGNORED), torch.full_like(ids, TRUNK), positions)

    def _pad(self, rows: list[list[TreeTensors]]) -> dict[str, torch.Tensor]:
        longest = max(sum(len(tree.ids) for tree in row) for row in rows)
        length = max(longest, self.row_length or 0)
        tokenizer = self.processor.tokenizer

        def joined(parts: list[torch.Tensor], filling: int) -> torch.Tensor:
            row = torch.cat(parts, dim=-1)
            return torch.nn.functional.pad(row, (0, length - row.shape[-1]), value=filling)

        numbers = [[torch.full_like(tree.branch, number) for number, tree in enumerate(row)] for row in rows]
        segments = [
            torch.stack([joined(number, PADDING), joined([tree.branch for tree in row], PADDING)], dim=-1)
            for number, row in zip(numbers, rows, strict=True)
        ]
        layout = torch.stack(segments).int()
        if layout[..., 0].max() == 0 and layout[..., 1].max() <= 1:
            mask = {"attention_mask": (layout[..., 0] != PADDING).long()}
        else:
            mask = {"segments": layout}
        return {
            "input_ids": torch.stack([joined([tree.ids for tree in row], tokenizer.pad_token_id) for row in rows]),
            "labels": torch.stack([joined([tree.labels for tree in row], IGNORED) for row in rows]),
            "position_ids": torch.stack([joined([tree.positions for tree in row], 0) for row in rows], dim=-2),
            **mask,
        }
