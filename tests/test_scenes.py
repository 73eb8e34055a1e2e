import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script

from sarlang_sft.language.places import region_of
from sarlang_sft.questions import box_questions, where_most
from sarlang_sft.records import Box, read_records
from sarlang_sft.sample import write_sample
from sarlang_sft.scenes import CLASSES, SURFACE_CODES, Scene, make_scene, render_optical, render_sar


def scenes(count: int = 60) -> list[Scene]:
    return [make_scene(np.random.default_rng(seed)) for seed in range(count)]


def flat_scene(surface: str) -> Scene:
    return Scene(np.full((200, 200), SURFACE_CODES[surface], np.uint8), np.zeros((200, 200)), "open water")


def to_intensity(picture: np.ndarray) -> np.ndarray:
    return 10 ** ((picture / 255 * 36 - 28) / 10)


def test_same_seed_same_bytes_and_other_seed_other_scenes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, images=6, seed=seed)
    files = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False) == (files, [], [])
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "c", ["truth.json"], shallow=False)[1] == ["truth.json"]


def test_every_box_holds_its_target_and_all_classes_occur() -> None:
    seen = set()
    for scene in scenes():
        assert scene.boxes
        for box in scene.boxes:
            x, y, w, h = map(int, box.points)
            assert x >= 0 and y >= 0 and x + w <= scene.size and y + h <= scene.size
            inside = scene.ground[y : y + h, x : x + w] == SURFACE_CODES[box.label]
            assert inside.mean() > 0.2, (box, inside.mean())
            seen.add(box.label)
    assert seen == set(CLASSES)


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_speckle_has_the_given_number_of_looks(looks: float) -> None:
    scene = flat_scene("crop")
    # Many renderings of one ground pixel differ by speckle and texture; the same seed makes the texture equal.
    smooth = to_intensity(render_sar(scene, np.random.default_rng(0), looks=1e6))
    intensity = to_intensity(render_sar(scene, np.random.default_rng(0), looks=looks)) / smooth
    unclipped = intensity[5:-5, 5:-5]
    measured = unclipped.mean() ** 2 / unclipped.var()
    assert measured == pytest.approx(looks, rel=0.12)


def test_water_is_dark_targets_are_bright_and_buildings_throw_their_shadow_away_from_the_radar() -> None:
    scene = flat_scene("crop")
    scene.ground[50:80, 50:80], scene.height[50:80, 50:80] = SURFACE_CODES["roof"], 6.0
    scene.ground[120:150, 50:80] = SURFACE_CODES["water"]
    scene.ground[120:130, 120:150] = SURFACE_CODES["ship"]
    picture = render_sar(scene, np.random.default_rng(0)).astype(float)
    field = picture[:, 160:].mean()
    assert picture[122:148, 52:78].mean() < field - 60  # water
    assert picture[121:129, 121:149].mean() > field + 40  # ship
    assert picture[52:78, 80:85].mean() < field - 60  # shadow on the far side
    assert picture[52:78, 48:51].mean() > field + 20  # layover and double bounce on the near side
    assert render_optical(scene, np.random.default_rng(0)).shape == (200, 200, 3)


def test_sample_has_all_applications_both_caption_styles_and_separate_test_scenes(sample: Path, data: Path) -> None:
    records = {split: list(read_records(data, split)) for split in ("train", "val", "test")}
    for split in ("train", "test"):
        dialogues = [dialogue for record in records[split] for dialogue in record.dialogues]
        assert {dialogue.task for dialogue in dialogues} == {
            "description", "identification", "classification", "counting", "referring", "positioning", "others",
        }  # fmt: skip
        styles = {(dialogue.task, dialogue.style) for dialogue in dialogues}
        assert {style for task, style in styles if task == "description"} == {"concise", "complex"}
        kinds = {"shape", "direction", "land_cover", "pattern", "reasoning"}
        assert {style for task, style in styles if task == "others"} <= kinds
        assert {style for task, style in styles if task not in ("description", "others")} == {None}
    images = [{record.images[0] for record in records[split]} for split in records]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]
    names = {
        "Caption_train",
        "Caption_test",
        "Caption_test1",
        "SARVQA1_train",
        "SARVQA2_train",
        "SARVQA1_test",
        "SARVQA2_test",
    }
    assert {path.stem for path in (sample / "Text").rglob("*.csv")} == names
    assert {path.stem for path in (sample / "Text").rglob("*.json")} == names


def test_answers_are_true_of_the_boxes() -> None:
    for seed, scene in enumerate(scenes(20)):
        counts = {label: sum(box.label == label for box in scene.boxes) for label in CLASSES}
        asked = box_questions(scene.boxes, scene.size, scene.size, np.random.default_rng(seed))
        yes = [turn for task, turn in asked if task == "identification" and turn.answer == "Yes."]
        no = [turn for task, turn in asked if task == "identification" and turn.answer == "No."]
        assert len(yes) == len(no) == sum(count > 0 for count in counts.values())
        for task, turn in asked:
            label = next((name for name in CLASSES if name in turn.question), None)
            if task == "identification":
                assert (turn.answer == "Yes.") == (counts[label] > 0)
            elif task == "counting":
                assert turn.answer == f"{counts[label]}."
            elif task == "referring":
                points = json.loads(turn.question[turn.question.index("[") :].rstrip("?"))
                assert Box(turn.answer.rstrip("."), points) in scene.boxes
            elif task == "classification":
                assert set(turn.answer.rstrip(".").split(", ")) == {name for name in CLASSES if counts[name]}
            elif task == "positioning":
                regions = [
                    region_of(box.points, scene.size, scene.size, 0) for box in scene.boxes if box.label == label
                ]
                assert 2 * regions.count(turn.answer.rstrip(".")) > len(regions)


def test_positions_without_a_majority_are_not_asked() -> None:
    corners = [Box("car", [0, 45, 10, 10]), Box("car", [90, 45, 10, 10])]
    assert where_most(corners, 100, 100) is None
    assert where_most([*corners, Box("car", [0, 50, 10, 10])], 100, 100) == "left"
    assert [region_of([x, y, 10, 10], 100, 100) for x, y in ((45, 0), (45, 45), (45, 90))] == [
        "top",
        "center",
        "bottom",
    ]


def test_make_sample_refuses_a_folder_that_is_no_sample(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    output = run_script("data_prep/make_sample.py", "--out", tmp_path, "--images", 4, code=2)
    assert (
        "exists and holds other things (no truth.json)" in output and (tmp_path / "precious.txt").read_text() == "keep"
    )
