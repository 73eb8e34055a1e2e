"""A contrastive model's vision tower put into a LLaVA: language model copied, tower exchanged, projector new."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from sarlang_sft.backbones import BACKBONES, component_of
from sarlang_sft.companions import check_companions, write_companions
from sarlang_sft.contrastive.clip_vision import ConvertedTower, check_pictures, convert_tower, image_processor
from sarlang_sft.contrastive.models import HUB, load_model
from sarlang_sft.errors import InputError
from sarlang_sft.loading import INDEX, load_processor, module_names
from sarlang_sft.merge_base import Base, open_base
from sarlang_sft.safetensors_stream import FLOATS, Stored, copy_bytes, read_header, write_header
from sarlang_sft.whole_output import check_replaceable, whole_folder

FAMILY = "llava"
ORIGIN = "tower.json"
TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."


@dataclass(frozen=True)
class NewTower:
    """What was put together.

    Attributes:
        tokens: Of an image.
        layer: Whose features the projector takes, as in the base.
        projector: `new` or `kept`.
        feature_difference: See `clip_vision.check_features`.
        picture_difference: See `clip_vision.check_pictures`.
        image_ops: That the tower saw; to be given in training.
    """

    tower: str
    base: str
    base_fingerprint: str
    size: int
    patch: int
    tokens: int
    layer: int | list[int]
    projector: str
    dtype: str
    feature_difference: float
    picture_difference: float
    image_ops: list[str]


def put_tower(tower: str, base_name: str, out: Path, keep_projector: bool = False, seed: int = 0) -> NewTower:
    """Write a LLaVA-1.5 with the language model and tokenizer of a base, and the vision tower of a CLIP.

    The base's weights are copied tensor by tensor. The projector is made anew, as at the start of LLaVA's first stage
    (arXiv 2304.08485, section 4.2): another tower's features mean other things.

    Args:
        tower: Folder or hub name, see `contrastive.models.load_model`.
        base_name: Folder or hub name of a LLaVA-1.5.
        keep_projector: For a tower that was trained on from the base's own.
        seed: Of the new projector.

    Raises:
        InputError: One of them is of another kind, or their parts do not fit; nothing is written then.
    """
    check_replaceable(out)
    if not Path(tower).is_dir() and not tower.startswith(HUB):
        raise InputError(f"--tower {tower}: no such folder; give one of recipes/sarclip.py, or {HUB}OWNER/NAME")
    base = open_base(base_name, "give the model in 16 or 32 bits")
    if base.backbone is not BACKBONES[FAMILY]:
        raise InputError(f"--base {base_name}: is no LLaVA-1.5 (model_type {FAMILY}), which has one picture per image")
    clip = load_model(tower)
    converted = convert_tower(clip, tower)
    config = _new_config(base, converted.config, keep_projector)
    model = _skeleton(config)
    processor = _new_processor(base, model.config, image_processor(clip.preprocess, tower))
    grey = check_pictures(clip, processor.image_processor, tower)
    check_tokens(processor, model.config.image_seq_length)
    names = module_names(base.checkpoint.tensors, base.skeleton())
    new = new_tensors(base, names, converted, model, None if keep_projector else seed)
    report = NewTower(
        tower=tower,
        base=base_name,
        base_fingerprint=base.fingerprint,
        size=converted.config.image_size,
        patch=converted.config.patch_size,
        tokens=model.config.image_seq_length,
        layer=model.config.vision_feature_layer,
        projector="kept" if keep_projector else "new",
        dtype=str(next(iter(new.values())).dtype).removeprefix("torch."),
        feature_difference=converted.difference,
        picture_difference=grey,
        image_ops=clip.image_ops,
    )
    with whole_folder(out) as folder:
        _write_weights(_kept_tensors(base, names, keep_projector), new, folder)
        write_companions(base.folder, model, processor, clip.image_ops, "auto", folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / ORIGIN).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        check_companions(folder, base.backbone, processor)
    return report


def check_tokens(processor: ProcessorMixin, tokens: int) -> None:
    """Raise [`InputError`] unless the processor gives an image as many tokens as the tower's features."""
    side = processor.image_processor.crop_size["height"]
    blank = torch.zeros(3, side, 2 * side, dtype=torch.uint8)
    written = processor(images=[blank], text=[processor.image_token], return_tensors="pt")["input_ids"][0]
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    found = int((written == image_token).sum())
    if found != tokens:
        raise InputError(f"the processor gives an image {found} tokens and the tower {tokens}; their patches differ")


def new_tensors(
    base: Base, names: dict[str, str], converted: ConvertedTower, model: PreTrainedModel, seed: int | None
) -> dict[str, torch.Tensor]:
    """The tensors that the base has not, in the base's dtype and by the names that its checkpoint has for them.

    Args:
        names: The base's own names of tensors by those in its checkpoint.
        model: The new one, without weights.
        seed: Of the new projector; None: it is kept.

    Raises:
        InputError: A weight is none in the base's dtype.
    """
    stored = base.checkpoint.tensors
    in_base = {module: name for name, module in names.items()}
    of_tower = min(module for module in in_base if module.startswith(TOWER))
    prefix = in_base[of_tower].removesuffix(of_tower.removeprefix(TOWER))
    made = {f"{prefix}{name}": value for name, value in converted.weights.items()}
    if seed is not None:
        before = min(module for module in in_base if module.startswith(PROJECTOR))
        prefix = in_base[before].removesuffix(before.removeprefix(PROJECTOR))
        made |= {f"{prefix}{name}": value for name, value in _new_projector(model, seed).items()}
    dtype = FLOATS[stored[in_base[of_tower]].kind]
    made = {name: value.detach().to(dtype).contiguous() for name, value in made.items()}
    wrong = [name for name, value in made.items() if not value.isfinite().all()]
    if wrong:
        raise InputError(
            f"{wrong[0]}: holds values that are no numbers in {dtype}; the tower is damaged, or needs more bits"
        )
    return made


def describe(report: NewTower) -> str:
    """Lines for the terminal."""
    ops = f"give `image_ops: [{', '.join(report.image_ops)}]` in training, too" if report.image_ops else "none"
    first = "new; train it first, the rest frozen (tuning: projector)"
    lines = [
        f"tower: {report.size} x {report.size} pixels in patches of {report.patch}, in {report.dtype}; "
        f"{report.tokens} tokens an image, features of layer {report.layer}",
        f"its features: open_clip's to {report.feature_difference:.1e} of 1 + their size",
        f"its pictures: those of the processor differ by {report.picture_difference:.2f} of 255 on average",
        f"projector: {first if report.projector == 'new' else report.projector}",
        f"image operations: {ops}",
    ]
    return "\n".join(lines)


def _new_config(base: Base, vision: CLIPVisionConfig, keep_projector: bool) -> dict[str, Any]:
    """The base's configuration with another tower.

    Raises:
        InputError: The tower has not the layer that is taken, or not the width that a kept projector takes.
    """
    config = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    old = AutoConfig.from_pretrained(base.folder)
    taken = old.vision_feature_layer
    layers = vision.num_hidden_layers
    wrong = [one for one in ([taken] if isinstance(taken, int) else taken) if not -layers - 1 <= one <= layers]
    if wrong:
        raise InputError(f"--base {base.name}: takes the features of layer {wrong[0]}, and the tower has {layers}")
    if keep_projector and vision.hidden_size != old.vision_config.hidden_size:
        raise InputError(
            f"--keep_projector: the projector of {base.name} takes features of width {old.vision_config.hidden_size}, "
            f"and the tower's have {vision.hidden_size}; leave it out, and train a new one"
        )
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens = patches + (old.vision_feature_select_strategy == "full")  # which keeps the class token
    return config | {"vision_config": vision.to_dict(), "image_seq_length": tokens}


def _skeleton(config: dict[str, Any]) -> PreTrainedModel:
    made = AutoConfig.for_model(**config)
    with torch.device("meta"):
        return BACKBONES[FAMILY].model_class(made)


def _new_processor(base: Base, config: PretrainedConfig, images: CLIPImageProcessor) -> ProcessorMixin:
    processor = load_processor(str(base.folder), base.backbone)
    processor.image_processor = images
    processor.patch_size = config.vision_config.patch_size
    processor.num_additional_image_tokens = 1  # the class token
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    return processor


def _new_projector(model: PreTrainedModel, seed: int) -> dict[str, torch.Tensor]:
    """A projector with the weights that torch gives linear layers, as LLaVA's has before its first stage."""
    projector = model.get_submodule(PROJECTOR.rstrip(".")).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in projector.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return projector.state_dict()


def _kept_tensors(base: Base, names: dict[str, str], keep_projector: bool) -> dict[Path, dict[str, Stored]]:
    """What is copied of the base, by file: its language model, and its projector where that is kept."""
    parts = {"language_model", "projector"} if keep_projector else {"language_model"}
    return {
        path: {name: stored for name, stored in tensors.items() if component_of(names[name], base.backbone) in parts}
        for path, tensors in base.checkpoint.files.items()
    }


def _write_weights(kept: dict[Path, dict[str, Stored]], new: dict[str, torch.Tensor], folder: Path) -> None:
    """Write one file for every file of the base that something is kept of, one for what is new, and their index."""
    copied = [(path, tensors) for path, tensors in kept.items() if tensors]
    paths = [folder / f"model-{n + 1:05d}-of-{len(copied) + 1:05d}.safetensors" for n in range(len(copied) + 1)]
    total = sum(stored.size for _, tensors in copied for stored in tensors.values())
    with tqdm(total=total, desc="copying", unit="B", unit_scale=True) as progress:
        for (path, tensors), target_path in zip(copied, paths, strict=False):
            kinds = {name: stored.kind for name, stored in tensors.items()}
            with open(path, "rb") as source, open(target_path, "wb") as target:
                places = write_header(target.fileno(), tensors, kinds, {"format": "pt"})
                for name, start in places.items():
                    copy_bytes(source.fileno(), target.fileno(), tensors[name], start)
                    progress.update(tensors[name].size)
    save_file(new, paths[-1], metadata={"format": "pt"})
    written = {name: stored for path in paths for name, stored in read_header(path)[0].items()}
    index = {
        "metadata": {"total_size": sum(stored.size for stored in written.values())},
        "weight_map": {name: stored.path.name for name, stored in written.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
