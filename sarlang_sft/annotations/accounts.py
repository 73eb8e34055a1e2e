"""What became of every image and box of annotations, for the manifest, the screen and the list of problems."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sarlang_sft.annotations.model import LabelledImage, Problem
from sarlang_sft.annotations.reading import AnnotationSet


def account_for(
    annotations: AnnotationSet, images: Sequence[LabelledImage], problems: Sequence[Problem]
) -> dict[str, Any]:
    """Images and boxes as `read = used + left_out`, each with the reasons; `changed` ones are used.

    Returns:
        `format`; `images` and `boxes` with `read used left_out changed`; `without_boxes`, images that are used as
        background; `unsure`, images of which some class is not known in full; `notes` on what had to be decided.
    """
    counted = {}
    for what, used in (("image", len(images)), ("box", sum(len(image.boxes) for image in images))):
        left_out = Counter(problem.reason for problem in problems if problem.what == what and not problem.used)
        changed = Counter(problem.reason for problem in problems if problem.what == what and problem.used)
        counted[what] = {
            "read": used + left_out.total(),
            "used": used,
            "left_out": dict(left_out.most_common()),
            "changed": dict(changed.most_common()),
        }
    return {
        "format": annotations.format,
        "images": counted["image"],
        "boxes": counted["box"],
        "without_boxes": sum(not image.boxes for image in images),
        "unsure": sum(bool(image.unsure) for image in images),
        "notes": annotations.notes,
    }


def problem_lines(problems: Sequence[Problem]) -> str:
    """Every problem as a JSON line."""
    return "".join(json.dumps(problem._asdict()) + "\n" for problem in problems)


def print_accounts(accounts: Mapping[str, Any]) -> None:
    """What was read, used, and left out why."""
    for note in accounts["notes"]:
        print(f"  {note}")
    for what in ("images", "boxes"):
        counts = accounts[what]
        left_out = sum(counts["left_out"].values())
        print(f"  {what}: read {counts['read']:,} = used {counts['used']:,} + left out {left_out:,}")
        for kind, words in (("left_out", "left out"), ("changed", "used, but")):
            for reason, count in counts[kind].items():
                print(f"  {what}, {words}: {reason} {count:,} (see annotations.jsonl)")
    print(
        f"  images without boxes {accounts['without_boxes']:,}, with a class not known in full {accounts['unsure']:,}"
    )
