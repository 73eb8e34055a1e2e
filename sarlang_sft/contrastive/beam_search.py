"""Beam search in groups, with what gives the next token's logits as a function.

open_clip 3.3 decodes CoCa with `BeamSearchScorer` of transformers, which its version 5 no longer has. This search has
that scorer's rules (transformers 4.55, `early_stopping=False`), without loops over beams: of the 2 k best
continuations of a group of k beams those that end, and are among the k best, are finished texts; the k best of the
others go on; a group is done once the worst of its k finished texts is as good as its best continuation now. The score
of a text is the sum over its tokens over length ** length_penalty, where the length counts the start and, if it came,
the end. Log-probabilities are added up; open_clip adds up logits, which `sum_logits` does, too.

As published, nothing keeps the groups apart: open_clip applies no diversity penalty, so that all groups find the same
texts, and 6 beams in 3 groups are a search with 2 beams, made three times. It is made once here, with the same result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sarlang_sft.errors import InputError

NEVER = -1e9  # sum of beams that are not begun yet

NextLogits = Callable[[torch.Tensor], torch.Tensor]  # (N, L) int64 to (N, vocabulary)


@dataclass(frozen=True)
class DecodingArguments:
    """How a caption is searched for."""

    beams: int = field(default=6, metadata={"help": "Texts followed at once; 1: greedily the likeliest token."})
    groups: int = field(default=3, metadata={"help": "Groups that the beams are parted into (with more than 1)."})
    diversity: float = field(
        default=0.0,
        metadata={
            "help": "Subtracted from a token's score for every beam of an earlier group that has just taken it "
            "(Hamming diversity, arXiv 1610.02424); 0, as published: all groups find the same."
        },
    )
    min_length: int = field(default=5, metadata={"help": "Shortest caption in tokens, the start included."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest in tokens, the start included; default: the model's context (open_clip's is 30)."},
    )
    length_penalty: float = field(default=1.0, metadata={"help": "Power of the length that scores are divided by."})
    sum_logits: bool = field(
        default=False,
        metadata={"help": "Add up logits, as open_clip 3.3 does, instead of log-probabilities."},
    )

    def __post_init__(self) -> None:
        if self.beams < 1 or self.groups < 1 or (self.beams > 1 and self.beams % self.groups):
            raise InputError(
                f"beams {self.beams}, groups {self.groups}: beams must be a multiple of groups, from 1 on"
            )
        if self.diversity < 0:
            raise InputError(f"diversity {self.diversity}: must be at least 0")
        if self.min_length < 1 or (self.max_length is not None and self.max_length <= max(1, self.min_length)):
            raise InputError(
                f"min_length {self.min_length}, max_length {self.max_length}: must be above 0, and the longest longer"
            )

    @property
    def layout(self) -> tuple[int, int]:
        """Groups that have to be searched, and beams in each."""
        groups = self.groups if self.beams > 1 else 1
        return (groups if self.diversity else 1), self.beams // groups


class FoundText(NamedTuple):
    """A text as the search found it.

    Attributes:
        tokens: Without start and end.
        ended: Whether its end was found; otherwise it is cut off at the longest length.
        score: What it was chosen by.
        total: Sum over its tokens and its end: the log-probability, unless logits are added or a penalty is taken off.
    """

    tokens: list[int]
    ended: bool
    score: float
    total: float


@dataclass
class _Finished:
    """The best finished texts so far: scores and sums (items, groups, k), tokens (items, groups, k, longest)."""

    scores: torch.Tensor
    sums: torch.Tensor
    tokens: torch.Tensor

    def add(self, group: int, scores: torch.Tensor, sums: torch.Tensor, tokens: torch.Tensor) -> None:
        """Of these, (items, k) and (items, k, L), and those of a group keep the best."""
        size, rest = scores.shape[1], self.tokens.shape[-1] - tokens.shape[-1]
        tokens = torch.nn.functional.pad(tokens, (0, rest), value=-1)
        self.scores[:, group], which = torch.cat([self.scores[:, group], scores], 1).topk(size)
        self.sums[:, group] = torch.cat([self.sums[:, group], sums], 1).gather(1, which)
        every = torch.cat([self.tokens[:, group], tokens], 1)
        self.tokens[:, group] = _rows(every, which)


def _rows(values: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """(items, k, L) of (items, n, L) by (items, k) numbers of rows."""
    return values.gather(1, which[:, :, None].expand(-1, -1, values.shape[-1]))


def beam_search(
    next_logits: NextLogits,
    items: int,
    decoding: DecodingArguments,
    start: int,
    end: int,
    longest: int,
    device: torch.device | str = "cpu",
) -> list[FoundText]:
    """The best text found for each item.

    Args:
        next_logits: Gets the texts so far, (items x groups x k, L) with the rows of an item together (groups and k are
            `decoding.layout`), and gives the logits of the next token.
        start: Token that every text begins with.
        end: Token that ends it.
        longest: Of a text in tokens, the start included, as the end would be.
    """
    groups, size = decoding.layout
    tokens = torch.full((items, groups, size, 1), start, device=device)
    sums = torch.full((items, groups, size), NEVER, device=device)
    sums[:, :, 0] = 0
    done = torch.zeros((items, groups), dtype=torch.bool, device=device)
    finished = _Finished(
        torch.full_like(sums, -torch.inf),
        torch.full_like(sums, -torch.inf),
        torch.full((items, groups, size, longest), -1, device=device),
    )
    for length in range(1, longest):
        gains = next_logits(tokens.flatten(0, 2)).float()
        gains = gains if decoding.sum_logits else gains.log_softmax(-1)
        gains = gains.unflatten(0, (items, groups, size))
        vocabulary = gains.shape[-1]
        if length < decoding.min_length:
            gains[..., end] = -torch.inf
        taken = torch.zeros((items, vocabulary), device=device)  # by earlier groups, how often
        divisor = (length + 1) ** decoding.length_penalty
        following = []
        for group in range(groups):
            reached = gains[:, group] - decoding.diversity * taken[:, None] + sums[:, group, :, None]
            best, place = reached.flatten(1).topk(2 * size)
            beam, token = place // vocabulary, place % vocabulary
            ends = token == end
            running = ~done[:, group, None]
            scores = torch.where(ends[:, :size] & running, best[:, :size] / divisor, -torch.inf)
            finished.add(group, scores, best[:, :size], _rows(tokens[:, group], beam[:, :size]))
            done[:, group] |= finished.scores[:, group].amin(-1) >= best[:, 0] / divisor
            open_yet = ends.int().argsort(dim=-1, stable=True)[:, :size]  # the best that go on, in order
            beam, token = beam.gather(1, open_yet), token.gather(1, open_yet)
            sums[:, group] = best.gather(1, open_yet)
            following.append(torch.cat([_rows(tokens[:, group], beam), token[:, :, None]], 2))
            taken.scatter_add_(1, token, running.expand_as(token).to(taken))
        tokens = torch.stack(following, 1)
        if done.all():
            break
    divisor = tokens.shape[-1] ** decoding.length_penalty
    for group in range(groups):
        scores = torch.where(done[:, group, None], -torch.inf, sums[:, group] / divisor)
        finished.add(group, scores, sums[:, group], tokens[:, group])
    return _best(finished, longest)


def _best(finished: _Finished, longest: int) -> list[FoundText]:
    scores, which = finished.scores.flatten(1).max(1)
    sums = finished.sums.flatten(1).gather(1, which[:, None])[:, 0]
    texts = _rows(finished.tokens.flatten(1, 2), which[:, None])[:, 0].tolist()
    found = []
    for text, score, total in zip(texts, scores.tolist(), sums.tolist(), strict=True):
        own = [token for token in text if token >= 0]
        found.append(FoundText(own[1:], len(own) < longest, score, total))
    return found
