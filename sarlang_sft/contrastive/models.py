"""open_clip models with their tokenizers and picture transforms, from and to folders that open_clip reads, too."""

import copy
import json
import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip import CoCa
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from sarlang_sft.errors import InputError, nearest
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.imagery import OPS_FILE, load_ops, load_picture, save_ops
from sarlang_sft.records import file_hash

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
OWN_CONFIGS = Path(__file__).parent / "model_configs"
RESIZE_MODES = ("longest", "shortest", "squash")
HUB = "hf-hub:"
DEFAULT_OPS = ["fixed"]
RESNET_STRIDE = 32
SHOWN = 3  # mismatches in an error

open_clip.add_model_config(OWN_CONFIGS)


@dataclass
class Pictures:
    """How an image becomes the tower's input.

    Attributes:
        preprocess: open_clip's; `resize_mode` longest keeps all of a picture and its shape.
        image_ops: Applied when an image is read, see `imagery.load_picture`; the same in training and evaluation.
    """

    preprocess: PreprocessCfg
    image_ops: list[str]

    def __post_init__(self) -> None:
        self.transform = image_transform_v2(self.preprocess, is_train=False)

    def to_tensor(self, image: Image.Image) -> torch.Tensor:
        """An RGB picture as the tower's input, (3, H, W) float32: resized, padded with black, standardised."""
        return self.transform(image)

    def read(self, path: Path, rng: np.random.Generator | None = None) -> torch.Tensor:
        """An image file as the tower's input; with `rng` the augmenting operations are applied.

        Raises:
            UnreadableImageError: It cannot be read.
        """
        return self.to_tensor(load_picture(path, self.image_ops, rng))


@dataclass
class ContrastiveModel:
    """A CLIP or CoCa of open_clip with everything that its inputs need.

    Attributes:
        model: `encode_image`, `encode_text` and `logit_scale` of open_clip.
        tokenizer: Texts to token ids, (N, context length) int64.
        config: open_clip's `model_cfg`: the architecture.
        preprocess, image_ops: See [`Pictures`].
    """

    model: nn.Module
    tokenizer: Callable[[list[str]], torch.Tensor]
    config: dict[str, Any]
    preprocess: PreprocessCfg
    image_ops: list[str]

    def __post_init__(self) -> None:
        self.pictures = Pictures(self.preprocess, self.image_ops)

    @property
    def captions(self) -> bool:
        """Whether it also writes captions."""
        return isinstance(self.model, CoCa)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.logit_scale.device

    def picture(self, image: Image.Image) -> torch.Tensor:
        """See [`Pictures.to_tensor`]."""
        return self.pictures.to_tensor(image)

    def read(self, path: Path, rng: np.random.Generator | None = None) -> torch.Tensor:
        """See [`Pictures.read`]."""
        return self.pictures.read(path, rng)


def check_resize_mode(mode: str | None) -> None:
    """Raise [`InputError`] unless it is None or one of `RESIZE_MODES`."""
    if mode is not None and mode not in RESIZE_MODES:
        raise InputError(f"resize_mode `{mode}`: choose one of {', '.join(RESIZE_MODES)}")


def load_model(
    name: str,
    weights: str | None = None,
    device: str = "cpu",
    image_size: int | None = None,
    resize_mode: str | None = None,
    image_ops: list[str] | None = None,
) -> ContrastiveModel:
    """A model with its weights, in float32, in evaluation mode.

    Args:
        name: A folder that this project (or open_clip) has written, `hf-hub:owner/name`, or an architecture of
            open_clip or of `contrastive/model_configs`; an architecture without `weights` starts at random.
        weights: A file of weights for an architecture: safetensors, or PyTorch's read with `weights_only`.
        image_size: Side of the tower's input in pixels, if another than the model's own.
        resize_mode: longest, shortest or squash; default: the folder's own, or the hub's, and longest of an
            architecture, whatever open_clip would do with natural pictures.
        image_ops: Default: those kept in the folder, else `DEFAULT_OPS`.

    Raises:
        InputError: There is no such model, or the weights are none of it (with the shapes that differ).
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise InputError(f"model {folder}: holds no {CONFIG}; give a folder written by recipes/sarclip.py")
        if weights:
            raise InputError(f"weights {weights}: the model {folder} has its own; name an architecture instead")
        source, weights = f"local-dir:{folder}", find_weights(folder)
    else:
        known = open_clip.list_models()
        source = name.replace("/", "-") if not name.startswith(HUB) else name
        if not name.startswith(HUB) and source not in known:
            way_out = nearest(source, known, "or give a folder, or hf-hub:OWNER/NAME")
            raise InputError(f"model {name}: no folder, and no architecture of that name; {way_out}")
        if weights and not Path(weights).is_file():
            raise InputError(f"weights {weights}: no such file")
    check_resize_mode(resize_mode)
    if source in open_clip.list_models():
        resize_mode = resize_mode or RESIZE_MODES[0]
    config = read_config(source)
    if image_size:
        check_image_size(config, image_size)
    logging.disable(logging.WARNING)  # open_clip warns of weights that are filled in below
    try:
        model = open_clip.create_model(
            source,
            load_weights=source.startswith(HUB),
            force_image_size=image_size,
            force_preprocess_cfg={"resize_mode": resize_mode} if resize_mode else None,
            pretrained_text=False,
        )
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError, OSError, pickle.UnpicklingError) as error:
        raise InputError(f"model {name}: open_clip cannot build it ({str(error).splitlines()[0]})") from error
    finally:
        logging.disable(logging.NOTSET)
    if isinstance(model, CoCa) and not source.startswith(HUB):  # open_clip leaves it as the memory was
        width = model.text_decoder.text_projection.shape[0]
        nn.init.normal_(model.text_decoder.text_projection, std=width**-0.5)
    if weights:
        _fill(model, name, Path(weights))
    if image_size:
        config["vision_cfg"]["image_size"] = image_size
    model.output_dict = True
    if image_ops is None:
        image_ops = load_ops(folder) if (folder / OPS_FILE).is_file() else DEFAULT_OPS
    tokenizer = open_clip.get_tokenizer(source)
    of_json = {key: tuple(one) if isinstance(one, list) else one for key, one in model.visual.preprocess_cfg.items()}
    preprocess = PreprocessCfg(**of_json)
    return ContrastiveModel(model.to(device).eval(), tokenizer, config, preprocess, image_ops)


def read_config(source: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a name that `open_clip.create_model` takes."""
    try:
        config = copy.deepcopy(open_clip.get_model_config(source))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"model {source}: its configuration cannot be read ({error})") from error
    if not isinstance(config, dict) or not config.keys() >= {"embed_dim", "vision_cfg", "text_cfg"}:
        raise InputError(f"model {source}: {CONFIG} does not describe a model; give one that open_clip has written")
    return config


def check_image_size(config: dict[str, Any], image_size: int) -> None:
    """Raise [`InputError`] unless a tower can take pictures of this side."""
    patch = config["vision_cfg"].get("patch_size") or RESNET_STRIDE
    if isinstance(patch, int) and image_size % patch:
        raise InputError(f"image_size {image_size}: must be a multiple of {patch}, the tower's patch or stride")


def find_weights(folder: Path) -> str:
    """The weights in a model's folder; raises [`InputError`] if there is none."""
    for pattern in (WEIGHTS, "open_clip_pytorch_model.safetensors", "*.safetensors", "*.bin", "*.pt", "*.pth"):
        if found := sorted(folder.glob(pattern)):
            return str(found[0])
    raise InputError(f"model {folder}: holds no weights ({WEIGHTS})")


def _fill(model: nn.Module, name: str, weights: Path) -> None:
    held = _read_weights(weights)
    try:
        open_clip.load_checkpoint(model, str(weights), weights_only=True)
    except (RuntimeError, AssertionError, KeyError) as error:  # its converters assert
        found = other_shapes(held, model.state_dict())
        raise InputError(f"weights {weights}: are not of the architecture {name}: {found or error}") from error
    now = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, value in held.items():
        if key in now and now[key] != tuple(value.shape) and value.numel() > 1:
            print(f"{weights}: {key} was resized from {tuple(value.shape)} to {now[key]}", flush=True)


def _read_weights(weights: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; raises [`InputError`] if it cannot be read without unpickling."""
    if zipfile.is_zipfile(weights):
        with zipfile.ZipFile(weights) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(
                    f"weights {weights}: is a TorchScript program, which is not run here (OpenAI's files are such); "
                    "convert it to safetensors where you trust it"
                )
    try:
        held = open_clip.factory.load_state_dict(str(weights), weights_only=True)
        return {key: value for key, value in held.items() if isinstance(value, torch.Tensor)}
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {weights}: holds more than tensors, which is not unpickled here; convert it to safetensors "
            "where you trust it"
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, KeyError, StopIteration, AttributeError) as error:
        first = (str(error) or "it is empty").splitlines()[0]
        raise InputError(f"weights {weights}: cannot be read ({first})") from error


def other_shapes(state: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]) -> str:
    """In words, the first tensors of `state` that are of another shape than in `model`, or missing, or too many."""
    held, wanted = ({key: tuple(value.shape) for key, value in one.items()} for one in (state, model))
    other = [f"{key} is {held[key]}, not {wanted[key]}" for key in wanted if key in held and held[key] != wanted[key]]
    missing, foreign = sorted(wanted.keys() - held.keys()), sorted(held.keys() - wanted.keys())
    told = other[:SHOWN]
    told += [f"{len(other) - SHOWN} more differ"] if len(other) > SHOWN else []
    told += [f"{len(missing)} are missing, such as {missing[0]}"] if missing else []
    told += [f"{len(foreign)} belong elsewhere, such as {foreign[0]}"] if foreign else []
    return "; ".join(told)


def model_fingerprint(name: str, weights: str | None) -> str:
    """Tells a model from any other, see `fingerprints`; of an architecture its name and the hash of the weights."""
    if name.startswith(HUB):
        if weights:
            raise InputError(f"weights {weights}: {name} has its own; name an architecture instead")
        return base_fingerprint(name.removeprefix(HUB))
    if Path(name).is_dir():
        return base_fingerprint(name)
    if weights and not Path(weights).is_file():
        raise InputError(f"weights {weights}: no such file")
    return f"{name}+{file_hash(Path(weights)) if weights else 'random'}"


def save_model(saved: ContrastiveModel, folder: Path) -> None:
    """Write a model so that [`load_model`] and open_clip (`local-dir:FOLDER`) read it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": saved.config, "preprocess_cfg": asdict(saved.preprocess)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in saved.model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    save_ops(folder, saved.image_ops)
