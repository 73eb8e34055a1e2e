"""Dialogues to tensors: chat template, image tokens, and labels on the answers only."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from sarlang_sft.backbones import Backbone, training_template
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import AUGMENTING_OPS, load_picture, parse_ops

IGNORED = -100
Message = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """One dialogue as tokens: `ids` (N,) and which of them are `supervised` (N,), as lists."""

    ids: list[int]
    supervised: list[bool]


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


def render(
    processor: ProcessorMixin, backbone: Backbone, conversations: list[list[Message]]
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Conversations as text by the family's training template, and the character spans of what is supervised."""
    special = processor.tokenizer.special_tokens_map
    template = training_template(processor, backbone)
    return render_jinja_template(conversations, chat_template=template, return_assistant_tokens_mask=True, **special)


def tokenise(processor: ProcessorMixin, texts: list[str], spans: list[list[tuple[int, int]]]) -> list[Tokens]:
    """What [`render`] gave as tokens, every image still one placeholder."""
    encoded = processor.tokenizer(texts, return_offsets_mapping=True)
    result = []
    for ids, offsets, inside in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        starts, ends = np.asarray(offsets).reshape(-1, 2).T
        supervised = np.zeros(len(ids), dtype=bool)
        for begin, end in inside:
            supervised |= (starts < end) & (ends > begin)
        result.append(Tokens(ids, supervised.tolist()))
    return result


def image_runs(ids: list[int], expanded: list[int], image_token_id: int) -> list[int]:
    """How many image tokens the processor made of each placeholder.

    The processor's own mask of supervised tokens is computed before that expansion and shifts
    (huggingface/transformers#48793), so the two token sequences are walked side by side instead. Of placeholders that
    stand side by side only the sum is known: all but the first of them get one token.

    Args:
        ids: (N,) tokens with one placeholder per image.
        expanded: (L,) tokens with a run of placeholders per image.

    Raises:
        ValueError: The sequences differ in more than the length of the runs.
    """
    runs: list[int] = []
    position = 0
    for token, group in groupby(ids):
        count = len(list(group))
        length = count
        if token == image_token_id:
            length = sum(1 for _ in takewhile(lambda other: other == image_token_id, islice(expanded, position, None)))
            runs += [length - count + 1] + [1] * (count - 1)
        if length < count or expanded[position : position + length] != [token] * length:
            raise ValueError(f"the processor's tokens differ from the chat template's at position {position}")
        position += length
    if position != len(expanded):
        raise ValueError("the processor's tokens go on after the chat template's end")
    return runs


def expand_images(tokens: Tokens, runs: list[int], image_token_id: int) -> Tokens:
    """Every image placeholder as its run of image tokens, which are never supervised."""
    lengths = iter(runs)
    ids: list[int] = []
    supervised: list[bool] = []
    for token, flag in zip(tokens.ids, tokens.supervised, strict=True):
        times = next(lengths) if token == image_token_id else 1
        ids += [token] * times
        supervised += [flag and token != image_token_id] * times
    return Tokens(ids, supervised)


def shared_length(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(sequences), max(sequences)  # what these two share, everything between them shares
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


class Encoder:
    """What the flat and the tree collator share: pictures read, conversations tokenised, the processor called.

    Args:
        image_ops: Named operations of `imagery`; augmenting ones apply to rows of the split `train` alone, which must
            then have a `draw` (see `packing.PlannedRows`).
    """

    def __init__(self, processor: ProcessorMixin, backbone: Backbone, image_ops: list[str]) -> None:
        self.processor = processor
        self.backbone = backbone
        self.image_ops = image_ops
        self.augments = any(name in AUGMENTING_OPS for name, _ in parse_ops(image_ops))
        self.image_token_id = processor.tokenizer.convert_tokens_to_ids(backbone.image_token)

    def pictures(self, rows: list[dict[str, Any]]) -> list[Image.Image]:
        """The images of every row in order; raises [`UnreadableImageError`] naming one that cannot be read."""
        pictures = []
        for row in rows:
            rng = np.random.default_rng(row["draw"]) if self.augments and row["split"] == "train" else None
            root = Path(row["image_root"])
            pictures += [load_picture(path_inside(root, image), self.image_ops, rng) for image in row["images"]]
        return pictures

    def process(self, pictures: list[Image.Image], texts: list[str]) -> dict[str, torch.Tensor]:
        """The processor's tensors of texts whose placeholders stand for the pictures in order, right-padded."""
        return self.processor(images=pictures, text=texts, padding=True, padding_side="right", return_tensors="pt")

    def blank(self) -> tuple[Image.Image, str]:
        """A black picture and a text that holds nothing else, for batches without any image.

        Every rank must walk through the vision tower at every step: ZeRO-3 would wait for the one that does not
        forever, and DDP for its gradients (deepspeedai/DeepSpeed#7170, huggingface/trl#6617).
        """
        [text], _ = render(self.processor, self.backbone, [[{"role": "user", "content": [{"type": "image"}]}]])
        return Image.new("RGB", (56, 56)), text

    def tokens(self, rows: list[dict[str, Any]]) -> tuple[list[str], list[Tokens]]:
        """Every dialogue as text and as tokens; raises [`InputError`] naming one that has nothing to learn from."""
        if not rows:  # which tokenizers do not take
            return [], []
        conversations = [to_messages(row["turns"], len(row["images"])) for row in rows]
        texts, spans = render(self.processor, self.backbone, conversations)
        tokenised = tokenise(self.processor, texts, spans)
        for row, tokens in zip(rows, tokenised, strict=True):
            if not any(tokens.supervised):
                raise InputError(
                    f"dialogue {row['id']} of {', '.join(row['images']) or 'no image'}: no token carries loss; its "
                    "answers are empty or not supervised"
                )
        return texts, tokenised


class DialogueCollator(Encoder):
    """Dialogues (`id, turns, images, image_root, split, draw`) to a padded batch, one per sequence."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, L) int64, right-padded, and the processor's image tensors.

        A batch without any image gets a sequence with a black one and without labels, see `blank`.
        """
        texts, tokenised = self.tokens(rows)
        pictures = self.pictures(rows)
        if not pictures:  # one more sequence, which no label belongs to
            picture, text = self.blank()
            pictures, texts = [picture], [*texts, text]
        batch = self.process(pictures, texts)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for index, tokens in enumerate(tokenised):
            length = int(batch["attention_mask"][index].sum())
            ids = batch["input_ids"][index, :length]
            runs = image_runs(tokens.ids, ids.tolist(), self.image_token_id)
            kept = torch.tensor(expand_images(tokens, runs, self.image_token_id).supervised)
            labels[index, :length][kept] = ids[kept]
        return {**batch, "labels": labels}
