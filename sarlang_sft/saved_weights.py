"""What was just written is what trained: every tensor, in full."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sarlang_sft.loading import stored_shapes, tensor_shapes
from sarlang_sft.trainable import whole_shape


def check_saved(folder: Path, model: PreTrainedModel | PeftModel) -> None:
    """Compare the headers of the files in a folder with the model, or the adapters, that were saved there.

    Where ranks hold parts of the weights, saving may write empty tensors, parts, or none; this asks no other rank.

    Raises:
        RuntimeError: A tensor is missing, not of its whole shape, or unknown.
    """
    if isinstance(model, PeftModel):
        trained = {name: _hollow(one) for name, one in model.named_parameters() if one.requires_grad}
        wanted = get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False)
        found = tensor_shapes(folder / "adapter_model.safetensors")
    else:
        tied = model.all_tied_weights_keys
        held = {name: _hollow(one) for name, one in model.state_dict(keep_vars=True).items() if name not in tied}
        wanted = revert_weight_conversion(model, held)
        found = stored_shapes(folder)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    if wrong := {name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name)}:
        raise RuntimeError(f"{folder}: {len(wrong)} tensors were not saved in full (such as {min(wrong)})")


def _hollow(parameter: nn.Parameter) -> torch.Tensor:
    """A tensor of its whole shape that takes no memory."""
    return torch.empty(whole_shape(parameter), device="meta")
