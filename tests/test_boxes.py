"""Boxes in the words of every family: where the model sees them, and back to stored pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin

from sarlang_sft.backbones import BACKBONES, Backbone
from sarlang_sft.box_texts import frame_of, write_table
from sarlang_sft.boxes import FRACTIONS, PIXELS, QWEN2_VL, THOUSANDTHS, Frame, box_problem, write_boxes
from sarlang_sft.collate import IGNORED, DialogueCollator
from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import read_questions
from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import load_tuned
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.predict import Asking, predict_to_file
from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder

SIZES = ((96, 96), (140, 100), (48, 150), (512, 300), (257, 263))


def unit(backbone: Backbone, frame: Frame) -> np.ndarray:
    """Stored pixels behind one step of the convention, across and down."""
    convention = backbone.box_convention
    step = np.array(frame.size) / convention.units if convention.units else np.ones(2)
    return step * 10.0**-convention.digits / np.array(frame.scale)


def corners(points: list[float]) -> np.ndarray:
    if len(points) == 4:
        x, y, width, height = points
        points = [x, y, x + width, y + height]
    return np.array(points).reshape(-1, 2)


@pytest.fixture(params=list(BACKBONES))
def family(request: pytest.FixtureRequest, tinies: dict[str, Path]) -> tuple[Backbone, ProcessorMixin]:
    backbone = BACKBONES[request.param]
    return backbone, load_processor(str(tinies[request.param]), backbone)


@pytest.mark.parametrize("ops", [[], ["crop:90", "resize:128"]])
def test_written_and_read_back_a_box_is_the_same_to_the_conventions_step(
    ops: list[str], family: tuple[Backbone, ProcessorMixin]
) -> None:
    backbone, processor = family
    rng, checked = np.random.default_rng(0), 0
    for width, height in SIZES:
        frame = frame_of(processor, backbone, ops, width, height)
        (left, top), (right, bottom) = frame.outside(0, 0), frame.outside(*frame.size)
        low, high = np.maximum((left, top), 0), np.minimum((right, bottom), (width, height))
        for _ in range(40):
            first, second = np.sort(rng.uniform(low, high, (2, 2)), axis=0)
            for points in ([*first, *(second - first)], [*first, second[0], first[1], *second, first[0], second[1]]):
                text = backbone.box_convention.write(points, frame)
                [read] = backbone.box_convention.read(f"It is at {text}.", frame)
                assert len(read) == len(points)
                error = np.abs(corners(read) - corners(points))
                assert (error <= unit(backbone, frame) / 2 + 1e-6).all(), (text, error)
                assert backbone.box_convention.write(read, frame) == text
                spoken = processor.tokenizer.encode(f"{text}, {text}{text} and {text}.", add_special_tokens=False)
                spoken = processor.tokenizer.decode(spoken, skip_special_tokens=True)  # as answers are
                assert backbone.box_convention.read(spoken, frame) == [read] * 4
                checked += 1
    assert checked == 2 * 40 * len(SIZES)


@pytest.mark.parametrize("ops", [[], ["crop:60", "resize:120"]])
def test_the_frame_is_where_the_real_processor_puts_the_pixels(
    ops: list[str], family: tuple[Backbone, ProcessorMixin], tmp_path: Path
) -> None:
    """A bright box on black, through the operations and the processor: its edges in the pixel values."""
    backbone, processor = family
    for width, height in ((96, 96), (140, 100), (60, 90)):
        x, y, w, h = width * 0.4, height * 0.35, width * 0.25, height * 0.3
        x, y, w, h = (round(value) for value in (x, y, w, h))
        image = np.zeros((height, width), np.uint8)
        image[y : y + h, x : x + w] = 255
        Image.fromarray(image).save(tmp_path / "box.png")
        picture = load_picture(tmp_path / "box.png", ops)
        batch = processor.image_processor(images=[picture], return_tensors="pt")
        seen = seen_picture(processor, batch)
        frame = frame_of(processor, backbone, ops, width, height)
        seen = torch.nn.functional.interpolate(seen[None, None], [round(side) for side in frame.size[::-1]])[0, 0]
        bright = (seen > (seen.min() + seen.max()) / 2).nonzero()
        (top, left), (bottom, right) = bright.min(dim=0).values, bright.max(dim=0).values + 1
        step = max(frame.size) / min(batch["pixel_values"].shape[-1], 96) if "image_grid_thw" not in batch else 1.0
        expected = [*frame.inside(x, y), *frame.inside(x + w, y + h)]
        assert np.allclose([left, top, right, bottom], expected, atol=1.5 * step + 0.5), (width, height)


def seen_picture(processor: ProcessorMixin, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(H, W) one channel of the picture that the vision tower gets; of tiled families the overview."""
    if "image_grid_thw" not in batch:
        pixels = batch["pixel_values"]
        return pixels[0, 0, 0] if pixels.dim() == 5 else pixels[0, 0]
    _, rows, columns = batch["image_grid_thw"][0].tolist()
    images = processor.image_processor
    merge, patch = images.merge_size, images.patch_size
    shape = (rows // merge, columns // merge, merge, merge, 3, images.temporal_patch_size, patch, patch)
    patches = batch["pixel_values"].reshape(shape)[:, :, :, :, 0, 0]
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows * patch, columns * patch)


def test_every_convention_writes_as_its_family_does() -> None:
    frame = Frame.of(200, 100).resized(400, 300)
    box, rotated = [20.0, 10.0, 50.0, 30.0], [20.0, 10.0, 70.0, 10.0, 70.0, 40.0, 20.0, 40.0]
    assert PIXELS.write(box, frame) == "[40, 30, 140, 120]"
    assert THOUSANDTHS.write(box, frame) == "[100, 100, 350, 400]"
    assert FRACTIONS.write(box, frame) == "[0.10, 0.10, 0.35, 0.40]"
    assert QWEN2_VL.write(box, frame) == "<|box_start|>(100,100),(350,400)<|box_end|>"
    assert QWEN2_VL.write(rotated, frame) == "<|quad_start|>(100,100),(350,100),(350,400),(100,400)<|quad_end|>"
    assert QWEN2_VL.read("(100,100),(350,400) and (1,2),(3,4)", frame)[0] == box, "special tokens are not decoded"
    assert THOUSANDTHS.read("[1, 2, 3] [100, 100, 350, 400] 12 [x]", frame) == [box]
    assert PIXELS.read("[140, 120, 40, 30]", frame) == [box], "corners in any order"
    assert PIXELS.write([-50.0, -50.0, 100.0, 100.0], frame) == "[0, 0, 100, 150]", "cut at the edge"
    with pytest.raises(ValueError, match="outside the picture"):
        PIXELS.write([300.0, 10.0, 5.0, 5.0], frame)
    with pytest.raises(ValueError, match="no box of this number"):
        write_boxes("What is in <box:2>?", [box, box], PIXELS, frame)


@pytest.fixture
def grounded(tmp_path: Path) -> Path:
    """A data folder whose texts name boxes; one of them lies outside what LLaVA-1.5 keeps of the image."""
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    boxes = [Box("ship", [80.0, 20.0, 40.0, 30.0]), Box("car", [2.0, 10.0, 20.0, 20.0])]
    asked = [
        Turn("Where is the ship?", "<box:0>"),
        Turn("What is in <box:0>?", "ship."),
        Turn("Where is the car?", "<box:1>"),
        Turn("Is there a ship?", "Yes."),
        Turn("What is in <box:7>?", "ship."),
    ]
    dialogues = [Dialogue(f"d{number}", "boxes", "grounding", [turn]) for number, turn in enumerate(asked)]
    records = [Record(["a.png"], 200, 100, "made", split, None, None, boxes, dialogues) for split in ("train", "test")]
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path, {})
    return tmp_path / "data"


def test_texts_that_name_boxes_are_learned_in_the_familys_words(
    grounded: Path, family: tuple[Backbone, ProcessorMixin]
) -> None:
    backbone, processor = family
    table, failed = write_table(read_mixture([DataSource(str(grounded))], "train"), processor, backbone, [])
    cropped = backbone is BACKBONES["llava"]
    assert failed == {4: "no box of this number"} | ({2: "box outside the picture"} if cropped else {})
    frame = frame_of(processor, backbone, [], 200, 100)
    ship = backbone.box_convention.write([80.0, 20.0, 40.0, 30.0], frame)
    turns = table["turns"].to_pylist()
    assert turns[0][0]["answer"] == ship and turns[1][0]["question"] == f"What is in {ship}?"
    assert turns[3] == [{"question": "Is there a ship?", "answer": "Yes."}]
    row = table.slice(0, 1).to_pylist()[0]
    labels = DialogueCollator(processor, backbone, [])([row])["labels"][0]
    assert ship in processor.tokenizer.decode(labels[labels != IGNORED])
    with pytest.raises(InputError, match=r"image_ops shift: moves the picture under the boxes of 4 texts"):
        write_table(read_mixture([DataSource(str(grounded))], "train"), processor, backbone, ["shift:2"])


def test_answers_with_boxes_come_back_in_stored_pixels(
    grounded: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = load_tuned(str(tiny), None)
    frame = frame_of(tuned.processor, tuned.backbone, [], 200, 100)
    ship = tuned.backbone.box_convention.write([80.0, 20.0, 40.0, 30.0], frame)
    asked = []

    def answer(tuned: object, items: list, max_new_tokens: int) -> list[tuple[str, float]]:
        asked.extend(item.turns[-1]["question"] for item in items)
        return [(f"At {ship}.", -1.0) for _ in items]

    monkeypatch.setattr("sarlang_sft.predict.answer_together", answer)
    questions = read_questions(grounded, "test", [], [], None)
    written, unusable = predict_to_file(tuned, questions, grounded.parent, tmp_path / "p.jsonl", Asking(8, 4), Crew())
    assert (written, unusable) == (4, {"d4#0": "no box of this number"})
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert f"What is in {ship}?" in asked and rows["d1#0"]["question"] == "What is in <box:0>?"
    assert "boxes" not in rows["d1#0"] and "boxes" not in rows["d3#0"]
    [box] = rows["d0#0"]["boxes"]
    assert np.allclose(box, [80, 20, 40, 30], atol=1.0) and rows["d0#0"]["label"] == "<box:0>"


def test_stored_boxes_may_reach_a_pixel_beyond_their_image() -> None:
    assert [box_problem([-by, 2, 10, 10 + by], 40, 30) for by in (0.5, 1.0, 1.5)] == [None, None, "box_outside"]
    assert box_problem([31, 2, 10, 10], 40, 30) is None and box_problem([31.5, 2, 10, 10], 40, 30) == "box_outside"
    for unusable in ([5, 5, -2, -2], [5, 5, 0, 3], [40, 5, 3, 3], [1, 2, 3], [1, 2, float("nan"), 3], None):
        assert box_problem(unusable, 40, 30) == "unusable_box"
    assert box_problem([5, 5, 9, 5, 9, 9, 5, 9], 40, 30) is None
    assert box_problem([5, 5, 9, 9, 13, 13, 5, 5], 40, 30) == "unusable_box"
