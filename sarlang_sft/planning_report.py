"""A plan for the screen and for other programs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sarlang_sft.planning import TrainingPlan
from sarlang_sft.planning_memory import Memory
from sarlang_sft.whole_output import whole_file


def describe(plan: TrainingPlan) -> str:
    """The plan as a table for the screen."""
    setup, rows, memory, speed = plan.setup, plan.rows, plan.memory, plan.speed
    batch = setup.batch
    lines = [
        plan.table,
        "",
        f"rows: {rows.source}",
        f"  {rows.image_tokens} tokens an image of {rows.width} x {rows.height}; {rows.dialogues_per_image:.1f} "
        f"dialogues an image; a row: {rows.tokens_per_row:,.0f} tokens, {rows.images_per_row:.1f} images, "
        f"{rows.dialogues_per_row:.1f} dialogues, {rows.scored_per_row:,.0f} scored tokens",
        "",
        f"memory of each of {setup.ranks} GPUs, {setup.zero}; checkpointed: "
        f"{', '.join(setup.checkpointed) or 'nothing'}; {batch.rows} x {batch.tokens:,} tokens "
        f"with {batch.images} images at once",
    ]
    lines += [f"  {name:42} {size / 1e9:9.3f} GB" for name, size in memory.parts.items() if size]
    lines += [
        f"  {'peak of what torch allocates':42} {memory.allocated / 1e9:9.3f} GB",
        f"  {'with context, NCCL, fragmentation (assumed)':42} {memory.needed / 1e9:9.3f} GB of "
        f"{plan.limit / 1e9:g}: {'fits' if plan.fits else 'DOES NOT FIT'}",
    ]
    if memory.host:
        lines.append(f"  {'on the CPU, all ranks together':42} {memory.host / 1e9:9.3f} GB")
    step = memory.step
    lines.append(
        f"  of the activations {step.vision / 1e9:.3f} GB kept by vision tower and projector, "
        f"{step.language_model / 1e9:.3f} GB by the language model; {step.transient / 1e9:.3f} GB for a moment"
    )
    if plan.changes:
        lines += [
            "",
            "what would change it (each alone, cheapest first; then one on top of the other if none is enough):",
        ]
        lines += [
            f"  {other.needed / 1e9:9.3f} GB {'fits' if other.needed <= plan.limit else 'too big':8} {name}"
            for name, other in plan.changes.items()
        ]
    lines += [
        "",
        f"speed at an MFU of {speed.mfu:.2f} ({speed.mfu_source}): {speed.qa_per_s:,.0f} QA/s, "
        f"{speed.hours:,.1f} hours" + ("" if speed.cost is None else f", cost {speed.cost:,.0f}"),
    ]
    return "\n".join(lines)


def write_plan(plan: TrainingPlan, path: Path) -> None:
    """The plan as JSON: bytes, FLOP, seconds' shares as the table shows them."""

    def memory(of: Memory) -> dict[str, Any]:
        return {
            "parts": of.parts,
            "step": asdict(of.step),
            "allocated": of.allocated,
            "needed": of.needed,
            "host": of.host,
        }

    content = {
        "setup": {**asdict(plan.setup), "batch": plan.setup.batch._asdict()},
        "components": [{**asdict(count), "state": count.state} for count in plan.counts],
        "rows": asdict(plan.rows),
        "memory": memory(plan.memory),
        "limit": plan.limit,
        "fits": plan.fits,
        "changes": {name: memory(other) for name, other in plan.changes.items()},
        "speed": asdict(plan.speed),
    }
    with whole_file(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())
