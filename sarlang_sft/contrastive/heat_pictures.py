"""Pictures of heat maps over their images, as PNG."""

import textwrap
from pathlib import Path

import matplotlib

from sarlang_sft.contrastive.semantic_localization import Localised
from sarlang_sft.imagery import to_bytes
from sarlang_sft.reporting.pictures import plain

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LARGEST = 1200  # pixels of a side that are drawn
LINE = 90  # letters of the query in one line
PANEL = 7.0  # inches
HAZE = 0.45  # opacity of the heat


def heat_picture(found: Localised, folder: Path) -> Path:
    """Write `query_<number>.png`: the image with its regions, the heat over it with its peaks, the query as title."""
    height, width = found.heat.shape
    rmi, rsu, ras, rda, peaks = found.metrics
    step = max(1, -(-max(height, width) // LARGEST))
    extent = (0, width, height, 0)  # the axes stay in pixels of the image
    panel = 7.0
    figure, axes = plt.subplots(
        1, 2, figsize=(2 * panel, panel * min(2.0, height / width) + 1.3), layout="constrained"
    )
    for axis in axes:
        axis.imshow(to_bytes(found.image[::step, ::step]), extent=extent)
        for region in found.query.regions:
            corners = [*region, region[0]]
            for colour, thick in (("black", 4.0), ("white", 2.0)):  # seen on any ground
                axis.plot([x for x, _ in corners], [y for _, y in corners], color=colour, linewidth=thick)
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
        axis.set_xlabel("pixels")
    heat = axes[1].imshow(
        found.heat[::step, ::step], cmap="turbo", vmin=0, vmax=1, alpha=HAZE, extent=extent, zorder=1.5
    )
    for number, (x, y) in enumerate(peaks, 1):
        axes[1].plot(x, y, "o", markersize=16, markerfacecolor="white", markeredgecolor="black", zorder=3)
        axes[1].text(x, y, str(number), ha="center", va="center", fontsize=10, zorder=4)
    axes[0].set_title("image and annotated regions", fontsize=11)
    axes[1].set_title("heat, with its peaks numbered", fontsize=11)
    figure.colorbar(heat, ax=axes[1], label="heat", shrink=0.8).solids.set_alpha(1)
    figures = f"Rmi {rmi:.3f}   Rsu {rsu:.3f}   Ras {ras:.3f} (lower is better)   Rda {rda:.3f}"
    query = "\n".join(textwrap.wrap(plain(found.query.caption), LINE))
    figure.suptitle(f"{query}\n{figures}", fontsize=13)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"query_{found.query.number:03}.png"
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path
