"""What to change if a training does not fit, and what would use the memory better if it fits easily."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sarlang_sft.planning.memory import Memory, plan_memory
from sarlang_sft.planning.model import Batch, Setup, build_planned
from sarlang_sft.planning.published import Architecture
from sarlang_sft.planning.sharding import SHIPPED, Sharding
from sarlang_sft.tuning import COMPONENTS

EASILY = 0.7  # of the memory: a training that needs less could use more


@dataclass(frozen=True)
class Change:
    """A change to a setup; `change` gives None where it is already so or impossible."""

    name: str
    change: Callable[[Setup], Setup | None]


def scaled(batch: Batch, rows: int, tokens: int) -> Batch:
    """A batch of so many rows of so many tokens, as full of images and answers."""
    share = rows * tokens / (batch.rows * batch.tokens)
    images = max(min(batch.images, 1), math.ceil(batch.images * share))
    return batch._replace(rows=rows, tokens=tokens, images=images, scored=batch.scored * tokens // batch.tokens)


def _checkpointing(setup: Setup) -> Setup | None:
    return None if setup.checkpointed == COMPONENTS else replace(setup, checkpointed=COMPONENTS)


def _zero(name: str) -> Change:
    cut = SHIPPED[name]

    def change(setup: Setup) -> Setup | None:
        now = setup.sharding
        possible = (setup.ranks > 1 or cut.offload_optimiser) and not (cut.stage == 3 and setup.tuning.bits())
        more = now.stage <= cut.stage and str(cut) != str(now)
        return replace(setup, sharding=cut) if possible and more else None

    return Change(f"--deepspeed deepspeed_configs/{name}.json", change)


def _half(setup: Setup) -> Setup | None:
    batch = setup.batch
    if batch.rows > 1:
        return replace(setup, batch=scaled(batch, (batch.rows + 1) // 2, batch.tokens))
    return replace(setup, batch=scaled(batch, 1, batch.tokens // 2)) if setup.trees else None


def _qlora(setup: Setup) -> Setup | None:
    tuning = setup.tuning
    if tuning.language_model != "lora" or tuning.bits() or setup.sharding.stage == 3:
        return None
    return None if tuning.init_lora_weights == "pissa" else replace(setup, tuning=replace(tuning, load_in_4bit=True))


# In the order in which they cost least: nothing learned, then speed, then another way to tune.
SMALLER = (
    Change("--gradient_checkpointing true --checkpointed both", _checkpointing),
    _zero("zero2"),
    _zero("zero3"),
    Change("half as much in a batch (per_device_train_batch_size, then max_tokens_per_row)", _half),
    Change("--tuning qlora", _qlora),
    _zero("zero2_offload"),
    _zero("zero3_offload"),
)


def _whole_weights(setup: Setup) -> Setup | None:
    if not setup.tuning.bits():
        return None
    return replace(setup, tuning=replace(setup.tuning, load_in_4bit=False, load_in_8bit=False))


def _undivided(setup: Setup) -> Setup | None:
    return None if setup.sharding.engine == "DDP" else replace(setup, sharding=Sharding())


def _cut_less(setup: Setup) -> Setup | None:
    sharding = setup.sharding
    if sharding.engine != "ZeRO" or sharding.stage < 3 or sharding.offload_optimiser or sharding.offload_weights:
        return None
    return replace(setup, sharding=SHIPPED["zero2"])


def _no_checkpointing(setup: Setup) -> Setup | None:
    return replace(setup, checkpointed=()) if setup.checkpointed else None


def _double(setup: Setup) -> Setup:
    return replace(setup, batch=scaled(setup.batch, 2 * setup.batch.rows, setup.batch.tokens))


# What costs nothing but memory, most useful first.
FASTER = (
    Change("without 4 or 8 bits (--load_in_4bit false --load_in_8bit false): no weight is unpacked", _whole_weights),
    Change("without --deepspeed or FSDP2 (DDP): less is sent", _undivided),
    Change("--deepspeed deepspeed_configs/zero2.json: less is sent", _cut_less),
    Change("--gradient_checkpointing false: no layer is computed twice", _no_checkpointing),
    Change("twice as many rows (per_device_train_batch_size): fewer, larger products", _double),
)


def try_changes(setup: Setup, memory: Memory, limit: float, architecture: Architecture) -> dict[str, Memory]:
    """Changes by name, each with its memory: what may make a training fit, or would fit and make it faster.

    Those that shrink come alone, then one on top of the other until it fits, if none is enough alone. Nothing where
    the training fits and the memory is well used, or on a CPU.

    Args:
        memory: Of the setup as it is.
        limit: Bytes of a device.
    """
    if not setup.on_cuda:
        return {}
    if memory.needed > limit:
        alone = _each(SMALLER, setup, architecture)
        enough = any(other.needed <= limit for other in alone.values())
        return alone if enough else alone | _added_up(setup, limit, architecture)
    if memory.needed > EASILY * limit:
        return {}
    return {name: other for name, other in _each(FASTER, setup, architecture).items() if other.needed <= limit}


def _each(changes: tuple[Change, ...], setup: Setup, architecture: Architecture) -> dict[str, Memory]:
    changed = {change.name: change.change(setup) for change in changes}
    return {name: _memory_of(other, architecture) for name, other in changed.items() if other}


def _added_up(setup: Setup, limit: float, architecture: Architecture) -> dict[str, Memory]:
    sums: dict[str, Memory] = {}
    for change in SMALLER:
        changed = change.change(setup)
        if changed is None:
            continue
        setup, memory = changed, _memory_of(changed, architecture)
        sums[f"and {change.name}" if sums else f"{change.name}, and on top of it:"] = memory
        if memory.needed <= limit:
            break
    return sums


def _memory_of(setup: Setup, architecture: Architecture) -> Memory:
    return plan_memory(setup, build_planned(setup, architecture), architecture)
