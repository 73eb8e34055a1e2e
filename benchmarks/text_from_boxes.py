"""Time and memory of building texts from boxes: sets of growing size, up to 100,000 images with 250,000 boxes.

    python benchmarks/text_from_boxes.py
    python benchmarks/text_from_boxes.py --out benchmarks/results/cpu_text_from_boxes.json

A generated COCO file of SARDet-100K's six classes, with its proportions of boxes to images; the images are hard links
to eight files of 512 x 512 pixels. Everything is built that build_from_boxes.py builds, and checked. Memory is as in
data_prep.py, the highest sum over the program's processes.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import setting

from data_prep import measure
from sarlang_sft.records import read_manifest
from sarlang_sft.scenes import CLASSES, FREQUENCIES

SIDE, ORIGINALS, BOXES_PER_IMAGE = 512, 8, 2.5


def write_set(folder: Path, images: int) -> int:
    """`instances.json` and `images/`; returns how many boxes there are.

    Every image has at least one box; those of an image are mostly of one class, as in detection sets of radar images.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(ORIGINALS):  # a file has at most 65,000 names on ext4
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / f"original_{number}.png")
    entries, annotations = [], []
    counts = 1 + rng.multinomial(round((BOXES_PER_IMAGE - 1) * images), np.full(images, 1 / images))
    for image, count in enumerate(counts.tolist()):
        name = f"{image:06d}.png"
        (folder / "images" / name).hardlink_to(folder / f"original_{image % ORIGINALS}.png")
        entries.append({"id": image, "file_name": name, "width": SIDE, "height": SIDE})
        first = rng.choice(len(CLASSES), p=FREQUENCIES)
        for _ in range(count):
            x, y = rng.uniform(0, SIDE - 80, 2).round(1)
            width, height = rng.uniform(8, 80, 2).round(1)
            category = first if rng.random() < 0.8 else rng.choice(len(CLASSES), p=FREQUENCIES)
            box = {"id": len(annotations), "image_id": image, "category_id": int(category), "iscrowd": 0}
            annotations.append({**box, "bbox": [float(x), float(y), float(width), float(height)]})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return len(annotations)


def build(images: int, folder: Path) -> dict[str, float]:
    """Time, memory and dialogues of one set."""
    boxes = write_set(folder, images)
    words = ["--annotations", folder / "instances.json", "--image_root", folder / "images", "--out", folder / "data"]
    figures = measure("build_from_boxes.py", words)
    manifest = read_manifest(folder / "data")
    if manifest["rejected"]:
        raise SystemExit(f"the checker disagrees: {manifest['rejected']}")
    return {"images": images, "boxes": boxes, "dialogues": manifest["accepted"], **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="images of each set")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    runs = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as scratch:
            runs.append(build(images, Path(scratch)))
    for run in runs:
        print(
            f"{run['images']:>8,} images {run['boxes']:>8,} boxes {run['dialogues']:>10,} dialogues "
            f"{run['seconds']:6.1f} s {run['peak_bytes'] / 1e9:5.2f} GB"
        )
    setting.write_result(
        options.out,
        {"hardware": setting.hardware().removesuffix(", float32"), "versions": setting.versions(), "runs": runs},
    )


if __name__ == "__main__":
    main()
