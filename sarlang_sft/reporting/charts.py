"""Line charts as numbers: the page draws them as SVG and repeats them as tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Point = tuple[float, float]
Span = tuple[float, float]
WIDTH, HEIGHT = 460, 250  # of a chart with its margins, in units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 38
MOST_POINTS = 240  # of a line; more are averaged
REFERENCE = -1  # the style of what is no run


@dataclass(frozen=True)
class Series:
    """A line: `style` is the number of its run, or `REFERENCE`; `spans` are low and high of every point, or none."""

    name: str
    style: int
    points: list[Point]
    spans: Sequence[Span] = ()
    dashed: bool = False


class Column(NamedTuple):
    """How many things lie from `low` to `high` of the horizontal axis; `share` (0..1) is the column's height."""

    low: float
    high: float
    count: int
    share: float


@dataclass(frozen=True)
class Chart:
    """A chart: `about` says in words what it shows; ranges of the axes, the lines, and columns behind them."""

    title: str
    about: str
    x_name: str
    y_name: str
    x_range: Span
    y_range: Span
    series: list[Series]
    percent: bool = False
    whole: bool = False
    columns: Sequence[Column] = ()

    def x(self, value: float) -> float:
        """Across, in units of the SVG."""
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Down, in units of the SVG."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(self, series: Series) -> str:
        """The line as SVG reads it."""
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in series.points)

    def said(self, value: float) -> str:
        """A value of the vertical axis as text."""
        return f"{100 * value:.0f} %" if self.percent else f"{value:.3g}"

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table of what is drawn: the values of all lines at every place."""
        places = sorted({x for series in self.series for x, _ in series.points})
        columns = [dict(series.points) for series in self.series]
        return [
            (f"{place:.4g}", [self.said(column[place]) if place in column else "" for column in columns])
            for place in places
        ]


def ticks(span: Span, about: int = 5, finest: float = 0.0) -> list[float]:
    """Round numbers from the low to the high end, about so many, at least `finest` apart."""
    low, high = span
    rough = max((high - low) / about, finest)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` points: neighbours are averaged."""
    group = -(-len(points) // MOST_POINTS)
    parts = [points[start : start + group] for start in range(0, len(points), max(group, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def reach(values: Sequence[float], room: float = 0.05) -> Span:
    """A range that holds the values with a little room; never empty."""
    low, high = min(values), max(values)
    spare = (high - low or abs(high) or 1.0) * room
    return low - spare, high + spare
