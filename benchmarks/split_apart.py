"""Split annotated images so that no object's picture is on both sides: COCO boxes to train.json and test.json.

    python benchmarks/split_apart.py --annotations instances.json --image_root images --out split --test_fraction 0.25
    python data_prep/build_from_boxes.py --annotations train=split/train.json test=split/test.json \\
        --image_root images --out data

Scenes that were made by pasting chips may show one chip several times: a model that remembers it from train is right
in test without having learned its class. Two boxes count as one picture where the logarithms of their pixels correlate
by 0.8 or more at any shift of a few pixels (speckle of different pictures does not). Images that share a picture,
directly or through others, stay together; such groups are dealt out in random order while they fit.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from sarlang_sft.imagery import read_image

INNER, OUTER, GRID = 48, 96, 128  # pixels: of a box compared, of a box searched, of the transform
ALIKE = 0.8


def around(pixels: np.ndarray, box: list[float], side: int) -> np.ndarray:
    """The square of this side around the centre of a box."""
    padded = np.pad(pixels, OUTER, mode="edge")
    left, top = (int(box[axis] + box[axis + 2] / 2) + OUTER - side // 2 for axis in (0, 1))
    return padded[top : top + side, left : left + side]


def correlations(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """(N, N): how well the first squares are found again in the second ones, at the best shift, -1..1."""
    shifts, pixels = OUTER - INNER + 1, INNER * INNER
    searched, squared = (np.fft.rfft2(values, (GRID, GRID)) for values in (outer, outer**2))

    def slide(of: np.ndarray, over: np.ndarray) -> np.ndarray:
        """The mean over `of` times what lies under it, at every shift."""
        found = np.fft.irfft2(over * np.conj(np.fft.rfft2(of, (GRID, GRID))), (GRID, GRID))
        return found[:, :shifts, :shifts] / pixels

    flat = np.ones((INNER, INNER))
    spread = np.sqrt(np.maximum(slide(flat, squared) - slide(flat, searched) ** 2, 1e-6))
    standard = [(square - square.mean()) / (square.std() + 1e-6) for square in inner]
    return np.stack([(slide(square, searched) / spread).max(axis=(1, 2)) for square in standard])


def group(count: int, pairs: np.ndarray) -> list[list[int]]:
    """Numbers 0..count-1 that pairs connect."""
    first = list(range(count))
    for one, other in pairs.tolist():
        kept, gone = first[one], first[other]
        first = [kept if number == gone else number for number in first]
    return [[number for number in range(count) if first[number] == start] for start in sorted({*first})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances")
    parser.add_argument("--image_root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for train.json and test.json")
    parser.add_argument("--test_fraction", type=float, default=0.25, help="of the images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    coco = json.loads(options.annotations.read_text(encoding="utf-8"))
    numbers = {image["id"]: number for number, image in enumerate(coco["images"])}
    owner = np.array([numbers[box["image_id"]] for box in coco["annotations"]])
    squares: dict[int, list[np.ndarray]] = {INNER: [], OUTER: []}
    logs = [np.log1p(read_image(options.image_root / image["file_name"])[..., 0]) for image in coco["images"]]
    for box, number in zip(coco["annotations"], owner, strict=True):
        for side, kept in squares.items():
            kept.append(around(logs[number], box["bbox"], side))
    alike = correlations(np.stack(squares[INNER]), np.stack(squares[OUTER])) >= ALIKE
    pictures = group(len(owner), np.argwhere(alike))
    groups = group(len(numbers), owner[np.argwhere(alike)])
    room = round(options.test_fraction * len(numbers))
    test: set[int] = set()
    for place in np.random.default_rng(options.seed).permutation(len(groups)):
        if len(test) + len(groups[place]) <= room:
            test |= {*groups[place]}
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(owner)} boxes show {len(pictures)} pictures; {len(numbers)} images are {len(groups)} groups")
    for name in ("train", "test"):
        ids = {image for image, number in numbers.items() if (number in test) == (name == "test")}
        images = [image for image in coco["images"] if image["id"] in ids]
        boxes = [box for box in coco["annotations"] if box["image_id"] in ids]
        part = {**coco, "images": images, "annotations": boxes}
        (options.out / f"{name}.json").write_text(json.dumps(part) + "\n", encoding="utf-8")
        print(f"{name}: {len(images)} images, {len(boxes)} boxes")


if __name__ == "__main__":
    main()
