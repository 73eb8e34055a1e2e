"""Bytes that bitsandbytes and the optimisers keep for a tensor; tests/test_planning_sizes.py lets them allocate."""

import math

from sarlang_sft.errors import InputError

FULL = 8  # bytes of Adam's two states in float32
SMALL = 4096  # bitsandbytes keeps the states of smaller tensors in float32
BLOCK = 256  # numbers that share a float32 scale in its 8-bit states
PAGED_FROM = 100_000  # numbers from which a paged optimiser's states can move to the CPU
EIGHT_BIT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit")
OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", *EIGHT_BIT)
NF4_TABLES = 4 * (16 + 256 + 1)  # of every layer: NF4's values, those of the scales, and the scales' mean


def state_bytes(numbers: int, optimiser: str) -> int:
    """Bytes of AdamW's states for a tensor of so many numbers.

    Raises:
        InputError: Another optimiser.
    """
    if optimiser not in OPTIMISERS:
        raise InputError(f"optim {optimiser}: the planner knows {', '.join(OPTIMISERS)}")
    if optimiser in EIGHT_BIT and numbers >= SMALL:
        return 2 * (numbers + 4 * math.ceil(numbers / BLOCK))
    return FULL * numbers


def pageable_bytes(numbers: int, optimiser: str) -> int:
    """Bytes of them that may move to the CPU when the GPU is full."""
    paged = optimiser.startswith("paged") and numbers >= PAGED_FROM
    return state_bytes(numbers, optimiser) if paged else 0


def quantised_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of a linear layer's weight in NF4 with double quantisation (arXiv 2305.14314), or in LLM.int8.

    NF4: 4 bits, 8 bits for every 64 numbers, 32 bits for every 256 of those; LLM.int8: 8 bits, 32 for every row.
    """
    if bits == 8:
        return rows * columns + 4 * rows
    scales = math.ceil(rows * columns / 64)
    return math.ceil(rows * columns / 2) + scales + 4 * math.ceil(scales / 256) + NF4_TABLES
