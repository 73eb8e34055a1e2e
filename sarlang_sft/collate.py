"""Dialogues to tensors: chat template, image tokens, and labels on the answers only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from sarlang_sft.backbones import Backbone
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture

IGNORED = -100
Message = dict[str, Any]


def to_messages(turns: Sequence[dict[str, str]], images: int, answered: bool = True) -> list[Message]:
    """Turns (`question`, `answer`) as chat messages, the images first.

    Args:
        images: How many images stand before the first question.
        answered: False leaves out the last answer, to be generated.
    """
    messages: list[Message] = []
    for index, turn in enumerate(turns):
        placeholders = [{"type": "image"}] * (images if index == 0 else 0)
        messages.append({"role": "user", "content": [*placeholders, {"type": "text", "text": turn["question"]}]})
        messages.append({"role": "assistant", "content": turn["answer"]})
    return messages if answered else messages[:-1]


def supervised_tokens(
    processor: ProcessorMixin, backbone: Backbone, messages: list[Message]
) -> tuple[list[int], list[bool]]:
    """Token ids before image expansion, and which of them stand inside the template's generation markers."""
    rendered = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=backbone.training_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return rendered["input_ids"], [bool(flag) for flag in rendered["assistant_masks"]]


def expand_mask(ids: list[int], mask: list[bool], expanded: list[int], image_token_id: int) -> list[bool]:
    """Carry a token mask over the processor's expansion of every image placeholder into a run of image tokens.

    The processor's own mask is computed before that expansion and shifts (huggingface/transformers#48793), so the two
    token sequences are walked side by side instead. Image tokens are never supervised.

    Args:
        ids: (N,) tokens with one placeholder per image.
        mask: (N,) flags of `ids`.
        expanded: (L,) tokens with a run of placeholders per image.

    Raises:
        ValueError: The sequences differ in more than the length of the runs.
    """
    result: list[bool] = []
    position = 0
    for token, flag in zip(ids, mask, strict=True):
        if position >= len(expanded) or expanded[position] != token:
            raise ValueError(f"the processor's tokens differ from the chat template's at position {position}")
        result.append(flag and token != image_token_id)
        position += 1
        while token == image_token_id and position < len(expanded) and expanded[position] == token:
            result.append(False)
            position += 1
    if position != len(expanded):
        raise ValueError("the processor's tokens go on after the chat template's end")
    return result


class DialogueCollator:
    """Turns rows of `read_dialogue_table` into a padded batch; reads and decodes their images.

    Args:
        image_root: What the image paths are relative to.
        image_ops: Named operations of `imagery`; augmenting ones apply to rows of the split `train` alone.
    """

    def __init__(self, processor: ProcessorMixin, backbone: Backbone, image_root: Path, image_ops: list[str]) -> None:
        self.processor = processor
        self.backbone = backbone
        self.image_root = image_root
        self.image_ops = image_ops
        self.image_token_id = processor.tokenizer.convert_tokens_to_ids(backbone.image_token)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, L) int64, right-padded, and the processor's image tensors.

        Raises:
            InputError: A dialogue has no token to learn from, or an image cannot be read; names it.
        """
        # torch's generator is seeded anew in every loader worker and saved with checkpoints; numpy's is not.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        pictures = [
            load_picture(path_inside(self.image_root, image), self.image_ops, rng if row["split"] == "train" else None)
            for row in rows
            for image in row["images"]
        ]
        conversations = [to_messages(row["turns"], len(row["images"])) for row in rows]
        batch = self.processor(
            images=pictures or None,
            text=[
                self.processor.tokenizer.apply_chat_template(
                    messages, chat_template=self.backbone.training_template, tokenize=False
                )
                for messages in conversations
            ],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for index, (row, messages) in enumerate(zip(rows, conversations, strict=True)):
            ids, mask = supervised_tokens(self.processor, self.backbone, messages)
            length = int(batch["attention_mask"][index].sum())
            tokens = batch["input_ids"][index, :length]
            kept = torch.tensor(expand_mask(ids, mask, tokens.tolist(), self.image_token_id))
            if not kept.any():
                raise InputError(
                    f"dialogue {row['id']}: no token carries loss; its answers are empty or not supervised"
                )
            labels[index, :length][kept] = tokens[kept]
        return {**batch, "labels": labels}
