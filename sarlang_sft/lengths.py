"""How many tokens every dialogue and image will take, from texts and header sizes alone: no picture is decoded."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import ProcessorMixin

from sarlang_sft.backbones import Backbone
from sarlang_sft.collate import render, to_messages, tokenise
from sarlang_sft.imagery import frame_after

TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class Lengths:
    """Token counts of D dialogues.

    Attributes:
        record: (D,) int64 number of the image (or images) each dialogue is about.
        visual: (D,) int64 image tokens in front of each dialogue.
        trunk: (D,) int64 tokens up to and including the images: what the dialogues of an image share at least.
        branch: (D,) int64 tokens behind the images.
        answered: (D,) bool whether any answer has text.
    """

    record: np.ndarray
    visual: np.ndarray
    trunk: np.ndarray
    branch: np.ndarray
    answered: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """(D,) tokens of each dialogue as a sample of its own."""
        return self.trunk + self.branch


def measure(table: pa.Table, processor: ProcessorMixin, backbone: Backbone, image_ops: list[str]) -> Lengths:
    """Count the tokens of every dialogue of `read_mixture`; equal texts are counted once.

    Every image of a record counts with the size of the first, the only one that a record stores.
    """
    turns = table["turns"].to_pylist()
    images = np.array([len(names) for names in table["images"].to_pylist()], dtype=np.int64)
    texts: dict[tuple, int] = {}
    kind = np.array(
        [
            texts.setdefault((count, *((turn["question"], turn["answer"]) for turn in dialogue)), len(texts))
            for count, dialogue in zip(images.tolist(), turns, strict=True)
        ],
        dtype=np.int64,
    )
    before, after = _text_lengths(list(texts), processor, backbone)
    sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)
    sizes[images == 0] = sizes.max(initial=1)  # text only: any size, since it counts for no image
    unique, size = np.unique(sizes, axis=0, return_inverse=True)
    resized = [frame_after(image_ops, width, height).size for width, height in unique.tolist()]
    counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in resized])
    visual = np.array(counted["num_image_tokens"], dtype=np.int64)[size.reshape(-1)] * images
    answered = [any(turn["answer"].strip() for turn in dialogue) for dialogue in turns]
    return Lengths(
        record=table["record"].to_numpy(),
        visual=visual,
        trunk=before[kind] - images + visual,
        branch=after[kind],
        answered=np.array(answered, dtype=bool),
    )


def _text_lengths(texts: list[tuple], processor: ProcessorMixin, backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    """Tokens before and behind the end of the image placeholders, of (number of images, (question, answer), ...)."""
    image_token_id = processor.tokenizer.convert_tokens_to_ids(backbone.image_token)
    before, whole = [], []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        conversations = [
            to_messages([{"question": question, "answer": answer} for question, answer in pairs], count)
            for count, *pairs in texts[start : start + TEXTS_AT_ONCE]
        ]
        for tokens in tokenise(processor, *render(processor, backbone, conversations)):
            places = [place for place, token in enumerate(tokens.ids) if token == image_token_id]
            before.append(places[-1] + 1 if places else 0)
            whole.append(len(tokens.ids))
    cut = np.array(before, dtype=np.int64)
    return cut, np.array(whole, dtype=np.int64) - cut
