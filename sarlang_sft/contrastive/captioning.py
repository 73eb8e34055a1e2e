"""Captions by CoCa: of pictures, and of a split of a data folder as predictions.

open_clip's CoCa keeps no keys and values: every token reads the whole text again. The time of a caption grows with the
square of its length; the image is encoded once.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip import CoCa
from open_clip.tokenizer import SimpleTokenizer

from sarlang_sft.contrastive.beam_search import DecodingArguments, beam_search
from sarlang_sft.contrastive.features import read_pictures
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import Question
from sarlang_sft.image_files import path_inside
from sarlang_sft.prediction_files import answered_ids, append_rows, make_row, merge_parts, part_of

# CLIP's tokenizer writes lower case and parts every digit and sign from its neighbours: what is put together again.
JOINED = (
    (re.compile(r"(?<=\d) (?=\d)"), ""),  # 1 2 ships
    (re.compile(r"(?<=\d) ([.:]) (?=\d)"), r"\1"),  # 0 . 5
    (re.compile(r"(?<=\w) ?(-) ?(?=\w)"), r"\1"),  # two - lane
    (re.compile(r" (?=[.,;:!?%)\]])"), ""),
    (re.compile(r"(?<=[(\[]) "), ""),
    (re.compile(r" (?='(s|t|re|ve|m|ll|d)\b)"), ""),
)


class Caption(NamedTuple):
    """A caption and the sum of the natural log-probabilities of its tokens, where the search knows it."""

    text: str
    logprob: float | None


def check_captioner(model: ContrastiveModel) -> tuple[CoCa, SimpleTokenizer]:
    """The parts that captions need; raises [`InputError`] if the model writes none."""
    if not isinstance(model.model, CoCa):
        raise InputError("model: writes no captions; give a CoCa, such as one of recipes/sarcap.py")
    if not isinstance(model.tokenizer, SimpleTokenizer):
        raise InputError("model: captions are written with CLIP's tokenizer alone; this CoCa has another one")
    return model.model, model.tokenizer


def caption_pictures(
    model: ContrastiveModel, pictures: torch.Tensor, decoding: DecodingArguments | None = None
) -> list[Caption]:
    """Captions of (n, 3, H, W) float32 pictures, see [`ContrastiveModel.picture`].

    Raises:
        InputError: The model is no CoCa with CLIP's tokenizer, or shorter than the shortest caption.
    """
    decoding = decoding or DecodingArguments()
    coca, tokenizer = check_captioner(model)
    longest = min(decoding.max_length or coca.context_length, coca.context_length)
    if longest <= decoding.min_length:
        raise InputError(f"min_length {decoding.min_length}: must be below the model's context of {longest} tokens")
    groups, size = decoding.layout
    with torch.inference_mode(), _last_position_alone(coca):
        seen = coca(pictures.to(model.device))
        latent, parts = (seen[name].repeat_interleave(groups * size, 0) for name in ("image_features", "image_embs"))

        def next_logits(tokens: torch.Tensor) -> torch.Tensor:
            out = coca(None, tokens, image_latent=latent, image_embs=parts, output_labels=False)
            return out["logits"][:, -1]

        found = beam_search(
            next_logits,
            len(pictures),
            decoding,
            tokenizer.sot_token_id,
            tokenizer.eot_token_id,
            longest,
            model.device,
        )
    known = not decoding.sum_logits and not decoding.diversity
    return [Caption(decode_text(tokenizer, one.tokens), one.total if known else None) for one in found]


@contextmanager
def _last_position_alone(coca: CoCa) -> Iterator[None]:
    """Logits of the last position alone are reckoned: those of all take 49,408 floats for every token and beam."""
    norm = coca.text_decoder.ln_final
    hook = norm.register_forward_hook(lambda module, inputs, output: output[:, -1:])
    try:
        yield
    finally:
        hook.remove()


def decode_text(tokenizer: SimpleTokenizer, tokens: Sequence[int]) -> str:
    """Tokens as text. Numbers and punctuation are put together again; what was a capital letter is not known."""
    special = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    text = " ".join(tokenizer.decode([token for token in tokens if token not in special]).split())
    for pattern, instead in JOINED:
        text = pattern.sub(instead, text)
    return text


def caption_to_file(
    model: ContrastiveModel,
    questions: Sequence[Question],
    image_root: Path,
    path: Path,
    decoding: DecodingArguments,
    batch_size: int,
) -> tuple[int, dict[str, str]]:
    """Write the caption of every question that `path` and its part do not hold yet, one JSON line each.

    All questions of an image get the one caption that the model has of it.

    Args:
        questions: Whose answers are captions; with one image each, or they stay unanswered.
        path: Complete, and in the order of `questions`, when this returns.

    Returns:
        How many images were captioned, and the reason by name of those that could not be.
    """
    unusable: dict[str, str] = {}
    done = answered_ids(path, questions)
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        if len(question.images) != 1:
            unusable[question.id] = f"is about {len(question.images)} images, not one"
        elif question.id not in done:
            by_image.setdefault(question.images[0], []).append(question)
    inside: dict[Path, list[str]] = {}
    for name in by_image:
        try:
            inside.setdefault(path_inside(image_root, name), []).append(name)
        except InputError:
            unusable[name] = "path leaves the image root"
    paths, unreadable = list(inside), {}
    count = 0
    for rows, pictures in read_pictures(model, paths, batch_size, unreadable, "captions"):
        captions = caption_pictures(model, pictures, decoding)
        told = [
            make_row(question, caption.text, caption.logprob)
            for row, caption in zip(rows, captions, strict=True)
            for name in inside[paths[row]]
            for question in by_image[name]
        ]
        append_rows(part_of(path, 0), told)
        count += len(rows)
    unusable |= {name: f"cannot be read ({why})" for place, why in unreadable.items() for name in inside[place]}
    merge_parts(path, questions)
    return count, unusable
