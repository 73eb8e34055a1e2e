"""The boxes of an image as the checker sees them: counts, sides, parts and relations, worked out by other means.

`places` and `facts` serve those who write texts; nothing of them is used here.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from sarlang_sft.boxes import corners
from sarlang_sft.language.things import Thing
from sarlang_sft.records import Box

ON_BORDER = 1e-9  # parts of a side; texts keep much further away


@dataclass(frozen=True)
class Picture:
    """An image with its boxes; made by [`look_at`].

    Attributes:
        things: The class of each box.
        numbers: Boxes of each class.
        unsure: Classes of which there may be objects without a box; None among them: of no known class.
    """

    width: int
    height: int
    boxes: Sequence[Box]
    things: Sequence[Thing]
    numbers: Mapping[Thing, Sequence[int]]
    unsure: Set[Thing | None]

    def numbers_of(self, thing: Thing) -> Sequence[int]:
        """Numbers of the boxes of a class."""
        return self.numbers.get(thing, ())

    def all_known(self) -> bool:
        """Whether every class that there may be has a box."""
        return all(thing in self.numbers for thing in self.unsure)

    def alone(self, number: int) -> bool:
        """Whether no box of another class shares half of what it and this one cover together."""
        x, y, w, h = self._rectangle(number)
        for other, thing in enumerate(self.things):
            if thing != self.things[number]:
                u, v, m, n = self._rectangle(other)
                shared = max(0.0, min(x + w, u + m) - max(x, u)) * max(0.0, min(y + h, v + n) - max(y, v))
                if 3 * shared >= w * h + m * n:  # a half of the union, twice of which is the sum less the shared part
                    return False
        return True

    def _rectangle(self, number: int) -> tuple[float, float, float, float]:
        xs, ys = zip(*corners(self.boxes[number].points), strict=True)
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)

    def _from_middle(self, number: int) -> tuple[float, float]:
        """Where the middle of a box lies from that of the image, in sixths of the image's sides: -3..3."""
        xs, ys = zip(*corners(self.boxes[number].points), strict=True)
        return 6 * (sum(xs) / 4 - self.width / 2) / self.width, 6 * (sum(ys) / 4 - self.height / 2) / self.height

    def side(self, number: int) -> str | None:
        """`center`, or the side that a box lies towards; None on a border."""
        x, y = self._from_middle(number)
        offsets = {"left": -x, "right": x, "top": -y, "bottom": y}
        furthest = max(offsets, key=offsets.__getitem__)
        second = sorted(offsets.values())[-2]
        if abs(offsets[furthest] - 1) <= ON_BORDER:
            return None
        if offsets[furthest] < 1:
            return "center"
        return furthest if offsets[furthest] - second > ON_BORDER else None

    def ninth(self, number: int) -> str | None:
        """The part of the image in which a box lies, as `top left`; None on a border."""
        x, y = self._from_middle(number)
        if any(abs(abs(offset) - 1) <= ON_BORDER for offset in (x, y)):
            return None
        across = "left" if x < -1 else "right" if x > 1 else ""
        down = "top" if y < -1 else "bottom" if y > 1 else ""
        return f"{down} {across}".strip() or "center"

    def area(self, number: int) -> tuple[float, float, float, float]:
        """`x y w h` of what of the image is in the upright rectangle around a box."""
        xs, ys = zip(*corners(self.boxes[number].points), strict=True)
        x, y = max(0.0, min(xs)), max(0.0, min(ys))
        return x, y, min(max(xs), self.width) - x, min(max(ys), self.height) - y

    def beyond(self, ones: Sequence[int], others: Sequence[int], relation: str) -> bool:
        """Whether each of the one boxes lies wholly above, below, left or right of each of the others."""
        axis = 1 if relation in ("above", "below") else 0
        first, second = (ones, others) if relation in ("above", "left") else (others, ones)
        ends = [max(point[axis] for point in corners(self.boxes[number].points)) for number in first]
        begins = [min(point[axis] for point in corners(self.boxes[number].points)) for number in second]
        return all(end <= begin for end in ends for begin in begins)


def look_at(
    labels: Mapping[str, Thing], boxes: Sequence[Box], width: int, height: int, unsure: Set[str] = frozenset()
) -> Picture:
    """An image's boxes, ready to be asked about.

    Args:
        labels: The class of every label.
        unsure: Labels of which there may be objects without a box; those that `labels` lacks are of no known class.
    """
    things = [labels[box.label] for box in boxes]
    numbers: dict[Thing, list[int]] = {}
    for number, thing in enumerate(things):
        numbers.setdefault(thing, []).append(number)
    return Picture(width, height, boxes, things, numbers, {labels.get(label) for label in unsure})
