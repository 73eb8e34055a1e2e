"""The picture of a sweep: parallel coordinates, a line per trial, coloured by its score."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import MaxNLocator

from sarlang_sft.sweep_files import LOG_SCALES, Sweep
from sarlang_sft.trials import Trial

COLOURS = colormaps["viridis"]
UNSCORED = "0.7"  # grey
STEPS_OF_TEN = (1, 2, 5)


class Scale:
    """Where the values of one axis lie, between 0 and 1.

    Args:
        values: All that are shown.
        listed: They are choices, which lie equally far apart.
        log: Equal ratios lie equally far apart.
    """

    def __init__(self, name: str, values: Sequence[Any], listed: bool, log: bool) -> None:
        self.name, self.listed, self.log = name, listed, log and min(values) > 0
        if listed:
            self.choices = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        numbers = [self._number(value) for value in values]
        spare = 0.06 * (max(numbers) - min(numbers)) or 0.5
        self.low, self.high = min(numbers) - spare, max(numbers) + spare

    def _number(self, value: Any) -> float:
        return self.choices.index(value) if self.listed else float(np.log10(value)) if self.log else float(value)

    def place(self, value: Any) -> float:
        """Between 0 and 1."""
        return (self._number(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[Any]:
        """Values to write beside the axis."""
        if self.listed:
            return self.choices
        ticks = MaxNLocator(5).tick_values(self.low, self.high).tolist()
        if self.log:
            powers = range(int(np.floor(self.low)), int(np.ceil(self.high)) + 1)
            ticks = [step * 10.0**power for power in powers for step in STEPS_OF_TEN]
        return [tick for tick in ticks if 0 <= self.place(tick) <= 1]


def draw(sweep: Sweep, ranked: Sequence[Trial], file: BinaryIO) -> None:
    """Write the PNG: an axis per searched parameter and one for the metric, logarithmic where the search is.

    Args:
        ranked: Trials, the best first, at least one of them with a score; those without one are grey.
    """
    scores = [trial.best(sweep.metric, sweep.maximise) for trial in ranked]
    known = [score for score in scores if score is not None]
    scales = [
        Scale(one.name, [trial.params[one.name] for trial in ranked], "values" in one.config, one.type in LOG_SCALES)
        for one in sweep.varied()
    ]
    last = Scale(sweep.metric, known, False, False)
    colour = Normalize(min(known), max(known))
    figure = Figure(figsize=(max(6.0, 1.9 * (len(scales) + 1)), 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for trial, score in reversed(list(zip(ranked, scores, strict=True))):  # the best lies on top
        places = [scale.place(trial.params[scale.name]) for scale in scales]
        places += [] if score is None else [last.place(score)]
        best = trial is ranked[0]
        style = {"color": UNSCORED, "linestyle": "--"} if score is None else {"color": COLOURS(colour(score))}
        axes.add_patch(PathPatch(curve(places), fill=False, linewidth=3.5 if best else 1.6, capstyle="round", **style))
        axes.plot(range(len(places)), places, "o", color=style["color"], markersize=6 if best else 4, clip_on=False)
    for place, scale in enumerate([*scales, last]):
        draw_axis(axes, place, scale)
    axes.set(xlim=(-0.35, len(scales) + 0.45), ylim=(-0.02, 1.02), yticks=[])
    axes.set_xticks(range(len(scales) + 1), [*(scale.name for scale in scales), last.name])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0, labelsize=10)
    axes.spines[:].set_visible(False)
    figure.colorbar(ScalarMappable(colour, COLOURS), ax=axes, label=sweep.metric, pad=0.01, aspect=30)
    better = "higher" if sweep.maximise else "lower"
    figure.suptitle(f"{len(ranked)} trials; {better} is better, the best is drawn thick", fontsize=10, color="0.35")
    figure.savefig(file, format="png")


def draw_axis(axes: Axes, place: float, scale: Scale) -> None:
    """A vertical line with its values."""
    axes.axvline(place, ymin=0.02, ymax=0.98, color="0.25", linewidth=1, zorder=0)
    for tick in scale.ticks():
        text = f"{tick:g}" if isinstance(tick, float) else str(tick)
        axes.plot([place - 0.015, place], [scale.place(tick)] * 2, color="0.25", linewidth=1)
        axes.annotate(
            text, (place, scale.place(tick)), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}, zorder=4,
        )  # fmt: skip


def curve(places: Sequence[float]) -> Curve:
    """A line through the places on neighbouring axes, level where it crosses them."""
    points, codes = [(0.0, places[0])], [Curve.MOVETO]
    for right, (here, there) in enumerate(pairwise(places), start=1):
        points += [(right - 0.5, here), (right - 0.5, there), (float(right), there)]
        codes += [Curve.CURVE4] * 3
    return Curve(points, codes)
