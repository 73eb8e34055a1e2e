"""A sample of simulated scenes in the layout of the SARLANG-1M release, with optical twins of every image."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.questions import box_questions, captions, scene_questions
from sarlang_sft.sarlang_texts import write_texts
from sarlang_sft.scenes import make_scene, render_optical, render_sar
from sarlang_sft.whole_output import Own, whole_folder

SAMPLE = Own("truth.json", r"truth\.json|SARimages|RGBimages|Text")
_CAPTION_FILES = {
    "train": {"concise": "train/Caption_train", "complex": "train/Caption_train"},
    "test": {"concise": "test/Caption_test1", "complex": "test/Caption_test"},
}


def write_sample(
    out: Path, images: int, seed: int, test_fraction: float = 0.2, size: int = 96, looks: float = 4
) -> None:
    """Write `SARimages/`, `RGBimages/`, `Text/Caption/`, `Text/VQA/` and `truth.json`; same seed, same bytes.

    Args:
        images: How many scenes; the last `test_fraction` of them are the test split.
        size: Side of the images in pixels.
        looks: Number of looks of the speckle.

    Raises:
        InputError: `out` exists and is no earlier sample, or a number makes no sense.
    """
    if not 0 < test_fraction < 1 or not images - max(1, round(images * test_fraction)) >= 1:
        raise InputError(
            f"--images {images} with --test_fraction {test_fraction}: leaves no scene to train or none to test"
        )
    if size < 64 or looks <= 0:
        raise InputError(f"--size {size} must be at least 64 pixels and --looks {looks} above 0")
    with whole_folder(out, SAMPLE) as building:
        _write(building, images, seed, images - max(1, round(images * test_fraction)), size, looks)


def _write(out: Path, images: int, seed: int, first_test: int, size: int, looks: float) -> None:
    for folder in ("SARimages", "RGBimages"):
        (out / folder).mkdir(parents=True)
    texts: dict[str, list[tuple[str, str | None, str]]] = {}
    truth = {}
    for index in tqdm(range(images), desc="scenes", unit=" images"):
        split = "train" if index < first_test else "test"
        name = f"SIM_{index:06d}.png"
        rng = np.random.default_rng([seed, index])
        scene = make_scene(rng, size)
        Image.fromarray(render_sar(scene, rng, looks)).save(out / "SARimages" / name)
        Image.fromarray(render_optical(scene, rng)).save(out / "RGBimages" / name)
        for _, turn in box_questions(scene.boxes, size, size, rng):
            texts.setdefault(f"VQA/{split}/SARVQA1_{split}", []).append((name, turn.question, turn.answer))
        for _, turn in scene_questions(scene, rng):
            texts.setdefault(f"VQA/{split}/SARVQA2_{split}", []).append((name, turn.question, turn.answer))
        for style, file in _CAPTION_FILES[split].items():
            rows = [(name, None, caption) for caption in captions(scene, style, rng)]
            texts.setdefault(f"Caption/{file}", []).extend(rows)
        truth[name] = {
            "background": scene.background,
            "road": scene.road,
            "boxes": [asdict(box) for box in scene.boxes],
        }
    for path, rows in texts.items():
        write_texts(out / "Text" / Path(path).parent, Path(path).name, rows)
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
