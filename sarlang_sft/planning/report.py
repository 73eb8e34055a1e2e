"""A plan for the screen, for the header of a configuration, and for other programs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sarlang_sft.planning.memory import Memory
from sarlang_sft.planning.plan import TrainingPlan
from sarlang_sft.whole_output import whole_file


def describe(plan: TrainingPlan, changes: dict[str, Memory]) -> str:
    """The plan as a table for the screen, with what `try_changes` found."""
    parts = [plan.table, _rows(plan), _memory(plan), _changes(plan, changes), _time(plan)]
    return "\n\n".join("\n".join(part) if isinstance(part, list) else part for part in parts if part)


def _rows(plan: TrainingPlan) -> list[str]:
    rows = plan.rows
    lines = [
        f"rows: {rows.source}",
        f"  {rows.image_tokens:,} tokens an image of {rows.width} x {rows.height} pixels; "
        f"{rows.dialogues_per_image:.1f} dialogues an image",
        f"  a row: {rows.tokens_per_row:,.0f} tokens, {rows.images_per_row:.1f} images, "
        f"{rows.dialogues_per_row:.1f} dialogues, {rows.scored_per_row:,.0f} scored tokens",
    ]
    if not rows.exact:
        lines.append("  texts counted by a tokenizer of the words at hand; give the model's folder for its own")
    if rows.left_out:
        lines.append(f"  {100 * rows.left_out:.2f} % of the dialogues are too long for a row")
    return lines


def _memory(plan: TrainingPlan) -> list[str]:
    setup, memory, step = plan.setup, plan.memory, plan.memory.step
    batch, kind = setup.batch, "GPUs" if setup.on_cuda else "processes"
    checkpointed = " and ".join(setup.checkpointed).replace("_", " ") or "nothing"
    if len(setup.checkpointed) == 3:
        checkpointed = "everything"
    lines = [
        f"memory of each of {setup.ranks} {kind}, {setup.sharding}; checkpointed: {checkpointed}; "
        f"{batch.rows} x {batch.tokens:,} tokens with {batch.images} images at once"
    ]
    lines += [_line(name, size) for name, size in memory.parts.items() if size]
    lines += [
        _line("  kept by vision tower and projector", step.vision),
        _line("  kept by the language model", step.language_model),
        _line("  for a moment: logits and their gradients", step.head),
        _line("  for a moment: the most, with a layer's", step.transient),
        _line("what torch allocates at most", memory.allocated),
    ]
    if setup.on_cuda:
        lines += [
            _line("CUDA, NCCL, fragmentation (assumed)", memory.reserved),
            f"{_line('needed', memory.needed)} of {plan.limit / 1e9:g}: {plan.verdict}",
        ]
    if memory.pageable:
        lines.append(_line("of the optimiser, may move to the CPU", memory.pageable))
    if memory.host:
        lines.append(_line("on the CPU, every rank", memory.host))
    return lines


def _line(name: str, size: int) -> str:
    return f"  {name:42} {size / 1e9:9.3f} GB"


def _changes(plan: TrainingPlan, changes: dict[str, Memory]) -> list[str]:
    if not changes:
        return []
    title = "fits easily; what would also fit, and be faster:"
    if not plan.fits:
        title = "what would change it (each alone, cheapest first; then one on top of the other if none is enough):"
    return [title] + [
        f"  {other.needed / 1e9:9.3f} GB {'fits' if other.needed <= plan.limit else 'too big':8} {name}"
        for name, other in changes.items()
    ]


def _time(plan: TrainingPlan) -> str:
    speed = plan.speed
    if speed is None:
        return "speed: not planned for a CPU"
    cost = "" if speed.cost is None else f", cost {speed.cost:,.0f}"
    return (
        f"speed of {speed.gpu}s at an MFU of {speed.mfu:.2f} ({speed.mfu_source}): {speed.qa_per_s:,.0f} QA/s, "
        f"{speed.hours:,.1f} hours{cost}"
    )


def header(plan: TrainingPlan, command: str) -> str:
    """The plan as a few comment lines for the configuration that it is of.

    Args:
        command: Prints the plan.
    """
    setup, memory, rows, step = plan.setup, plan.memory, plan.rows, plan.memory.step
    trained = sum(count.adapter + count.full for count in plan.counts)
    total = sum(count.adapter + count.base for count in plan.counts)
    parts = {name: size for name, size in memory.parts.items() if not name.startswith("weights")}
    weights = sum(memory.parts.values()) - sum(parts.values())
    listed = ", ".join(f"{name} {_short(size)}" for name, size in {"weights": weights, **parts}.items() if size)
    where = (
        f"{setup.ranks} GPU{'s' * (setup.ranks > 1)} of {plan.limit / 1e9:g} GB"
        if setup.on_cuda
        else f"{setup.ranks} CPU processes"
    )
    lines = [
        f"Planner's estimate, not measured, for {where}, {setup.sharding}:",
        f"  {command}",
        f"parameters {total:,}, trained {trained:,}; {rows.image_tokens:,} tokens an image",
        f"a row {rows.tokens_per_row:,.0f} tokens, {rows.images_per_row:.1f} images, {rows.dialogues_per_row:.1f} "
        f"dialogues; planned for {setup.batch.rows} x {setup.batch.tokens:,} tokens",
        f"GB of each: {listed}",
        f"  (logits {_short(step.head)}); torch allocates {_short(memory.allocated)}"
        + (f", needed {_short(memory.needed)}: {plan.verdict}" if setup.on_cuda else ""),
    ]
    if speed := plan.speed:
        lines.append(
            f"{speed.gpu}s at an MFU of {speed.mfu:.2f} ({speed.mfu_source}): {speed.qa_per_s:,.0f} QA/s, "
            f"{speed.hours:,.1f} hours"
        )
    return "".join(f"# {line}\n" for line in lines)


def _short(size: int) -> str:
    return f"{size / 1e9:.2f}" if size >= 1e8 else f"{size / 1e9:.4f}"


def write_plan(plan: TrainingPlan, changes: dict[str, Memory], path: Path) -> None:
    """The plan as JSON: bytes, FLOP, hours."""

    def memory(of: Memory) -> dict[str, Any]:
        return {**asdict(of), "allocated": of.allocated, "needed": of.needed}

    content = {
        "setup": {**asdict(plan.setup), "batch": plan.setup.batch._asdict()},
        "components": [{**asdict(count), "state": count.state} for count in plan.counts],
        "rows": asdict(plan.rows),
        "memory": memory(plan.memory),
        "limit": plan.limit,
        "fits": plan.fits,
        "changes": {name: memory(other) for name, other in changes.items()},
        "speed": asdict(plan.speed) if plan.speed else None,
    }
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())
