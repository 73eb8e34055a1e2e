"""Greedy answers to all questions about an image at once: its key/value cache is computed once and shared.

The prompts of an image are cut like an image tree: the tokens that all of them begin with, image included, are the
trunk. Its cache is repeated for every question, the rest of each prompt follows, and all answers are decoded together.
The answers are those of asking one by one.
"""

from itertools import groupby

import torch
from transformers import DynamicCache

from sarlang_sft.collate import Tokens, expand_images, image_runs, shared_length
from sarlang_sft.inference import Asked, TunedModel, prompts, stop_tokens


def _pad(rows: list[torch.Tensor], filling: int, left: bool) -> torch.Tensor:
    """Stack (..., L) tensors of unequal L to (..., B, L)."""
    longest = max(row.shape[-1] for row in rows)
    sides = [((longest - row.shape[-1], 0) if left else (0, longest - row.shape[-1])) for row in rows]
    padded = [torch.nn.functional.pad(row, side, value=filling) for row, side in zip(rows, sides, strict=True)]
    return torch.stack(padded, dim=-2)


@torch.inference_mode()
def answer_together(tuned: TunedModel, asked: list[Asked], max_new_tokens: int) -> list[tuple[str, float]]:
    """The greedy answer to each last question, with the sum of its tokens' log-probabilities.

    Args:
        asked: Neighbours with the same pictures (the same objects) share a trunk.
    """
    model, device = tuned.model, tuned.model.device
    tokenizer, pad = tuned.processor.tokenizer, tuned.processor.tokenizer.pad_token_id
    image_token_id = tokenizer.convert_tokens_to_ids(tuned.backbone.image_token)
    texts = prompts(tuned, asked)
    ids = tokenizer(texts)["input_ids"]
    trees = [
        [number for number, _ in group]
        for _, group in groupby(enumerate(asked), key=lambda item: [id(picture) for picture in item[1].pictures])
    ]
    pictures = [picture for tree in trees for picture in asked[tree[0]].pictures]
    inputs = tuned.processor(
        images=pictures or None, text=[texts[tree[0]] for tree in trees], padding=True, padding_side="right",
        return_tensors="pt",
    )  # fmt: skip
    images = {name: value.to(device) for name, value in inputs.items() if name.startswith(("pixel_", "image_"))}
    grids = iter(inputs.get("image_grid_thw", []))

    trunks, places, branches, starts = [], [], [], []
    for row, tree in enumerate(trees):
        own_ids = [ids[number] for number in tree]
        cut = min(shared_length(own_ids), *(len(prompt) - 1 for prompt in own_ids))  # no branch may be empty
        expanded = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        runs = image_runs(own_ids[0], expanded, image_token_id)
        trunk = torch.tensor(expand_images(Tokens(own_ids[0][:cut], [False] * cut), runs, image_token_id).ids)
        own = [next(grids) for _ in runs] if "image_grid_thw" in images else []
        positions = tuned.backbone.positions(tuned.processor, trunk, torch.stack(own) if own else None)
        trunks.append(trunk)
        places.append(positions)
        branches += [torch.tensor(prompt[cut:]) for prompt in own_ids]
        starts += [int(positions.max()) + 1] * len(tree)

    trunk_mask = _pad([torch.ones_like(trunk) for trunk in trunks], 0, left=False).to(device)
    cache = DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=_pad(trunks, pad, left=False).to(device),
        attention_mask=trunk_mask,
        position_ids=_pad(places, 0, left=False).to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **images,
    )
    tree_of = torch.tensor([row for row, tree in enumerate(trees) for _ in tree], device=device)
    cache.batch_select_indices(tree_of)
    mask = torch.cat([trunk_mask[tree_of], _pad([torch.ones_like(b) for b in branches], 0, left=True).to(device)], 1)
    tokens = _pad(branches, pad, left=True).to(device)
    dimensions = places[0].shape[:-1]  # () or (3,)
    counts = [torch.arange(len(branch)) + start for branch, start in zip(branches, starts, strict=True)]
    positions = _pad(counts, 0, left=True).expand(*dimensions, -1, -1).to(device)

    stops = torch.tensor(stop_tokens(tuned), device=device)
    running = torch.arange(len(asked), device=device)  # the question each row of the batch belongs to
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
        chances = output.logits[:, -1].float().log_softmax(-1)
        best, chosen = chances.max(dim=-1)
        logprobs[running.cpu()] += best.double().cpu()
        for question, token in zip(running.tolist(), chosen.tolist(), strict=True):
            answers[question].append(token)
        goes_on = ~torch.isin(chosen, stops)
        if not goes_on.any():
            break
        if not goes_on.all():
            left = goes_on.nonzero().flatten()
            cache.batch_select_indices(left)
            running, chosen, mask, positions = running[left], chosen[left], mask[left], positions[..., left, :]
        tokens, positions = chosen[:, None], positions[..., -1:] + 1
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [(text.strip(), total) for text, total in zip(texts, logprobs.tolist(), strict=True)]
