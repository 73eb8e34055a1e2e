"""Cut windows around the boxes of annotated images, as images and COCO boxes of their own: more of a small set.

    python benchmarks/cut_windows.py --annotations train.json --image_root images --out windows --windows 40 --side 224

Around every box so many windows are cut at random places where the box lies whole in them; other boxes that they cut
through are painted over with the median of the image (which empty windows never are: a model may see by that that
there is an object), those that they hold whole are kept. `--empty` adds windows of every image that hold nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sarlang_sft.imagery import read_image, to_bytes

TRIES = 30  # places that are looked at for an empty window


def cut(
    pixels: np.ndarray, boxes: list[dict[str, Any]], chosen: dict[str, Any], side: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A window that holds one box whole, and the boxes in it, `bbox` in its own pixels."""
    height, width = pixels.shape
    x0, y0, x1, y1 = _inside(chosen, width, height)
    left = int(rng.integers(max(0, int(np.ceil(x1)) - side), min(int(x0), width - side) + 1))
    top = int(rng.integers(max(0, int(np.ceil(y1)) - side), min(int(y0), height - side) + 1))
    window, held = pixels[top : top + side, left : left + side].copy(), []
    for box in boxes:
        x0, y0, x1, y1 = (value - (left, top)[axis % 2] for axis, value in enumerate(_inside(box, width, height)))
        if x0 >= 0 and y0 >= 0 and x1 <= side and y1 <= side:
            held.append({**box, "bbox": [x0, y0, x1 - x0, y1 - y0]})
        else:
            inside = [int(np.clip(value, 0, side)) for value in (np.floor(y0), np.ceil(y1), np.floor(x0), np.ceil(x1))]
            window[inside[0] : inside[1], inside[2] : inside[3]] = np.median(pixels)
    return window, held


def cut_empty(
    pixels: np.ndarray, boxes: list[dict[str, Any]], side: int, rng: np.random.Generator
) -> np.ndarray | None:
    """A window that no box reaches into; None if there is none at any of a few places."""
    height, width = pixels.shape
    for _ in range(TRIES):
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        inside = (_inside(box, width, height) for box in boxes)
        if all(x1 <= left or y1 <= top or x0 >= left + side or y0 >= top + side for x0, y0, x1, y1 in inside):
            return pixels[top : top + side, left : left + side]
    return None


def _inside(box: dict[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what of a box is in the image."""
    x, y, w, h = box["bbox"]
    return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances")
    parser.add_argument("--image_root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for images/ and instances.json")
    parser.add_argument("--windows", type=int, default=40, help="around every box")
    parser.add_argument("--empty", type=int, default=0, help="windows of every image that no box reaches into")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    coco = json.loads(options.annotations.read_text(encoding="utf-8"))
    rng = np.random.default_rng(options.seed)
    (options.out / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in tqdm(coco["images"], unit=" images"):
        boxes = [box for box in coco["annotations"] if box["image_id"] == image["id"]]
        pixels = read_image(options.image_root / image["file_name"])[..., 0]
        windows = [cut(pixels, boxes, chosen, options.side, rng) for chosen in boxes for _ in range(options.windows)]
        empty = (cut_empty(pixels, boxes, options.side, rng) for _ in range(options.empty))
        windows += [(window, []) for window in empty if window is not None]
        for window, held in windows:
            number = len(images)
            name = f"{Path(image['file_name']).stem}_{number:06d}.png"
            Image.fromarray(to_bytes(window)).save(options.out / "images" / name)
            images.append({"id": number, "file_name": name, "width": options.side, "height": options.side})
            annotations += [{**box, "id": len(annotations), "image_id": number} for box in held]
    content = {"images": images, "annotations": annotations, "categories": coco["categories"]}
    (options.out / "instances.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(f"{len(images):,} windows with {len(annotations):,} boxes: {options.out}")


if __name__ == "__main__":
    main()
