"""FSDP2 through accelerate: weights, gradients and the optimiser's state cut among the ranks by PyTorch itself."""

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.arguments import TrainArguments


def shard_on_cpu(accelerator: Accelerator, training: TrainArguments) -> None:
    """Make accelerate use FSDP2 on the CPU: it takes the plugin on GPUs only, and would run DDP without a word."""
    plugin = FullyShardedDataParallelPlugin(**training.fsdp_plugin_args)
    if training.bf16:
        plugin.set_mixed_precision("bf16")
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState().distributed_type = DistributedType.FSDP


def name_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Have every layer of the tower and of the language model gathered by itself.

    Of the classes that a model of several parts names for it, accelerate refuses those that this one does not have.
    """
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(kinds)


def check_sharded(model: nn.Module) -> None:
    """Raise `RuntimeError` unless every parameter is cut among the ranks."""
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    if whole:
        raise RuntimeError(f"fsdp: {len(whole)} parameters are not cut among the ranks (such as {whole[0]})")


def gather_head(model: PreTrainedModel | PeftModel) -> None:
    """Have the output head gathered when the model begins.

    TRL's loss reads the head's weight without running the head. Cut, it would be gathered by TRL itself, and each part
    of it learn from the tokens of one rank alone.
    """
    head = model.get_output_embeddings()
    model.register_forward_pre_hook(lambda module, inputs: head.unshard())  # behind FSDP's own, which goes first


def gather_state(model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """What of a model is saved, whole and in main memory: on rank 0, nothing elsewhere. Every rank must ask.

    Of a model with adapters that is what trains; tied tensors are there once.
    """
    adapted = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted)
    state = get_model_state_dict(model, options=options)
    if not adapted:
        for name in model.all_tied_weights_keys:
            state.pop(name, None)
    return state
