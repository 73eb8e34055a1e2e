"""What people look at: tables on the screen, contact sheets and summaries."""

from typing import Any


def print_manifest(manifest: dict[str, Any]) -> None:
    """Counts per split, subset and task, and what was rejected why."""
    for split, subsets in manifest["counts"].items():
        for subset, tasks in subsets.items():
            listed = ", ".join(f"{task} {count:,}" for task, count in sorted(tasks.items()))
            print(f"  {split:5} {subset:16} {sum(tasks.values()):>9,}  ({listed})")
    print(f"  read {manifest['read']:,} = accepted {manifest['accepted']:,} + rejected {sum(manifest['rejected'].values()):,}")
    for reason, count in manifest["rejected"].items():
        print(f"  rejected: {reason} {count:,} (see rejected.jsonl)")
