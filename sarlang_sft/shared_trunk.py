"""Greedy answers to all questions about an image at once: its key/value cache is computed once and shared.

The prompts of an image are cut like an image tree: the tokens that all of them begin with, image included, are the
trunk. Its cache is repeated for every question, the rest of each prompt follows, and all answers are decoded together.
In float32 the answers are those of asking one by one; in bfloat16 up to rounding, as with any batch size.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from accelerate.utils import broadcast
from transformers import DynamicCache

from sarlang_sft.collate import Tokens, expand_images, image_runs, shared_length
from sarlang_sft.inference import Asked, TunedModel, prompts, stop_tokens


@dataclass(frozen=True)
class CutPrompts:
    """The prompts of one image: `trunk` (T,) int64 with `positions` (T,) or (3, T), and K `branches` (L,)."""

    trunk: torch.Tensor
    positions: torch.Tensor
    branches: list[torch.Tensor]

    @property
    def start(self) -> int:
        """The position at which every branch begins."""
        return int(self.positions.max()) + 1


def cut_prompts(tuned: TunedModel, asked: list[Asked]) -> tuple[list[CutPrompts], dict[str, torch.Tensor]]:
    """Group neighbours with the same pictures and cut their prompts; also the processor's image tensors."""
    tokenizer = tuned.processor.tokenizer
    image_token_id = tokenizer.convert_tokens_to_ids(tuned.backbone.image_token)
    texts = prompts(tuned, asked)
    ids = tokenizer(texts)["input_ids"]
    trees = [
        [number for number, _ in group]
        for _, group in groupby(enumerate(asked), key=lambda item: [id(picture) for picture in item[1].pictures])
    ]
    pictures = [picture for tree in trees for picture in asked[tree[0]].pictures]
    firsts = [texts[tree[0]] for tree in trees]
    inputs = tuned.processor(
        images=pictures or None, text=firsts, padding=True, padding_side="right", return_tensors="pt"
    )
    images = {name: value for name, value in inputs.items() if name.startswith(("pixel_", "image_"))}
    grids = iter(images.get("image_grid_thw", ()))
    cuts = []
    for row, tree in enumerate(trees):
        own = [ids[number] for number in tree]
        length = min(shared_length(own), *(len(prompt) - 1 for prompt in own))  # no branch may be empty
        expanded = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        runs = image_runs(own[0], expanded, image_token_id)
        trunk = torch.tensor(expand_images(Tokens(own[0][:length], [False] * length), runs, image_token_id).ids)
        own_grids = [next(grids) for _ in runs] if "image_grid_thw" in images else []
        positions = tuned.backbone.positions(tuned.processor, trunk, torch.stack(own_grids) if own_grids else None)
        cuts.append(CutPrompts(trunk, positions, [torch.tensor(prompt[length:]) for prompt in own]))
    return cuts, images


def _pad(rows: list[torch.Tensor], filling: int, left: bool) -> torch.Tensor:
    """Stack (..., L) tensors of unequal L to (..., B, L)."""
    longest = max(row.shape[-1] for row in rows)
    sides = [((longest - row.shape[-1], 0) if left else (0, longest - row.shape[-1])) for row in rows]
    padded = [torch.nn.functional.pad(row, side, value=filling) for row, side in zip(rows, sides, strict=True)]
    return torch.stack(padded, dim=-2)


# not inference_mode: a training that goes on afterwards could not use what ZeRO-3 gathers in it
@torch.no_grad()
def answer_together(
    tuned: TunedModel, asked: list[Asked], max_new_tokens: int, in_step: bool = False
) -> list[tuple[str, float]]:
    """The greedy answer to each last question, with the sum of its tokens' log-probabilities.

    Args:
        asked: Neighbours with the same pictures (the same objects) share a trunk.
        in_step: All ranks ask the same, as ranks that hold a model's weights together must, and take the tokens that
            the first one chooses: rounding otherwise could let one of them stop earlier, and the others wait for it.
    """
    model, tokenizer, device = tuned.model, tuned.processor.tokenizer, tuned.model.device
    cuts, images = cut_prompts(tuned, asked)

    trunk_mask = _pad([torch.ones_like(cut.trunk) for cut in cuts], 0, left=False).to(device)
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=_pad([cut.trunk for cut in cuts], tokenizer.pad_token_id, left=False).to(device),
        attention_mask=trunk_mask,
        position_ids=_pad([cut.positions for cut in cuts], 0, left=False).to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **{name: value.to(device) for name, value in images.items()},
    )
    trunk_of = torch.tensor([row for row, cut in enumerate(cuts) for _ in cut.branches], device=device)
    cache.batch_select_indices(trunk_of)

    # Branches are padded on the left, so that all of them end, and their answers begin, in the same place.
    branches = [branch for cut in cuts for branch in cut.branches]
    places = [torch.arange(len(branch)) + cut.start for cut in cuts for branch in cut.branches]
    tokens = _pad(branches, tokenizer.pad_token_id, left=True).to(device)
    branch_mask = _pad([torch.ones_like(branch) for branch in branches], 0, left=True).to(device)
    mask = torch.cat([trunk_mask[trunk_of], branch_mask], dim=1)
    dimensions = cuts[0].positions.shape[:-1]  # (3,) with M-RoPE, else ()
    positions = _pad(places, 0, left=True).expand(*dimensions, -1, -1).to(device)

    stops = torch.tensor(stop_tokens(tuned), device=device)
    running = torch.arange(len(asked), device=device)  # the question that each row of the batch belongs to
    answers: list[list[int]] = [[] for _ in asked]
    logprobs = torch.zeros(len(asked), dtype=torch.float64)
    for _ in range(max_new_tokens):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        best, chosen = output.logits[:, -1].float().log_softmax(-1).max(dim=-1)
        if in_step:
            broadcast(chosen)
        logprobs[running.cpu()] += best.double().cpu()
        for question, token in zip(running.tolist(), chosen.tolist(), strict=True):
            answers[question].append(token)
        goes_on = (~torch.isin(chosen, stops)).nonzero().flatten()
        if len(goes_on) == 0:
            break
        if len(goes_on) < len(running):
            cache.batch_select_indices(goes_on)
            running, chosen, mask = running[goes_on], chosen[goes_on], mask[goes_on]
            positions = positions[..., goes_on, :]
        tokens, positions = chosen[:, None], positions[..., -1:] + 1
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [(text.strip(), total) for text, total in zip(texts, logprobs.tolist(), strict=True)]
