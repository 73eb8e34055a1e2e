"""Time and memory of converting and validating a generated release of SARLANG-1M's full size.

    python benchmarks/data_prep.py                                   # 1 %, 10 % and all of it
    python benchmarks/data_prep.py --out benchmarks/results/cpu_data_prep.json

The generated texts come as CSV and as JSON and have the published number of rows of every kind, so that the converter
runs with --strict; the images are hard links to eight files of 512 x 512 pixels, which validate.py therefore finds
again and again. Memory is the highest sum over a program's processes of what is theirs alone and their part of what
they share (PSS), looked at every 50 ms.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.sarlang_texts import write_texts

DATA_PREP = Path(__file__).parent.parent / "data_prep"

# Folder, name and number of the images of each source, in train and in test.
IMAGES = [
    ("SARDet-100K/{split}", "{:07d}.jpg", 94_493, 10_492),
    ("SARimages", "SN6_Rotterdam_{}.png", 2_318, 993),
    ("SARimages", "GF2_NewYork_{}.png", 3_655, 1_567),
    ("SARimages", "France_Alpes-Maritimes_Nice_{}.png", 3_368, 1_445),
]
REFERRING = "What is the object present in the area [{}.0, {}.0, {}.0, {}.0]?"
# Question, answer, rows in SARVQA1, rows in SARVQA2.
QUESTIONS = [
    ("Is there a ship in the image?", "Yes.", 444_620, 40_000),
    ("What categories are visible?", "ship, harbor.", 112_525, 20_000),
    ("How many harbors are located in the image?", "2.", 117_382, 0),
    (REFERRING, "aircraft.", 221_450, 0),
    ("Where are most harbors positioned within the image?", "bottom.", 99_622, 6_549),
    ("What shape are the swimming pools?", "Rectangular.", 0, 2_391),
    ("What direction is the main road?", "Diagonal.", 0, 1_103),
    ("What is the predominant land cover?", "Urban.", 0, 80),
    ("What pattern do the buildings form?", "Grid.", 0, 857),
    ("What is the area most likely used for?", "Shipping.", 0, 14_048),
]
CAPTIONS = {"concise": "A port with ships at two piers.", "complex": "The image shows a port. Ships lie at two piers."}
TESTED = {"vqa1": 113_255, "vqa2": 12_000}


def write_images(folder: Path, scale: float) -> dict[str, dict[str, list[str]]]:
    """Hard links to eight pictures; their names by split, those of SARDet-100K as `vqa1`, the others as `vqa2`."""
    rng = np.random.default_rng(0)
    originals: dict[str, list[Path]] = {}
    for suffix in (".jpg", ".png"):
        for number in range(4):  # a file has at most 65,000 names on ext4
            path = folder / f"original_{number}{suffix}"
            Image.fromarray(rng.integers(0, 256, (512, 512), np.uint8)).save(path)
            originals.setdefault(suffix, []).append(path)
    names: dict[str, dict[str, list[str]]] = {split: {"vqa1": [], "vqa2": []} for split in ("train", "test")}
    counter = 0
    for place, name, *counts in IMAGES:
        for split, count in zip(names, counts, strict=True):
            home = folder / place.format(split={"train": "train", "test": "val"}[split])
            home.mkdir(parents=True, exist_ok=True)
            for _ in range(round(count * scale)):
                counter += 1
                path = home / name.format(counter)
                path.hardlink_to(originals[path.suffix][counter % 4])
                names[split]["vqa1" if place.startswith("SARDet") else "vqa2"].append(path.name)
    for path in folder.glob("original_*"):
        path.unlink()
    return names


def questions(subset: str, names: list[str], split: str, scale: float) -> list[tuple[str, str, str]]:
    """Rows of a subset's file in random order, spread evenly over the images."""
    rng = np.random.default_rng(1)
    counts = [round(one[2 if subset == "vqa1" else 3] * scale) for one in QUESTIONS]
    kinds = rng.permutation(np.repeat(np.arange(len(QUESTIONS)), counts))
    tested = round(TESTED[subset] * scale)
    kinds = kinds[:tested] if split == "test" else kinds[tested:]
    boxes = iter(rng.integers(0, 512, (len(kinds), 4)).tolist())
    return [
        (name, QUESTIONS[kind][0].format(*next(boxes)), QUESTIONS[kind][1])
        for name, kind in zip(cycle(names), kinds.tolist(), strict=False)
    ]


def captions(names: list[str], counts: dict[str, int]) -> Iterator[tuple[str, None, str]]:
    """Rows of a caption file."""
    every = cycle(names)
    for style, count in counts.items():
        yield from ((name, None, CAPTIONS[style]) for name in islice(every, count))


def write_release(folder: Path, scale: float) -> int:
    """A release of `scale` times the published size; returns how many rows it has."""
    names = write_images(folder, scale)
    counts = {"train": {"concise": 17_487, "complex": 14_481}, "test": {"concise": 7_492, "complex": 6_190}}
    scaled = {split: {style: round(n * scale) for style, n in of.items()} for split, of in counts.items()}
    files = {("Caption/train", "Caption_train"): list(captions(names["train"]["vqa2"], scaled["train"]))}
    for style, stem in (("complex", "Caption_test"), ("concise", "Caption_test1")):
        rows = list(captions(names["test"]["vqa2"], {style: scaled["test"][style]}))
        files["Caption/test", stem] = rows
    for split in ("train", "test"):
        for subset in ("vqa1", "vqa2"):
            rows = questions(subset, names[split][subset], split, scale)
            files[f"VQA/{split}", f"SAR{subset.upper()}_{split}"] = rows
    for (place, stem), rows in files.items():
        write_texts(folder / "Text" / place, stem, rows)
    return sum(map(len, files.values()))


def memory_of(process: psutil.Process) -> int:
    """Bytes that a process and its children take now."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def measure(script: str, words: list[object], codes: tuple[int, ...] = (0,)) -> dict[str, float]:
    """Seconds and bytes of a program in a process of its own; `codes` are the exit codes it may end with."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen([sys.executable, DATA_PREP / script, *map(str, words)], stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, memory_of(process))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        log.seek(0)
        output = log.read().decode()
    if process.returncode not in codes:
        raise SystemExit(output[-4000:])
    print("\n".join(line for line in output.splitlines() if not re.search(r"it/s|rows/s|images/s", line)))
    return {"seconds": seconds, "peak_bytes": peak}


def convert_and_validate(scale: float, folder: Path) -> dict[str, object]:
    """Both programs on a release of this scale."""
    rows = write_release(folder / "release", scale)
    words = ["--root", folder / "release", "--out", folder / "data", *["--strict"] * (scale == 1)]
    convert = measure("convert_sarlang.py", words)
    validate = measure("validate.py", ["--data", folder / "data"], (0, 1))
    return {"scale": scale, "rows": rows, "convert": convert, "validate": validate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.01, 0.1, 1.0], help="parts of the full size")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    runs = []
    for scale in options.scales:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "release").mkdir()
            runs.append(convert_and_validate(scale, Path(scratch)))
    for run in runs:
        for program in ("convert", "validate"):
            seconds, memory = run[program].values()
            print(f"{run['rows']:>10,} rows {program:8} {seconds:7.1f} s {memory / 1e9:6.2f} GB")
    setting.write_result(
        options.out,
        {"hardware": setting.hardware().removesuffix(", float32"), "versions": setting.versions(), "runs": runs},
    )


if __name__ == "__main__":
    main()
