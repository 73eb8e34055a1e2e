"""The picture of an ensemble's frontier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sarlang_sft.contrastive.ensemble_points import ALPHA, PREDICTIONS, SOUP, Point, Sets
from sarlang_sft.contrastive.ensemble_sets import KINDS
from sarlang_sft.contrastive.ensembles import GREEDY, UNIFORM, WEIGHTED

MARKERS = {UNIFORM: "s", WEIGHTED: "D", GREEDY: "^", PREDICTIONS: "X"}
COLOURS = {ALPHA: "tab:blue", SOUP: "tab:orange", PREDICTIONS: "tab:green"}
NEAR = 0.03  # of the axes: points nearer than this share one label


def draw_frontier(sets: Sets, points: Sequence[Point], chosen: Point, path: Path) -> None:
    """Write the picture: target against mean out-of-domain figure in per cent, with 95 % intervals."""
    canvas = Figure(figsize=(8.4, 6.4), dpi=120, layout="constrained")
    axes = canvas.add_subplot()
    places = np.array([[100 * point.target["value"], 100 * point.out_of_domain["value"]] for point in points])
    for point, place in zip(points, places, strict=True):
        bars = [
            [[100 * abs(one["value"] - one[end])] for end in ("low", "high")]
            for one in (point.target, point.out_of_domain)
        ]
        axes.errorbar(*place, xerr=bars[0], yerr=bars[1], color=COLOURS[point.kind], alpha=0.22, linewidth=1, zorder=1)
    alphas = [row for row, point in enumerate(points) if point.kind == ALPHA]
    if alphas:
        axes.plot(*places[alphas].T, color=COLOURS[ALPHA], linewidth=1.4, zorder=2)
        axes.plot(*places[alphas].T, "o", color=COLOURS[ALPHA], markersize=6, zorder=3, label="between them")
        for row, filling, what in ((alphas[0], "white", "start"), (alphas[-1], "black", "end")):
            label = f"{what}: {points[row].title}"
            axes.plot(*places[row], "o", color="black", markerfacecolor=filling, markersize=10, zorder=4, label=label)
    for point, place in zip(points, places, strict=True):
        if point.kind != ALPHA:
            colour = COLOURS[point.kind]
            axes.plot(*place, MARKERS[point.name], color=colour, markersize=9, zorder=5, label=point.title)
    ring = {"markerfacecolor": "none", "color": "tab:red", "markersize": 18, "markeredgewidth": 2}
    axes.plot(*places[points.index(chosen)], "o", **ring, zorder=6, label=f"chosen: {chosen.title}")
    axes.set_xlabel(f"target: {sets.target.name}, {KINDS[sets.target.kind].says} (%)")
    if len(sets.out_of_domain) == 1:
        shown = f"{sets.out_of_domain[0].name}, {KINDS[sets.out_of_domain[0].kind].says}"
    else:
        shown = f"mean of {', '.join(one.name for one in sets.out_of_domain)}"
    axes.set_ylabel(f"out of domain: {shown} (%)")
    axes.margins(0.08)
    axes.grid(alpha=0.25)
    canvas.draw_without_rendering()
    label_points(axes, [points[row].name for row in alphas], places[alphas])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False, fontsize=9)
    canvas.savefig(path, format="png")


def label_points(axes: Axes, names: Sequence[str], places: np.ndarray) -> None:
    """Write names beside points; neighbours that lie on each other share a label."""
    groups: list[list[int]] = []
    shown = axes.transAxes.inverted().transform(axes.transData.transform(places)) if len(places) else places
    for row in range(len(names)):
        near = [group for group in groups if np.abs(shown[group[0]] - shown[row]).max() < NEAR]
        if near:
            near[0].append(row)
        else:
            groups.append([row])
    for group in groups:
        text = ", ".join(names[row] for row in group)
        axes.annotate(
            text, places[group[0]], (8, 7), textcoords="offset points", fontsize=9, zorder=7,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip
