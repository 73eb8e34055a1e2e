"""Loading and saving of contrastive models, and what of their attention is opened for adapters."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sarlang_sft.contrastive.models import CONFIG, WEIGHTS, load_model, model_fingerprint, save_model
from sarlang_sft.contrastive.open_attention import OpenAttention, close_attention, open_attention
from sarlang_sft.errors import InputError


def state(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return load_model(name).model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("form", ["safetensors", "plain", "checkpoint", "parallel"])
def test_weights_of_others_load_from_every_form_that_is_not_unpickled(form: str, tmp_path: Path) -> None:
    held = state("sar-vit-tiny")
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file({key: value.contiguous() for key, value in held.items()}, file)
    elif form == "plain":
        torch.save(held, file)
    elif form == "checkpoint":  # of open_clip's own training
        torch.save({"epoch": 3, "name": "x", "state_dict": held, "optimizer": {"state": {}, "param_groups": []}}, file)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in held.items()}}, file)
    assert same(load_model("sar-vit-tiny", str(file)).model.state_dict(), held)
    assert model_fingerprint("sar-vit-tiny", str(file)) != model_fingerprint("sar-vit-tiny", None)


class Foreign:
    pass


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read"),
        ("foreign", "holds more than tensors"),
        ("script", "convert it to safetensors"),
        ("resnet", "visual.conv1.weight is (8, 3, 3, 3), not (128, 3, 8, 8)"),
        ("coca", "are not of the architecture sar-vit-tiny"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(content: bytes | str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "foreign":
        torch.save({"state_dict": {}, "model": Foreign()}, file)
    elif content == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    else:
        torch.save(state({"resnet": "sar-resnet-tiny", "coca": "sar-coca-tiny"}[content]), file)
    with pytest.raises(InputError, match="weights") as refused:
        load_model("sar-vit-tiny", str(file))
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_a_saved_model_is_open_clips_too_and_keeps_how_it_sees(tmp_path: Path) -> None:
    torch.manual_seed(2)
    made = load_model("sar-coca-tiny", image_size=32, resize_mode="longest", image_ops=["fixed", "crop:32"])
    save_model(made, tmp_path)
    back = load_model(str(tmp_path))
    theirs = open_clip.create_model(f"local-dir:{tmp_path}")
    assert same(back.model.state_dict(), made.model.state_dict()) and same(
        theirs.state_dict(), back.model.state_dict()
    )
    assert back.preprocess == made.preprocess and back.image_ops == made.image_ops and back.captions
    picture = Image.fromarray(np.full((20, 60, 3), 255, np.uint8))
    seen = back.picture(picture)
    black = (0 - torch.tensor(back.preprocess.mean)) / torch.tensor(back.preprocess.std)
    assert seen.shape == (3, 32, 32) and torch.allclose(seen[:, 0], black[:, None].expand(3, 32))  # padded, not cut
    assert (seen[:, 16] > 1).all()


def test_folders_without_a_model_or_with_a_broken_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no open_clip_config"):
        load_model(str(tmp_path))
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(InputError, match="holds no weights"):
        load_model(str(tmp_path))
    (tmp_path / CONFIG).write_text("{")
    (tmp_path / WEIGHTS).write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match="did you mean `ViT-B-32`"):
        load_model("ViT-B-23")


def test_opened_attention_computes_the_same_and_closes_bit_by_bit() -> None:
    model = load_model("sar-coca-tiny").model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 40_000, (2, 48))
    with torch.no_grad():
        closed = model(images, tokens)
        open_attention(model)
        opened = model(images, tokens)
    assert sum(isinstance(module, OpenAttention) for module in model.modules()) == 4 + 2 + 2 + 2
    for name in ("image_features", "text_features", "logits"):
        assert torch.allclose(closed[name], opened[name], atol=1e-5)
    close_attention(model)
    assert same(before, model.state_dict())
