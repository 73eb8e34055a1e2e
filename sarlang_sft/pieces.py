"""Tokens as pieces that a person can read: characters whole, special tokens apart, the run of an image as one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from sarlang_sft.collate import Encoder

TEXT, SPECIAL, IMAGE = "text", "special", "image"
CONTEXT = 8  # tokens read along: decoders drop the space in front of the first word
LONGEST_CHARACTER = 4  # tokens: UTF-8 has at most so many bytes


@dataclass(frozen=True)
class Piece:
    """Tokens that are shown as one: those of a character, or the run of an image.

    Attributes:
        kind: `text`, `special` or `image`.
        trained: Whether they carry loss.
    """

    text: str
    ids: list[int]
    kind: str
    trained: bool


def token_count(pieces: list[Piece], kind: str = "") -> int:
    """How many tokens the pieces stand for; with a kind, those of it."""
    return sum(len(piece.ids) for piece in pieces if kind in ("", piece.kind))


def trained_count(pieces: list[Piece]) -> int:
    """How many of the pieces' tokens carry loss."""
    return token_count([piece for piece in pieces if piece.trained])


def pieces_of(encoder: Encoder, ids: list[int], trained: list[bool], before: list[int]) -> list[Piece]:
    """Tokens as pieces.

    Args:
        trained: Of every token, whether it carries loss.
        before: The tokens in front of them.
    """
    tokenizer = encoder.processor.tokenizer
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    kinds = [IMAGE if token == encoder.image_token_id else SPECIAL if token in special else TEXT for token in ids]
    pieces: list[Piece] = []
    read = list(before)
    for (kind, flag), group in groupby(zip(kinds, trained, ids, strict=True), key=lambda item: item[:2]):
        run = [token for *_, token in group]
        if kind == IMAGE:
            pieces.append(Piece(encoder.backbone.image_token, run, kind, flag))
        elif kind == SPECIAL:
            pieces += [Piece(tokenizer.convert_ids_to_tokens(token), [token], kind, flag) for token in run]
        else:
            pieces += [Piece(text, own, kind, flag) for text, own in characters(tokenizer, run, read)]
        read += run
    return pieces


def characters(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], before: list[int]
) -> Iterator[tuple[str, list[int]]]:
    """The text of every token, or of several that make up one character."""
    begin = 0
    for end in range(1, len(ids) + 1):
        context = [*before, *ids[:begin]][-CONTEXT:]
        known, text = (
            tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
            for tokens in (context, [*context, *ids[begin:end]])
        )
        broken = text.endswith("\ufffd") and end < len(ids) and end - begin < LONGEST_CHARACTER
        if not broken:
            yield text[len(known) :], ids[begin:end]
            begin = end
