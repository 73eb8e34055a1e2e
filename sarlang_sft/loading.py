"""A model's modules, weights and processor from its folder or the hub, checked before anything is built on them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from sarlang_sft.backbones import Backbone, training_template
from sarlang_sft.errors import InputError

INDEX = "model.safetensors.index.json"
DTYPES = ("auto", "bfloat16", "float16", "float32")


def build_skeleton(
    model_name_or_path: str, backbone: Backbone, deepspeed_config: HfDeepSpeedConfig | None = None
) -> PreTrainedModel:
    """The model's modules without storage for their weights, from its configuration alone.

    Args:
        deepspeed_config: Of the run: transformers would partition the missing weights under ZeRO-3.

    Raises:
        InputError: A local checkpoint does not hold exactly these weights.
    """
    config = AutoConfig.from_pretrained(model_name_or_path)
    if "quantization_config" in config.to_dict():
        raise InputError(
            f"model {model_name_or_path}: its weights are stored quantised; give the whole model, and `tuning: qlora` "
            "to quantise it while it loads"
        )
    unset_hf_deepspeed_config()
    with torch.device("meta"):
        skeleton = backbone.model_class(config)
    if deepspeed_config:
        set_hf_deepspeed_config(deepspeed_config)
    if Path(model_name_or_path).is_dir():
        _check_fit(Path(model_name_or_path), skeleton)
    return skeleton


def stored_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint; raises [`InputError`] if one is missing."""
    index = folder / INDEX
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted(names):
        if name != Path(name).name:
            raise InputError(f"model {folder}: {INDEX} names the file {name!r}, which does not lie in that folder")
        if not (folder / name).is_file():
            raise InputError(f"model {folder}: {name} is missing; only safetensors are read, never pickled weights")
    return [folder / name for name in sorted(names)]


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shapes of the tensors in a checkpoint, from the headers of its files."""
    shapes = {}
    for path in stored_files(folder):
        shapes |= tensor_shapes(path)
    return shapes


def tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """Shapes of the tensors in a safetensors file, from its header; raises [`InputError`] if it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            return {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"model {path.parent}: {path.name} is no whole safetensors file: {error}") from error


def module_names(stored: Iterable[str], skeleton: PreTrainedModel) -> dict[str, str]:
    """The model's own names of tensors by their names in a checkpoint: released models use older ones."""
    conversions = get_model_conversion_mapping(skeleton)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    state = skeleton.state_dict()
    prefix = skeleton.base_model_prefix
    return {key: rename_source_key(key, renamings, converters, prefix, state)[0] for key in stored}


def _check_fit(folder: Path, model: PreTrainedModel) -> None:
    """Raise [`InputError`] unless a checkpoint holds exactly the model's tensors; tied ones may be there once."""
    stored = stored_shapes(folder)
    names = module_names(stored, model)
    found = {names[key]: shape for key, shape in stored.items()}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    must_be_there = wanted.keys() - model.all_tied_weights_keys.keys()
    wrong = {name for name in must_be_there | found.keys() if found.get(name) != wanted.get(name)}
    if wrong:
        raise InputError(
            f"model {folder}: its checkpoint does not fit its config.json: {len(wrong)} tensors are missing, unknown "
            f"or of another shape (such as {min(wrong)}); it may belong to another model"
        )


def bring_back(model: PreTrainedModel, folder: Path) -> None:
    """Load a checkpoint of a run into its model; raises [`InputError`] unless every tensor finds its place.

    transformers' trainer looks for the names of modules, finds the older ones that checkpoints are written with, and
    goes on with the weights that the model has.
    """
    _check_fit(folder, model)
    for path in stored_files(folder):
        stored = load_file(path)
        names = module_names(stored, model)
        model.load_state_dict({names[key]: tensor for key, tensor in stored.items()}, strict=False)


def load_weights(
    model_name_or_path: str,
    backbone: Backbone,
    dtype: str,
    attn_implementation: str | dict[str, str] = "sdpa",
    quantization_config: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """The model's weights; under ZeRO-3 every rank keeps its part only.

    Args:
        attn_implementation: One name for the whole model, or a name for its `text_config` and its `vision_config`.

    Raises:
        InputError: They cannot be read, or a tensor is missing, of another shape, or unknown to the family.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype `{dtype}`: choose one of {', '.join(DTYPES)}")
    try:
        model, report = backbone.model_class.from_pretrained(
            model_name_or_path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ImportError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {model_name_or_path}: {error}") from error
    wrong = {kind: keys for kind, keys in report.items() if keys}
    if wrong:
        listed = "; ".join(f"{kind}: {len(keys)} (such as {min(map(str, keys))})" for kind, keys in wrong.items())
        raise InputError(f"model {model_name_or_path}: its checkpoint does not fit the family: {listed}")
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Some CPUs would repack 4-bit weights in evaluation: they compute in bfloat16 then, and can train no more.
            module.support_avx512bf16_for_cpu = False
    # Saving reverts the key conversions of loading. Under ZeRO-3 transformers also keeps those that matched no key,
    # and would write `model.model.*`.
    model._weight_conversions = [conversion for conversion in model._weight_conversions if conversion.was_used()]
    return model


def load_processor(model_name_or_path: str, backbone: Backbone, max_pixels: int | None = None) -> ProcessorMixin:
    """The model's processor with our pixel budget.

    Args:
        max_pixels: Upper bound of width x height after the resize; None keeps the processor's own.

    Raises:
        InputError: The folder has no processor, the family has no pixel budget, or none of its templates is the
            model's own.
    """
    try:
        processor = AutoProcessor.from_pretrained(model_name_or_path)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model_name_or_path}: no processor found: {error}") from error
    if not isinstance(processor, ProcessorMixin):
        raise InputError(
            f"model {model_name_or_path}: has a tokenizer but no image processor (preprocessor_config.json is missing)"
        )
    limit_pixels(processor, max_pixels)
    if not processor.chat_template:
        raise InputError(f"model {model_name_or_path}: has no chat template; restore the model's own chat_template")
    try:
        training_template(processor, backbone)
    except (ValueError, TemplateError) as error:
        raise InputError(f"model {model_name_or_path}: {error}") from error
    return processor


def limit_pixels(processor: ProcessorMixin, max_pixels: int | None) -> None:
    """Set the upper bound of width x height after the resize; None keeps the processor's own.

    Raises:
        InputError: The family has no pixel budget, or its smallest image has more.
    """
    if max_pixels is None:
        return
    size = processor.image_processor.size
    if "longest_edge" not in size:
        raise InputError(f"max_pixels {max_pixels}: this family resizes every image to one size; leave it out")
    smallest = size["shortest_edge"]
    if max_pixels < smallest:
        raise InputError(f"max_pixels {max_pixels}: below the processor's smallest image of {smallest} pixels")
    processor.image_processor.size["longest_edge"] = max_pixels
