"""Are the facts of captions right? Classes and numbers that they state against the boxes of their images.

To CIDEr the wrong number of ships is one wrong word among many, and less than most others; here it is an error.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sarlang_sft.scoring.intervals import ratio_with_interval
from sarlang_sft.scoring.predictions import Row, group_by
from sarlang_sft.scoring.stated import Count, class_of, forms_of, stated_facts

VERSION = 1  # of the rules: whoever changes what a caption states raises it


@dataclass(frozen=True)
class Facts:
    """What one caption states, and how many boxes of each class its image has."""

    images: tuple[str, ...]
    stated: dict[str, Count]
    true: Counter[str]

    @property
    def named(self) -> set[str]:
        """Classes that the caption says there are."""
        return {name for name, count in self.stated.items() if count.low > 0}

    @property
    def numbered(self) -> dict[str, int]:
        """Their numbers, where it says one."""
        return {name: self.stated[name].low for name in self.named if self.stated[name].exact}

    @property
    def right_numbers(self) -> set[str]:
        return {name for name, number in self.numbered.items() if self.true[name] == number}


def score_facts(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Precision and recall of the classes and of the numbers that captions state; None if no image has boxes.

    Only captions of images with boxes count, and of what they say only the classes that boxes of the same source
    have somewhere in `rows`: a forest that nobody labels is neither right nor wrong.

    Args:
        rows: One per caption; a missing prediction states nothing.

    Returns:
        [`_figures`] of all, `classes` by source, `by_class`, and the main figures `by_style`.
    """
    rows = [row for row in rows if row.boxes]
    if not rows:
        return None
    classes: dict[str, set[str]] = {}
    for row in rows:
        classes.setdefault(row.source, set()).update(class_of(box.label) for box in row.boxes)
    facts = [
        Facts(
            row.images,
            stated_facts(row.predict or "", forms_of(frozenset(classes[row.source]))),
            Counter(class_of(box.label) for box in row.boxes),
        )
        for row in rows
    ]
    return {
        "version": VERSION,
        **_figures(facts),
        "by_style": group_by(
            rows, lambda row: row.style or "none", lambda group: _figures([facts[one] for one in group])
        ),
        "by_class": {name: _of_class(facts, name) for name in sorted(set().union(*classes.values()))},
        "classes": {source: sorted(names) for source, names in sorted(classes.items())},
    }


def _figures(facts: Sequence[Facts]) -> dict[str, Any]:
    """`captions`; `without_fact`, those that name none of the classes; and, as `{value, low, high, n}`:

    `class_precision`: of the classes that captions name, those that are there; `class_recall`: of the classes that are
    there, those named; `count_precision`: of the classes named with a number, those of which there are just as many;
    `count_recall`: of the classes that are there, those named with the right number. Then classes `hallucinated`
    (named and not there) and `missed`; `wrong_numbers` of classes that are there; classes named without a number
    (`vague`) and those of them that the boxes contradict; `denied` and `wrongly_denied` classes.
    """
    vague = [(one.stated[name], one.true[name]) for one in facts for name in one.named if name not in one.numbered]
    denied = [one.true[name] for one in facts for name in one.stated.keys() - one.named]
    named = [len(one.named) for one in facts]
    there = [len(one.true) for one in facts]
    found = [len(one.named & one.true.keys()) for one in facts]
    numbered = [len(one.numbered) for one in facts]
    right = [len(one.right_numbers) for one in facts]
    images = [one.images for one in facts]
    return {
        "captions": len(facts),
        "images": len(set(images)),
        "without_fact": sum(not one.stated for one in facts),
        "class_precision": _share(found, named, images),
        "class_recall": _share(found, there, images),
        "count_precision": _share(right, numbered, images),
        "count_recall": _share(right, there, images),
        "hallucinated": sum(named) - sum(found),
        "missed": sum(there) - sum(found),
        "wrong_numbers": sum(
            one.true[name] not in (0, number) for one in facts for name, number in one.numbered.items()
        ),
        "vague": len(vague),
        "vague_contradicted": sum(true > 0 and not count.low <= true <= (count.high or true) for count, true in vague),
        "denied": len(denied),
        "wrongly_denied": sum(true > 0 for true in denied),
    }


def _share(parts: list[int], wholes: list[int], images: list[tuple[str, ...]]) -> dict[str, Any]:
    n = sum(wholes)
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {**ratio_with_interval(parts, wholes, images), "n": n}


def _of_class(facts: Sequence[Facts], name: str) -> dict[str, int]:
    """Captions by what they say of one class; `hallucinated`: named and not there, `missed`: there and not named."""
    return {
        "there": sum(name in one.true for one in facts),
        "named": sum(name in one.named for one in facts),
        "hallucinated": sum(name in one.named and name not in one.true for one in facts),
        "missed": sum(name not in one.named and name in one.true for one in facts),
        "numbered": sum(name in one.numbered for one in facts),
        "right_number": sum(name in one.right_numbers for one in facts),
    }
