r"""A large image with known answers for semantic localisation: test scenes of the demo, side by side.

    make demo-sarclip
    python docs/draw_localisation.py --data outputs/demo_sarclip/data --out outputs/localisation
    python eval/semantic_localization.py --model outputs/demo_sarclip/sarclip/sar --sides 192 384 --step 0.25 \
        --blur 101 --annotations outputs/localisation/annotations.json --images outputs/localisation \
        --out outputs/localisation/figures.json --heat_maps outputs/localisation/heat_maps

Sixteen scenes, each four times as wide and high, make one image; what is asked for is the caption of one of them, and
the right place is where that scene is. Annotations are laid out as those of AIR-SLT.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from sarlang_sft.contrastive.pairs import read_pairs
from sarlang_sft.imagery import load_picture

ACROSS, SIDE, QUERIES = 4, 384, 8  # scenes in a row, pixels of a scene, scenes that are asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder with captions")
    parser.add_argument("--out", type=Path, required=True, help="folder for scenes.png and annotations.json")
    options = parser.parse_args()
    pairs = read_pairs(options.data, "test", subsets=["caption_complex"])
    chosen = np.linspace(0, len(pairs.paths) - 1, ACROSS**2).astype(int)
    canvas = Image.new("L", (ACROSS * SIDE, ACROSS * SIDE))
    queries = []
    for place, image in enumerate(chosen):
        left, top = place % ACROSS * SIDE, place // ACROSS * SIDE
        scene = load_picture(pairs.paths[image], []).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
        canvas.paste(scene, (left, top))
        right, bottom = left + SIDE, top + SIDE
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        queries.append({"jpg_name": "scenes.png", "caption": pairs.captions_of(image)[0], "points": [corners]})
    options.out.mkdir(parents=True, exist_ok=True)
    canvas.save(options.out / "scenes.png")
    asked = [queries[row] for row in np.linspace(0, len(queries) - 1, QUERIES).astype(int)]
    (options.out / "annotations.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out / 'scenes.png'}: {len(chosen)} scenes, {len(asked)} queries")


if __name__ == "__main__":
    main()
