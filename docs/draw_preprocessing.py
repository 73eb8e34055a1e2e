"""Draw docs/preprocessing.png: two real crops without a filter, with boxcar and with refined Lee.

python docs/draw_preprocessing.py DIR     # holds s1s2_pairs/ and bigearthnet_s1/
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sarlang_sft.despeckle import FILTERS, count_looks, estimate_looks
from sarlang_sft.preprocessing import to_intensity
from sarlang_sft.radar_files import Area, RadarImage, open_bands

DOCS = Path(__file__).parent
SIDE = 120  # pixels
LAKE = "S1A_IW_GRDH_1SDV_20170925T043256_35VPK_69_24"
CROPS = (
    ("River in a town, 8-bit amplitude", "s1s2_pairs/sar/139.png", "amplitude", 235, 425),
    ("Lake in a forest, float dB", f"bigearthnet_s1/{LAKE}/{LAKE}_VV.tif", "db", 0, 0),
)
TITLES = {"none": "log and stretch alone", "boxcar": "boxcar 7 x 7", "refined_lee": "refined Lee 7 x 7 (default)"}


def main() -> None:
    root = Path(sys.argv[1])
    figure, axes = plt.subplots(len(CROPS), len(TITLES), figsize=(12, 8.3), layout="constrained")
    for row, (label, file, domain, top, left) in zip(axes, CROPS, strict=True):
        with open_bands(root, RadarImage(label, (file,)), ["auto"], None) as (band,):
            values, valid = band.read(Area(0, 0, *band.shape))
        intensity = to_intensity(values, domain)
        looks = estimate_looks(count_looks(intensity, valid))
        crop = np.s_[top : top + SIDE, left : left + SIDE]
        pictures = {name: 10 * np.log10(FILTERS[name](intensity, valid, looks)[crop]) for name in TITLES}
        low, high = np.percentile(pictures["refined_lee"], (1, 99))
        for place, (name, title) in zip(row, TITLES.items(), strict=True):
            place.imshow(pictures[name], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            if row[0] is axes[0, 0]:
                place.set_title(title, fontsize=15)
        row[0].set_ylabel(f"{label}\n{looks:.1f} looks, {high - low:.0f} dB from black to white", fontsize=13)
    figure.savefig(DOCS / "preprocessing.png", dpi=90)


if __name__ == "__main__":
    main()
