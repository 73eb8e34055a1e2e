"""A recipe whose last rank computes NaN in its third step, as broken memory or an overflow would make it.

python tests/drills/poisoned_rank.py RECIPE --option value ...
"""

import runpy
import sys

import torch
from torch import nn

from sarlang_sft import training
from sarlang_sft.run_trainer import RunTrainer

build = training.build_trainer


def build_poisoned(*args: object) -> RunTrainer:
    trainer = build(*args)

    def poison(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if trainer.state.global_step == 2 else output

    if trainer.args.process_index == trainer.args.world_size - 1:
        trainer.model.get_input_embeddings().register_forward_hook(poison)
    return trainer


training.build_trainer = build_poisoned
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
