"""A contrastive model's vision tower in a LLaVA: features, pictures, tokens, and the two stages of training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from sarlang_sft.backbones import BACKBONES, find_backbone
from sarlang_sft.contrastive.clip_vision import convert_tower, vision_config
from sarlang_sft.contrastive.models import CONFIG, ContrastiveModel, load_model, save_model
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import load_ops, load_picture
from sarlang_sft.inference import load_tuned
from sarlang_sft.llava_tower import put_tower
from sarlang_sft.loading import load_processor, load_weights, stored_files
from sarlang_sft.records import read_dialogue_table

SCRIPT = "recipes/put_tower.py"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContrastiveModel]:
    """A tiny CLIP, as if trained: every weight is off what it was at the start, norms and biases included."""
    model = load_model("sar-vit-tiny", resize_mode="longest", image_ops=["log", "grey"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    folder = tmp_path_factory.mktemp("clip") / "sarclip"
    save_model(model, folder)
    return folder, model


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-1.5 in two files, as large ones are, with pictures and patches of another size than the tower's."""
    turns = [turn for dialogue in read_dialogue_table(data, "train")["turns"].to_pylist() for turn in dialogue]
    folder = tmp_path_factory.mktemp("base") / "llava"
    BACKBONES["llava"].build_tiny(folder, [text for turn in turns for text in turn.values()], 0)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="3MB")
    return folder


@pytest.fixture(scope="module")
def together(clip: tuple[Path, ContrastiveModel], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together") / "llava"
    put_tower(str(clip[0]), str(base), out)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint, by their names in it."""
    return {name: value for path in stored_files(folder) for name, value in load_file(path).items()}


def test_the_script_says_what_it_made_and_loads_as_any_model(
    run: Run, clip: tuple[Path, ContrastiveModel], base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "llava"
    output = run(SCRIPT, "--tower", clip[0], "--base", base, "--out", out)
    assert "64 x 64 pixels in patches of 8" in output and "64 tokens an image" in output
    assert "projector: new" in output and "`image_ops: [log, grey]`" in output and f"Model: {out}" in output
    origin = json.loads((out / "tower.json").read_text())
    assert origin["feature_difference"] < 1e-4 and origin["picture_difference"] < 1
    assert load_ops(out) == ["log", "grey"]
    model = load_weights(str(out), find_backbone(str(out), recipes="llava"), "float32")
    assert model.config.vision_config.hidden_size == 128 and model.config.vision_config.num_attention_heads == 4
    assert model.config.vision_config.hidden_act == "gelu" and model.config.image_seq_length == 64
    output = run(SCRIPT, "--tower", clip[0], "--base", base, "--out", out, code=2)
    assert "is not empty" in output


def test_the_model_sees_what_the_tower_saw(
    clip: tuple[Path, ContrastiveModel], together: Path, tmp_path: Path
) -> None:
    """From an image file, of twice the width: the projector gets open_clip's features of the layer before the last."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 256), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    tower = clip[1].model.visual
    with torch.inference_mode():
        read = clip[1].read(tmp_path / "scene.png")[None]
        wanted = tower.forward_intermediates(read, indices=[2], output_fmt="NLC")["image_intermediates"][0]
        tuned = load_tuned(str(together), None)
        assert tuned.image_ops == clip[1].image_ops
        seen = tuned.processor.image_processor(
            load_picture(tmp_path / "scene.png", tuned.image_ops), return_tensors="pt"
        )
        taken: list[torch.Tensor] = []
        tuned.model.model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
        tuned.model.model.get_image_features(seen["pixel_values"])
    assert taken[0].shape == wanted.shape == (1, 64, 128)
    assert torch.allclose(taken[0], wanted, atol=1e-3) and wanted.std() > 0.1


def test_the_language_model_is_the_bases_and_the_projector_new_unless_it_is_kept(
    run: Run, clip: tuple[Path, ContrastiveModel], base: Path, together: Path, tmp_path: Path
) -> None:
    before, after = tensors(base), tensors(together)
    language = {name for name in before if name.startswith("language_model")}
    assert language == {name for name in after if name.startswith("language_model")}
    assert len(stored_files(base)) > 1 and all(torch.equal(before[name], after[name]) for name in language)
    assert after["multi_modal_projector.linear_1.weight"].shape == (128, 128)
    assert not torch.equal(
        before["multi_modal_projector.linear_2.weight"], after["multi_modal_projector.linear_2.weight"]
    )
    output = run(
        SCRIPT, "--tower", clip[0], "--base", base, "--out", tmp_path / "kept", "--keep_projector", "true", code=2
    )
    assert "width" in output and not (tmp_path / "kept").exists()
    run(SCRIPT, "--tower", clip[0], "--base", together, "--out", tmp_path / "kept", "--keep_projector", "true")
    assert all(torch.equal(value, after[name]) for name, value in tensors(tmp_path / "kept").items())
    run(SCRIPT, "--tower", clip[0], "--base", together, "--out", tmp_path / "other", "--seed", 1)
    other = tensors(tmp_path / "other")
    assert {name for name, value in other.items() if not torch.equal(value, after[name])} == {
        f"multi_modal_projector.linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")
    }


def test_a_base_of_16_bits_stays_one(
    run: Run, clip: tuple[Path, ContrastiveModel], base: Path, tmp_path: Path
) -> None:
    LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    load_processor(str(base), BACKBONES["llava"]).save_pretrained(tmp_path / "half")
    run(SCRIPT, "--tower", clip[0], "--base", tmp_path / "half", "--out", tmp_path / "out")
    assert {value.dtype for value in tensors(tmp_path / "out").values()} == {torch.bfloat16}


@pytest.mark.parametrize("mode", ["longest", "shortest", "squash"])
def test_pictures_tokens_and_boxes_are_those_of_the_tower(
    mode: str, run: Run, clip: tuple[Path, ContrastiveModel], base: Path, tmp_path: Path
) -> None:
    model = load_model(str(clip[0]), resize_mode=mode)
    save_model(model, tmp_path / "clip")
    run(SCRIPT, "--tower", tmp_path / "clip", "--base", base, "--out", tmp_path / "out")
    backbone = BACKBONES["llava"]
    processor = load_processor(str(tmp_path / "out"), backbone)
    for width, height in ((64, 64), (200, 100), (120, 160)):
        across, down = np.meshgrid(np.arange(width), np.arange(height))
        x, y, w, h = round(0.4 * width), round(0.35 * height), round(0.25 * width), round(0.3 * height)
        box = (across >= x) & (across < x + w) & (down >= y) & (down < y + h)
        picture = Image.fromarray(np.where(box, 255, 40).astype(np.uint8)).convert("RGB")
        inputs = processor(images=[picture], text=["<image>"], return_tensors="pt")
        assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 64
        seen = inputs["pixel_values"][0]
        assert (seen - model.picture(picture)).abs().mean() < 0.02, (width, height)
        frame = backbone.frame(processor, width, height)
        assert frame.size == (64, 64)
        bright = (seen[0] > (seen[0].min() + seen[0].max()) / 2).nonzero()
        (top, left), (bottom, right) = bright.min(dim=0).values, bright.max(dim=0).values + 1
        assert np.allclose([left, top, right, bottom], [*frame.inside(x, y), *frame.inside(x + w, y + h)], atol=1)
    margin = processor.image_processor(Image.new("RGB", (128, 64), (255, 255, 255)), return_tensors="pt")
    assert (margin["pixel_values"][0, 0, 0, 0] < 0) == (mode == "longest"), "black above what is kept whole"


def test_first_the_projector_learns_and_then_an_adapter(run: Run, together: Path, data: Path, tmp_path: Path) -> None:
    steps = [
        "--data", data, "--image_ops", "log", "grey", "--max_steps", 3, "--logging_steps", 1, "--learning_rate", 1e-2,
        "--dtype", "float32", "--save_strategy", "no", "--gradient_checkpointing", "false", "--use_cpu", "true",
        "--lr_scheduler_type", "constant", "--turns_per_image", 2, "--max_tokens_per_row", 300, "--report_to", "none",
        "--dataloader_num_workers", 0,
    ]  # fmt: skip
    first, second = tmp_path / "projector", tmp_path / "lora"
    words = ["--model_name_or_path", together, "--output_dir", first, "--tuning", "projector", *steps]
    output = run("recipes/llava_full.py", *words)
    assert "projector       fully trained" in output
    before, after = tensors(together), tensors(first)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if name.startswith("multi_modal_projector")} and len(moved) == 4
    output = run("recipes/llava_lora.py", "--model_name_or_path", first, "--output_dir", second, *steps)
    assert "language_model  adapted" in output and "projector       frozen" in output
    adapter = load_file(second / "adapter_model.safetensors")
    assert all("language_model" in name for name in adapter)
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)
    assert load_tuned(str(first), str(second)).image_ops == ["log", "grey"]


@pytest.mark.parametrize(
    ("vision", "told"),
    [
        ({"ls_init_value": 0.1}, "ls_init_value is 0.1, not None"),
        ({"pool_type": "avg"}, "pool_type is avg, not tok"),
        ({"no_ln_pre": True}, "no_ln_pre is True, not False"),
        ({"image_size": (64, 32)}, "no squares"),
        ({"timm_model_name": "convnext_base"}, "timm's convnext_base"),
    ],
)
def test_a_variant_of_the_tower_is_refused(
    vision: dict[str, object], told: str, clip: tuple[Path, ContrastiveModel]
) -> None:
    config = {**clip[1].config, "vision_cfg": {**clip[1].config["vision_cfg"], **vision}}
    with pytest.raises(InputError, match=told):
        vision_config(config, "model")


@pytest.mark.parametrize("quick", [True, False])
def test_the_activation_is_the_configurations_and_a_wrong_one_shows_in_the_features(
    quick: bool, clip: tuple[Path, ContrastiveModel], tmp_path: Path
) -> None:
    content = json.loads((clip[0] / CONFIG).read_text())
    content["model_cfg"]["quick_gelu"] = quick
    shutil.copytree(clip[0], tmp_path / "clip")
    (tmp_path / "clip" / CONFIG).write_text(json.dumps(content))
    model = load_model(str(tmp_path / "clip"))
    converted = convert_tower(model, "model")
    assert converted.config.hidden_act == ("quick_gelu" if quick else "gelu") and converted.difference < 1e-4
    model.config["quick_gelu"] = not quick
    with pytest.raises(InputError, match="gives other features"):
        convert_tower(model, "model")


def test_what_cannot_be_put_together_is_refused(
    run: Run, clip: tuple[Path, ContrastiveModel], base: Path, tmp_path: Path
) -> None:
    for name in ("sar-resnet-tiny", "sar-coca-tiny"):
        save_model(load_model(name), tmp_path / name)
    BACKBONES["llava_next"].build_tiny(tmp_path / "tiled", ["Is there a ship?"], 0)
    shutil.copytree(base, tmp_path / "deep")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "deep" / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -6}))
    cases = [
        (tmp_path / "sar-resnet-tiny", base, "its vision tower is a ResNet"),
        (tmp_path / "sar-coca-tiny", base, "attentional_pool is True, not False"),
        ("sar-vit-tiny", base, "no such folder"),  # which would be a tower that has learned nothing
        (base, base, "holds no open_clip_config.json"),
        (clip[0], tmp_path / "tiled", "is no LLaVA-1.5"),
        (clip[0], tmp_path / "deep", "features of layer -6, and the tower has 4"),
        (clip[0], clip[0], "neither a folder with a config.json"),
    ]
    for tower, onto, told in cases:
        output = run(SCRIPT, "--tower", tower, "--base", onto, "--out", tmp_path / "out", code=2)
        assert told in output and not (tmp_path / "out").exists(), output
