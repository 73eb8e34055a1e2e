"""Who holds what: every rank everything (DDP), or cut by DeepSpeed's ZeRO or PyTorch's FSDP2."""

from dataclasses import dataclass
from pathlib import Path

from sarlang_sft.batch_size import read_deepspeed
from sarlang_sft.errors import InputError


@dataclass(frozen=True)
class Sharding:
    """How a training is cut over its ranks; sizes in numbers, as in DeepSpeed's configuration.

    Attributes:
        engine: `DDP`, `ZeRO` or `FSDP2`.
        stage: 1 cuts the optimiser's states, 2 the gradients too, 3 the weights too; FSDP2 is 3.
        bucket: Largest bucket of gradients that is sent at once.
        overlaps: One bucket fills while another one is sent.
        live: Weights that ZeRO-3 holds gathered at most.
        persistent: Parameters of fewer numbers stay gathered under ZeRO-3.
        sub_group: Numbers that ZeRO-3's optimiser steps on at once.
    """

    engine: str = "DDP"
    stage: int = 0
    offload_optimiser: bool = False
    offload_weights: bool = False
    bucket: int = 500_000_000
    overlaps: bool = True
    live: int = 1_000_000_000
    persistent: int = 100_000
    sub_group: int = 1_000_000_000

    def __str__(self) -> str:
        name = f"ZeRO-{self.stage}" if self.engine == "ZeRO" else self.engine
        offloaded = [what for what, on in (("optimiser", self.offload_optimiser), ("weights", self.offload_weights))
                     if on]  # fmt: skip
        return name + (f", {' and '.join(offloaded)} on the CPU" if offloaded else "")

    def ranks_of(self, stage: int, ranks: int) -> int:
        """Over how many ranks the part that `stage` cuts is cut."""
        return ranks if self.stage >= stage else 1


FSDP2 = Sharding("FSDP2", 3)
# By what the files of deepspeed_configs are called; a test compares them.
SHIPPED = {
    "zero2": Sharding("ZeRO", 2, bucket=200_000_000),
    "zero3": Sharding("ZeRO", 3, bucket=16_777_216),
    "zero2_offload": Sharding("ZeRO", 2, offload_optimiser=True, bucket=200_000_000),
    "zero3_offload": Sharding("ZeRO", 3, offload_optimiser=True, offload_weights=True, bucket=16_777_216),
}


def read_sharding(path: Path, rows_per_step: int, rows_per_device: int) -> Sharding:
    """The parts of a DeepSpeed configuration that memory depends on; what it leaves out has DeepSpeed's defaults.

    Args:
        rows_per_step: Of all ranks and accumulated batches.

    Raises:
        InputError: It is no such configuration, or names other batch sizes.
    """
    whole = read_deepspeed(str(path))
    given = whole.get("zero_optimization")
    if not isinstance(given, dict):
        raise InputError(f"deepspeed {path}: has no `zero_optimization`")
    stage = given.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"deepspeed {path}: stage {stage!r} is none of 0, 1, 2 and 3")
    for name, wanted in (("train_batch_size", rows_per_step), ("train_micro_batch_size_per_gpu", rows_per_device)):
        if whole.get(name, "auto") not in ("auto", wanted):
            raise InputError(
                f'deepspeed {path}: {name} {whole[name]} is not the {wanted} of this training; write "auto"'
            )

    def offloaded(part: str) -> bool:
        return (given.get(part) or {}).get("device", "none") != "none"

    def number(name: str, default: int) -> int:
        return default if given.get(name, "auto") == "auto" else int(given[name])

    plain = Sharding()
    return Sharding(
        "ZeRO",
        stage,
        offloaded("offload_optimizer"),
        offloaded("offload_param"),
        number("reduce_bucket_size", plain.bucket),
        bool(given.get("overlap_comm", stage == 3)),
        number("stage3_max_live_parameters", plain.live),
        number("stage3_param_persistence_threshold", plain.persistent),
        number("sub_group_size", plain.sub_group),
    )
