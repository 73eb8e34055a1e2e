"""What to change if a training does not fit, in the order of what it costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sarlang_sft.planning_memory import Memory, Setup
from sarlang_sft.planning_rehearsal import Batch
from sarlang_sft.tuning import COMPONENTS


def scaled(batch: Batch, rows: int, tokens: int) -> Batch:
    """A batch of so many rows of so many tokens, as full of images and answers."""
    share = rows * tokens / (batch.rows * batch.tokens)
    images = max(min(batch.images, 1), math.ceil(batch.images * share))
    return batch._replace(rows=rows, tokens=tokens, images=images, scored=batch.scored * tokens // batch.tokens)


@dataclass(frozen=True)
class Change:
    """A change to a setup that may make it fit; `change` gives None where it is already so or impossible."""

    name: str
    change: Callable[[Setup], Setup | None]


def _checkpointing(setup: Setup) -> Setup | None:
    return None if setup.checkpointed == COMPONENTS else replace(setup, checkpointed=COMPONENTS)


def _zero(stage: int, offload: bool) -> Callable[[Setup], Setup | None]:
    def change(setup: Setup) -> Setup | None:
        cut = replace(setup.zero, stage=stage, offload_optimiser=offload, offload_weights=offload and stage == 3)
        possible = (setup.ranks > 1 or offload) and not (stage == 3 and setup.tuning.bits())
        return replace(setup, zero=cut) if possible and (setup.zero.stage or 0) <= stage else None

    return change


def _half_row(setup: Setup) -> Setup | None:
    batch = setup.batch
    if batch.rows > 1:
        return replace(setup, batch=scaled(batch, (batch.rows + 1) // 2, batch.tokens))
    return replace(setup, batch=scaled(batch, 1, batch.tokens // 2))


def _qlora(setup: Setup) -> Setup | None:
    if setup.tuning.language_model != "lora" or setup.tuning.bits() or setup.zero.stage == 3:
        return None
    if setup.tuning.init_lora_weights == "pissa":
        return None
    return replace(setup, tuning=replace(setup.tuning, load_in_4bit=True))


# In the order in which they cost least: nothing learned, then speed, then another way to tune.
CHANGES = (
    Change("--gradient_checkpointing true --checkpointed both", _checkpointing),
    Change("--deepspeed deepspeed_configs/zero2.json", _zero(2, False)),
    Change("--deepspeed deepspeed_configs/zero3.json", _zero(3, False)),
    Change("half as much in a batch (per_device_train_batch_size, then max_tokens_per_row)", _half_row),
    Change("--tuning qlora", _qlora),
    Change("--deepspeed deepspeed_configs/zero2_offload.json", _zero(2, True)),
    Change("--deepspeed deepspeed_configs/zero3_offload.json", _zero(3, True)),
)


def add_up(setup: Setup, memory_of: Callable[[Setup], Memory], limit: float) -> dict[str, Memory]:
    """The changes one on top of the other, as far as they go together, until one fits into `limit` bytes."""
    sums: dict[str, Memory] = {}
    for change in CHANGES:
        changed = change.change(setup)
        if changed is None:
            continue
        setup = changed
        sums[f"and {change.name}" if sums else f"{change.name}, and on top of it:"] = memory = memory_of(setup)
        if memory.needed <= limit:
            break
    return sums
