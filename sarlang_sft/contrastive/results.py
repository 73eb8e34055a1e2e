"""What the evaluations of contrastive models write: one JSON per protocol, which eval/report.py shows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sarlang_sft.whole_output import whole_file

Figure = Mapping[str, float]  # `value` and, where it is sure to how much, `low` and `high`


def write_figures(
    out: Path,
    task: str,
    protocol: str,
    model: str,
    n: int,
    unreadable: Mapping[Path, str],
    figures: Mapping[str, Figure],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the figures of one evaluation, and return what was written.

    Args:
        task: retrieval, zero_shot, linear_probe, fine_tuned, semantic_localization or ensemble.
        n: What was counted, without the unreadable images.
        unreadable: The reason by image, for those excluded.
        figures: `{value, low, high}` by name, in 0-1; the first is the one to look at first.
        more: What else to keep, such as figures by class.
    """
    content = {
        "task": task,
        "protocol": protocol,
        "model": model,
        "n": n,
        "unreadable": {str(path): reason for path, reason in unreadable.items()},
        "figures": {name: dict(figure) for name, figure in figures.items()},
        **(more or {}),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
    return content


def show_figures(content: Mapping[str, Any]) -> str:
    """The figures as lines of text, in per cent."""
    lines = [f"{content['task']} ({content['protocol']}), n = {content['n']:,}"]
    for name, figure in content["figures"].items():
        interval = f"  ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})" if "low" in figure else ""
        lines.append(f"  {name:24} {100 * figure['value']:6.2f}{interval}")
    if content["unreadable"]:
        shown = next(iter(content["unreadable"].items()))
        lines.append(f"  excluded: {len(content['unreadable'])} unreadable images, such as {shown[0]} ({shown[1]})")
    return "\n".join(lines)
