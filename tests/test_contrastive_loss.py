from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from contrastive_ranks import CASES, IMAGE, PAIRS, TEXT, VALID, gradients, rows_of, write_gradients
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn.functional import normalize

from sarlang_sft.contrastive.accumulation import backward_of_batch
from sarlang_sft.contrastive.losses import NEGATIVES, Rows, caption_loss, contrastive_loss
from sarlang_sft.contrastive.models import load_model
from sarlang_sft.contrastive.trainer import Towers
from sarlang_sft.contrastive.tuning import PairTuning, tune

ALL = torch.ones(8, dtype=torch.bool)
SCALE = torch.tensor(10.0)


def features(seed: int) -> torch.Tensor:
    return normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def loss(image: torch.Tensor, text: torch.Tensor, negatives: str, valid: torch.Tensor = ALL) -> torch.Tensor:
    return contrastive_loss(image, text, SCALE, rows_of(IMAGE, TEXT, valid, 0), negatives)


def test_the_plain_loss_is_open_clips() -> None:
    image, text = features(0).float(), features(1).float()
    assert torch.allclose(loss(image, text, "plain"), ClipLoss()(image, text, SCALE), atol=1e-6)


def test_the_losses_are_those_of_plain_loops() -> None:
    image, text = features(0).float(), features(1).float()
    similarity = (10 * image @ text.T).double().numpy()
    known = PAIRS.true_of(IMAGE, TEXT)
    assert known.sum() > 8 and known[0, 1] and known[2, 3] and known[7, 1] and known[0, 7] and not known[0, 2]
    for negatives in NEGATIVES:
        rows = []
        for logits, true in ((similarity, known), (similarity.T, known.T)):
            for row in range(8):
                others = [c for c in range(8) if c == row or negatives != "masked" or not true[row, c]]
                total = np.log(np.exp(logits[row, others]).sum())
                right = [c for c in range(8) if c == row or (negatives == "multi_positive" and true[row, c])]
                rows.append(np.mean([total - logits[row, c] for c in right]))
        assert float(loss(image, text, negatives)) == pytest.approx(np.mean(rows), abs=1e-5)


def test_pairs_that_are_true_of_each_other_are_not_pushed_apart() -> None:
    image, text = features(0).float(), features(1).float().requires_grad_()
    alone = Rows(*(value[:1] for value in rows_of(IMAGE, TEXT, ALL, 0)[:2]), ALL, 0)
    logits = {}
    for negatives in NEGATIVES:
        similarity = (10 * image @ text.T)[:1]
        similarity.retain_grad()
        from sarlang_sft.contrastive.losses import _cross_entropy

        mine = torch.arange(8)[None] == 0
        _cross_entropy(similarity, mine, alone.image_knows, ALL, negatives).backward()
        logits[negatives] = similarity.grad[0]
    assert logits["plain"][1] > 0 and logits["plain"][7] > 0  # the other caption of image 0, and where it is repeated
    assert logits["masked"][1] == logits["masked"][7] == 0 and logits["masked"][2] > 0
    assert logits["multi_positive"].sum().abs() < 1e-6 and logits["multi_positive"][2] > 0


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_an_unreadable_image_counts_neither_as_pair_nor_as_negative(negatives: str) -> None:
    image, text = features(0).float().requires_grad_(), features(1).float().requires_grad_()
    with_it = loss(image, text, negatives, VALID)
    with_it.backward()
    assert image.grad[3].abs().max() == 0 and text.grad[3].abs().max() == 0 and image.grad[0].abs().max() > 0
    kept = VALID.numpy()
    known = torch.tensor(PAIRS.true_of(IMAGE[kept], TEXT[kept]))
    without = contrastive_loss(image[VALID], text[VALID], SCALE, Rows(known, known.T, ALL[:7], 0), negatives)
    assert torch.allclose(with_it, without, atol=1e-6)


def test_two_ranks_have_the_gradients_of_one_with_the_whole_batch_in_micro_batches_too(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(write_gradients, (2, tmp_path), nprocs=2)
    for number, (name, negatives, micro) in enumerate(CASES):
        one = gradients(name, negatives, 8, 0, 1)
        two = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert one.keys() == two.keys() and "model.logit_scale" in one
        most = max(float((one[key] - two[key]).abs().max()) for key in one)
        assert most < (1e-6 if micro == 8 else 1e-5), (name, negatives, micro, most)
        assert max(float(one[key].abs().max()) for key in one if key != "loss") > 0.01


def test_micro_batches_draw_the_same_dropout_twice_and_note_batch_statistics_once() -> None:
    torch.manual_seed(0)
    contrastive = load_model("sar-resnet-tiny")
    tune(contrastive, PairTuning(tuning="lora", lora_dropout=0.5))
    for parameter in (p for n, p in contrastive.model.named_parameters() if "lora_B" in n):
        nn.init.normal_(parameter, std=0.1)
    towers, given, seen = Towers(contrastive.model).train(), [], []
    norm = next(module for module in towers.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    inputs = {"images": torch.randn(6, 3, 64, 64), "tokens": contrastive.tokenizer(["a ship", "two tanks", "x"] * 2)}
    towers.register_forward_hook(lambda _, __, outputs: seen.append(outputs["image_features"].detach()))

    def loss_of(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        given.append(image.detach())
        return ClipLoss()(image, text, scale)

    backward_of_batch(towers, inputs, 2, loss_of, None, torch.Tensor.backward, nullcontext)
    assert len(seen) == 6 and torch.equal(torch.cat(seen[:3]), given[0]) and torch.equal(torch.cat(seen[3:]), given[0])
    noted = norm.running_mean.clone()
    towers.zero_grad()
    norm.running_mean.copy_(before)
    for part in range(0, 6, 2):  # what three steps of two rows note
        towers(inputs["images"][part : part + 2], inputs["tokens"][part : part + 2], captions=False)
    assert torch.allclose(noted, norm.running_mean) and not torch.equal(noted, before)


def test_caption_tokens_weigh_alike_wherever_they_are() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, 0, 0, 0], [1, 2, 3, 4, 5]])
    whole = nn.CrossEntropyLoss(ignore_index=0)(logits.transpose(1, 2), labels)
    ranks = [caption_loss(logits[row : row + 1], labels[row : row + 1], torch.tensor(7 / 2), 0) for row in range(2)]
    assert torch.allclose(sum(ranks) / 2, whole)
