"""Annotations of detection and segmentation sets: what is read, what is cleaned, and what every bad input costs."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from annotation_files import (
    SIZE,
    boxes_of,
    coco_scene,
    dota_scene,
    make_images,
    read,
    reasons,
    voc_file,
    voc_object,
    voc_scene,
    write,
    write_coco,
    yolo_scene,
)
from PIL import Image

from sarlang_sft.annotations.cleaning import label_images
from sarlang_sft.annotations.reading import read_annotations
from sarlang_sft.errors import InputError
from sarlang_sft.records import Box, file_hash

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SHIP = {"id": 1, "name": "ship"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """`a.png` to `d.png` of `SIZE`."""
    return make_images(tmp_path / "images", "a.png", "b.png", "c.png", "d.png")


def coco_image(number: int, name: str, **more: object) -> dict:
    return {"id": number, "file_name": name, **more}


def coco_box(image: object, points: object, category: object = 1, **more: object) -> dict:
    return {"image_id": image, "category_id": category, "bbox": points, **more}


# COCO


def test_coco_boxes_and_classes_come_as_they_are(tmp_path: Path, images: Path) -> None:
    listed = [coco_image(1, "a.png", width=100, height=80), coco_image("two", "deep/b.png"), coco_image(3, "c.png")]
    boxes = [
        coco_box("two", [1.5, 2, 30, 40], 9),
        coco_box(1, [0, 0, 100, 80]),
        coco_box(1, [50, 10, 60, 20, 50, 30, 40, 20], segmentation=[[1, 2, 3]]),
    ]
    categories = [{"id": 9, "name": " oil   tank "}, SHIP, {"id": 5, "name": "舰船"}]
    path = write_coco(tmp_path / "instances_val.json", listed, boxes, categories)
    labelled, problems, annotations = read(path, images=images)
    assert annotations.format == "coco" and annotations.classes == ["oil tank", "ship", "舰船"]
    assert annotations.inputs == {"instances_val.json": file_hash(path)} and not annotations.notes
    assert [boxes_of(image) for image in labelled] == [
        [("ship", [0, 0, 100, 80]), ("ship", [50, 10, 60, 20, 50, 30, 40, 20])],
        [("oil tank", [1.5, 2, 30, 40])],
        [],
    ]
    assert [image.image for image in labelled] == ["a.png", "b.png", "c.png"]
    assert {(image.split, image.width, image.height) for image in labelled} == {("val", 100, 80)}
    assert not problems and not any(image.unsure for image in labelled)
    assert [box.row for image in annotations.images for box in image.boxes] == [2, 3, 1]


def test_every_bad_coco_entry_costs_itself_and_is_counted(tmp_path: Path, images: Path) -> None:
    listed = [coco_image(1, "a.png"), 17, {"id": 2}, {"file_name": "b.png"}, coco_image(3, "c.png", width=7, height=7)]
    bad = [None, [], "1 2 3 4", [1, 2, 3], ["1", 2, 3, 4], [1, 2, 3, True], [5, 5, 9, 9, 0.3], [math.nan, 1, 2, 2]]
    boxes = [coco_box(1, points) for points in [*bad, [10, 10, 0, 5], [10, 10, 10**400, 5], [1, 1, 9, 9]]]
    boxes += ["no object", {}, coco_box(99, [1, 1, 9, 9]), coco_box([1], [1, 1, 9, 9])]
    boxes += [coco_box(1, [1, 1, 9, 9], category) for category in (None, 77, [1], {})]
    boxes += [coco_box(2, [1, 1, 9, 9]), coco_box(3, [1, 1, 9, 9])]
    path = write_coco(tmp_path / "a.json", listed, boxes, [SHIP, "no object", {"id": 4}, {"name": "car"}])
    (labelled,), problems, annotations = read(path, images=images)
    assert boxes_of(labelled) == [("ship", [1, 1, 9, 9])] and labelled.unsure == {"", "ship"}
    assert reasons(problems) == {
        "entry is no object": 2,
        "image without a file name": 1,
        "image without an id": 1,
        "size differs from the annotations": 1,
        "of an image that cannot be used": 2,
        "image id of no image": 3,
        "unknown category": 4,
        "no box": 3,
        "box not of numbers": 2,
        "box of other than 4 or 8 numbers": 2,
        "box not finite": 2,
        "box without area": 1,
    }
    assert len(annotations.notes) == 3 and annotations.classes == ["ship"]
    assert next(problem for problem in problems if problem.reason == "box without area") == (
        "a.json", 9, "a.png", "box", "box without area", False
    )  # fmt: skip


def test_ids_and_names_that_are_used_twice_are_told(tmp_path: Path, images: Path) -> None:
    listed = [coco_image(1, "a.png"), coco_image(1, "a.png"), coco_image(2, "b.png"), coco_image(2, "c.png")]
    listed += [coco_image(5, "d.png"), coco_image(6, "./d.png")]
    boxes = [coco_box(number, [number, 1, 9, 9]) for number in (1, 2, 5, 6)]
    boxes += [coco_box(6, [5, 1, 9, 9]), coco_box(1, [30, 30, 5, 5], 2), coco_box(1, [40, 40, 5, 5], 3)]
    categories = [SHIP, {"id": 2, "name": "ship"}, {"id": 3, "name": "car"}, {"id": 3, "name": "tank"}]
    path = write_coco(tmp_path / "a.json", listed, boxes, categories)
    (first, last), problems, annotations = read(path, images=images)
    assert boxes_of(first) == [("ship", [1, 1, 9, 9]), ("ship", [30, 30, 5, 5])] and first.unsure == {""}
    assert boxes_of(last) == [("ship", [5, 1, 9, 9]), ("ship", [6, 1, 9, 9])] and not last.unsure
    assert reasons(problems) == {
        "image listed twice under one id": 1,
        "image id of several images": 2,
        "of an image that cannot be used": 1,
        "annotated in several places, which were merged": 1,
        "annotated twice": 1,
        "unknown category": 1,
    }
    assert [problem.used for problem in problems if "twice under" in problem.reason or "merged" in problem.reason] == [
        True, True
    ]  # fmt: skip
    assert annotations.classes == ["ship"] and len(annotations.notes) == 2


def test_crowds_and_ignored_boxes_are_doubtful(tmp_path: Path, images: Path) -> None:
    boxes = [coco_box(1, [1, 1, 9, 9], iscrowd=1), coco_box(1, [2, 2, 9, 9], ignore=True)]
    boxes += [coco_box(1, [3, 3, 9, 9], iscrowd=0, ignore=None)]
    path = write_coco(tmp_path / "a.json", [coco_image(1, "a.png")], boxes, [SHIP])
    (labelled,), problems, _ = read(path, images=images)
    assert boxes_of(labelled) == [("ship", [3, 3, 9, 9])] and labelled.unsure == {"ship"}
    assert reasons(problems) == {"marked as difficult": 2}
    (labelled,), problems, _ = read(path, images=images, keep_doubtful=True)
    assert len(labelled.boxes) == 3 and not problems and not labelled.unsure


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "17", '{"images": [], "annotations": []}', '{"images": {}, "annotations": [], "categories": []}',
     "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1") + "\x00", "1" * 5000],
)  # fmt: skip
def test_a_file_that_is_no_coco_is_refused_with_a_remedy(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(InputError, match=r"a\.json.*; (give|write or fetch)"):
        read_annotations([str(path)], "coco")


# Images


def test_images_are_found_by_path_stem_and_folder_but_never_outside(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", "train/1.png", "val/1.png", "train/2.png", "3.png", "x/4.png", "y/4.png")
    make_images(tmp_path, "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    names = ["1.jpg", str(root / "train/2.png"), "C:\\data\\3.tif", "4.png", "../outside.png", "link.png", "x/4.png"]
    names += ["/elsewhere/train/1.png", "", "no\0name", "\udcff.png"]
    listed = [coco_image(number, name) for number, name in enumerate(names)]
    boxes = [coco_box(number, [1, 1, 9, 9]) for number in range(len(names))]
    write_coco(tmp_path / "train.json", listed, boxes, [SHIP])
    labelled, problems, _ = read(tmp_path / "train.json", images=root)
    assert [image.image for image in labelled] == ["train/1.png", "train/2.png", "3.png", "x/4.png"]
    assert reasons(problems) == {
        "several images of this name": 1,
        "path leaves the image root": 2,
        "image without a file name": 1,
        "image not found": 2,
        "of an image that cannot be used": 6,
        "annotated in several places, which were merged": 1,
        "annotated twice": 1,
    }


def test_the_same_image_name_in_two_splits_means_two_images(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", "train/1.png", "val/1.png", "train/2.png")
    boxes = [coco_box(1, [1, 1, 9, 9])]
    for name in ("train.json", "val.json"):
        write_coco(tmp_path / "sets" / name, [coco_image(1, "1.png"), coco_image(2, "2.png")], boxes, [SHIP])
    labelled, problems, annotations = read(tmp_path / "sets", images=root)
    assert [(image.split, image.image) for image in labelled] == [
        ("train", "train/1.png"), ("train", "train/2.png"), ("val", "val/1.png")
    ]  # fmt: skip
    assert reasons(problems) == {"image not found": 1} and list(annotations.inputs) == ["."]
    sets = tmp_path / "sets"
    labelled, _, annotations = read(f"train={sets / 'train.json'}", f"test={sets / 'val.json'}", images=root)
    assert [(image.split, image.image) for image in labelled][2] == ("test", "val/1.png")
    assert list(annotations.inputs) == ["train.json", "val.json"]


def test_an_image_in_two_splits_stays_in_both_and_is_told(tmp_path: Path, images: Path) -> None:
    for name in ("train.json", "test.json"):
        write_coco(tmp_path / name, [coco_image(1, "a.png")], [coco_box(1, [1, 1, 9, 9])], [SHIP])
    labelled, problems, _ = read(tmp_path / "train.json", tmp_path / "test.json", images=images)
    assert [image.split for image in labelled] == ["train", "test"]
    assert problems == [("test.json", 1, "a.png", "image", "in two splits", True)]


def test_a_torn_or_long_image_costs_itself(tmp_path: Path, images: Path) -> None:
    (images / "b.png").write_bytes(b"\x89PNG")
    make_images(images, "c.png", size=(900, 3))
    listed = [coco_image(number, f"{name}.png") for number, name in enumerate("abc")]
    path = write_coco(tmp_path / "a.json", listed, [coco_box(1, [1, 1, 9, 9])], [SHIP])
    (labelled,), problems, _ = read(path, images=images)
    assert labelled.image == "a.png" and not labelled.boxes
    assert reasons(problems) == {
        "image unreadable": 1, "image too elongated": 1, "of an image that cannot be used": 1
    }  # fmt: skip
    with pytest.raises(InputError, match="no such folder"):
        read(path, images=tmp_path / "nowhere")


def test_what_a_rejected_entry_says_about_a_used_image_is_unsure(tmp_path: Path, images: Path) -> None:
    listed = [coco_image(1, "a.png"), coco_image(2, "a.png", width=50, height=50)]
    boxes = [coco_box(1, [1, 1, 9, 9]), coco_box(2, [1, 1, 9, 9], 2)]
    path = write_coco(tmp_path / "a.json", listed, boxes, [SHIP, {"id": 2, "name": "car"}])
    (labelled,), _, _ = read(path, images=images)
    assert boxes_of(labelled) == [("ship", [1, 1, 9, 9])] and labelled.unsure == {"car"}


# Boxes and labels

BOXES = [
    ([90, 70, 20, 20], [90, 70, 10, 10], "clipped to the image"),
    ([-0.5, 79, 10, 1.5], [0, 79, 9.5, 1], None),
    ([-5, -5, 200, 200], [0, 0, 100, 80], "clipped to the image"),
    ([1e300, 0, 1e300, 5], None, "box outside the image"),
    ([-1e308, 0, 1.7e308, 5], [0, 0, 100, 5], "clipped to the image"),
    ([-10, 5, 10, 5], None, "box outside the image"),
    ([5, 80, 5, 5], None, "box outside the image"),
    ([5, 5, -5, 5], None, "box without area"),
    ([5, 5, 5, 0], None, "box without area"),
    ([99.5, 5, 10, 10], None, "box under one pixel in the image"),
    ([5, 5, 0.9, 10], None, "box under one pixel in the image"),
    ([math.inf, 5, 5, 5], None, "box not finite"),
    ([10, 10, 30, 10, 30, 20, 10, 20], [10, 10, 20, 10], None),
    ([30, 20, 30, 10, 10, 10, 10, 20], [10, 10, 20, 10], None),
    ([90, 70, 110, 70, 110, 90, 90, 90], [90, 70, 10, 10], "clipped to the image"),
    ([-5, 40, 20, 20, 45, 40, 20, 60], [-5, 40, 20, 20, 45, 40, 20, 60], None),
    ([10, 10, 30, 20, 30, 10, 10, 20], None, "box without area"),
    ([10, 10, 30, 20, 30, 10, 10, 30], None, "box whose sides cross"),
    ([10, 10, 20, 10, 30, 10, 40, 10], None, "box without area"),
    ([10, 10, 10.9, 10.1, 11, 11, 10.1, 10.9], None, "box under one pixel in the image"),
    ([10, 10, math.nan, 10, 30, 20, 10, 20], None, "box not finite"),
    ([99, 40, 120, 30, 130, 40, 120, 50], None, "centre of the box outside the image"),
    ([1e200, 5, 40, 40, -1e200, 7, 40, 30], None, "corner far outside the image"),
    ([1e300, 1e300, -1e300, 1e300, -1e300, -1e300, 1e300, -1e300], [0, 0, 100, 80], "clipped to the image"),
]


@pytest.mark.parametrize(("points", "expected", "reason"), BOXES)
def test_a_box_is_fitted_to_its_image_or_rejected(
    points: list[float], expected: list[float] | None, reason: str | None, tmp_path: Path, images: Path
) -> None:
    path = write_coco(tmp_path / "a.json", [coco_image(1, "a.png")], [coco_box(1, points)], [SHIP])
    (labelled,), problems, _ = read(path, images=images)
    assert labelled.boxes == ([Box("ship", expected)] if expected else [])
    assert labelled.unsure == (frozenset() if expected else {"ship"})
    assert [(problem.reason, problem.used) for problem in problems] == ([(reason, bool(expected))] if reason else [])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("  large\n vehicle ", "large vehicle"),
        ("Schi\u0308ff", "Schïff"),
        ("поезд", "поезд"),
        ("नौका", "नौका"),
        ("ship 🛥", "ship 🛥"),
        ("  ", "class without a name"),
        ("<|im_end|>", "class name that breaks texts"),
        ("<image>", "class name that breaks texts"),
        ("</s>", "class name that breaks texts"),
        ("the <box:0>", "class name that breaks texts"),
        ("sh\x00ip", "class name that breaks texts"),
        ("sh\u200bip", "class name that breaks texts"),
        ("\ud800", "class name that breaks texts"),
    ],
)
def test_class_names_of_any_script_stay_and_those_that_break_texts_do_not(
    name: str, label: str, tmp_path: Path, images: Path
) -> None:
    categories = [{"id": 1, "name": name}, {"id": 2, "name": "car"}]
    path = write_coco(tmp_path / "a.json", [coco_image(1, "a.png")], [coco_box(1, [1, 1, 9, 9])], categories)
    (labelled,), problems, annotations = read(path, images=images)
    if label.startswith("class "):
        assert reasons(problems) == {label: 1} and labelled.unsure == {""} and annotations.classes == ["car"]
    else:
        assert boxes_of(labelled) == [(label, [1, 1, 9, 9])] and annotations.classes == [label, "car"]


# VOC

RIM = [("ship", [0.0, 0.0, 10.0, 20.0])]
INNER = [("ship", [9.0, 9.0, 11.0, 21.0])]


@pytest.mark.parametrize(
    ("corners", "base", "scene", "taken"),
    [
        ("auto", 0, RIM, "zero_based"),
        ("auto", 1, RIM, "one_based"),
        ("zero_based", 0, INNER, None),
        ("one_based", 1, INNER, None),
    ],
)
def test_voc_corners_mean_what_the_set_or_the_option_says(
    corners: str, base: int, scene: list, taken: str | None, tmp_path: Path, images: Path
) -> None:
    voc_scene(tmp_path / "xml", scene, base)
    (labelled,), problems, annotations = read(tmp_path / "xml", images=images, voc_corners=corners)
    assert boxes_of(labelled) == scene and not problems and annotations.format == "voc"
    assert [taken in note for note in annotations.notes] == ([True] if taken else [])


def test_an_unknown_way_of_corners_is_refused(tmp_path: Path) -> None:
    voc_scene(tmp_path / "xml", RIM, 1)
    with pytest.raises(InputError, match=r"--voc_corners one_base.*one_based"):
        read(tmp_path / "xml", images=tmp_path, voc_corners="one_base")


def test_turned_voc_boxes_become_corners(tmp_path: Path, images: Path) -> None:
    box = "<cx>50</cx><cy>40</cy><w>20</w><h>10</h><angle>{}</angle>"
    turned = "<object><name>ship</name><robndbox>{}</robndbox></object>"
    objects = [turned.format(box.format(angle)) for angle in (0, math.pi / 2, math.pi / 6)]
    voc_file(tmp_path / "xml/a.xml", "".join(objects))
    (labelled,), problems, _ = read(tmp_path / "xml", images=images)
    upright, quarter, sixth = (box.points for box in labelled.boxes)
    assert upright == pytest.approx([40, 35, 20, 10]) and quarter == pytest.approx([45, 30, 10, 20]) and not problems
    cos, sin = math.cos(math.pi / 6), 0.5
    assert sixth[:4] == pytest.approx([50 - 10 * cos + 5 * sin, 40 - 10 * sin - 5 * cos,
                                       50 + 10 * cos + 5 * sin, 40 + 10 * sin - 5 * cos])  # fmt: skip


def test_every_bad_voc_object_or_file_costs_itself(tmp_path: Path, images: Path) -> None:
    objects = [
        voc_object("ship", [1, 1, 10, 20]),
        voc_object("ship", [11, 1, 20, 20], "<difficult>1</difficult>"),
        voc_object("ship", [21, 1, 30, 20], "<difficult> 0 </difficult><part><name>bow</name></part>"),
        voc_object("ship", [20, 5, 19, 9]),
        voc_object("", [1, 1, 9, 9]),
        "<object><name>ship</name></object>",
        "<object><name>ship</name><bndbox><xmin>1</xmin><ymin>one</ymin></bndbox></object>",
        "<object><name>ship</name><bndbox><xmin>nan</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>",
        voc_object("car", [5, 5, 5, 5]),
    ]
    folder = tmp_path / "xml"
    voc_file(folder / "a.xml", "".join(objects), size=(0, 0))
    voc_file(folder / "deep/b.xml", "", name="renamed.jpg")
    write(folder / "c.xml", "<annotation><filename>c.png</filename>" + objects[0])
    write(folder / "d.xml", "<annotations></annotations>")
    entities = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'
    write(folder / "e.xml", entities)
    (folder / "f.xml").write_text(f'<?xml version="1.0" encoding="utf-16"?>{entities}', encoding="utf-16")
    write(folder / "g.xml", '<?xml version="1.0" encoding="nonsense"?><annotation/>')
    write(folder / "h.xml", "")
    (folder / "i.xml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "j.xml")
    (labelled, background), problems, annotations = read(folder, images=images)
    assert boxes_of(labelled) == [("ship", [0, 0, 10, 20]), ("ship", [20, 0, 10, 20]), ("car", [4, 4, 1, 1])]
    assert labelled.unsure == {"", "ship"} and annotations.classes == ["car", "ship"]
    assert (background.image, background.boxes) == ("b.png", [])
    assert reasons(problems) == {
        "marked as difficult": 1,
        "box without area": 1,
        "class without a name": 1,
        "no box": 1,
        "box not of finite numbers": 2,
        "annotation file unreadable": 1,
        "broken XML": 3,
        "XML without an annotation": 1,
        "XML that declares entities": 2,
    }


def test_a_voc_image_is_taken_from_the_folder_of_its_file(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", "train/a.png", "valid/a.png")
    voc_file(tmp_path / "xml/valid/a.xml", voc_object("ship", [1, 1, 9, 9]))
    (labelled,), _, _ = read(tmp_path / "xml", images=root)
    assert (labelled.image, labelled.split) == ("valid/a.png", "val")


# YOLO


def test_yolo_lines_become_pixels(tmp_path: Path, images: Path) -> None:
    labels = tmp_path / "labels/train"
    write(tmp_path / "data.yaml", "train: images\nnames:\n  0: ship\n  2: no\n")
    lines = ["0 0.5 0.5 0.2 0.25", "", "2.0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2", "0 0.5 0.1 0.6 0.2 0.5 0.3 0.4 0.2"]
    write(labels / "a.txt", "\n".join([*lines, "2 0.1 0.5 0.2 0.45 0.3 0.5 0.25 0.6 0.2 0.55"]))
    write(labels / "b.txt", "\n")
    (labelled, empty), problems, annotations = read(labels, images=images)
    expected = [
        ("ship", [40, 30, 20, 20]),
        ("no", [10, 8, 20, 8]),
        ("ship", [50, 8, 60, 16, 50, 24, 40, 16]),
        ("no", [10, 36, 20, 12]),
    ]
    assert [box.label for box in labelled.boxes] == [label for label, _ in expected] and not problems
    for box, (_, points) in zip(labelled.boxes, expected, strict=True):
        assert box.points == pytest.approx(points, abs=1e-6)
    assert (empty.image, empty.boxes, empty.split) == ("b.png", [], "train")
    assert annotations.format == "yolo" and annotations.classes == ["ship", "no"]
    assert [box.row for box in annotations.images[0].boxes] == [1, 3, 4, 5]


def test_every_bad_yolo_line_costs_itself(tmp_path: Path, images: Path) -> None:
    lines = [
        "0 0.5 0.5 0.2 0.2 0.9",
        "0 0.5 0.5",
        "0 0.1 0.1 0.2 0.2 0.3 0.3",
        "ship 0.5 0.5 0.2 0.2",
        "7 0.5 0.5 0.2 0.2",
        "0.5 0.5 0.5 0.2 0.2",
        "0 50 40 20 20",
        "0 nan 0.5 0.2 0.2",
        "0 10 10 20 10 20 20 10 20",
        "0 0.5 0.5 0.2 0",
        "1 0.99 0.5 0.04 0.1",
    ]
    write(tmp_path / "labels/a.txt", "\n".join(lines))
    (tmp_path / "labels/b.txt").write_bytes(b"\xff\xfe\x00")
    write(tmp_path / "labels/train.txt", "images/a.png\n")
    write(tmp_path / "names.txt", "ship\ncar\n")
    (labelled,), problems, annotations = read(
        tmp_path / "labels", images=images, format="yolo", class_names=str(tmp_path / "names.txt")
    )
    assert [box.points for box in labelled.boxes] == [pytest.approx([97, 36, 3, 8], abs=1e-6)]
    assert labelled.unsure == {"", "ship"} and str(tmp_path / "names.txt") in annotations.inputs
    assert reasons(problems) == {
        "annotation file unreadable": 1,
        "wrong columns": 3,
        "line not of numbers": 1,
        "unknown class number": 2,
        "not in fractions": 3,
        "box without area": 1,
    }  # clipped by no more than a pixel, which is not told


def test_class_lists_are_found_or_asked_for(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "set/labels/a.txt", "0 0.5 0.5 0.2 0.2")
    with pytest.raises(InputError, match="--class_names"):
        read(tmp_path / "set", images=images)
    write(tmp_path / "set/other.yaml", "lr: 3\n")
    write(tmp_path / "set/broken.yml", "a: [")
    write(tmp_path / "set/obj.names", "ship\n")
    assert read(tmp_path / "set", images=images)[2].classes == ["ship"]
    write(tmp_path / "set/data.yaml", "names: [ship]\n")
    assert read(tmp_path / "set", images=images)[2].classes == ["ship"]
    write(tmp_path / "set/data.yaml", "names: [car]\n")
    with pytest.raises(InputError, match="hold different classes"):
        read(tmp_path / "set", images=images)
    write(tmp_path / "set/labels/classes.txt", "tank\n\n")
    assert read(tmp_path / "set", images=images)[2].classes == ["tank"], "the nearest counts"
    for name, text in [("a.yaml", "names: 3"), ("b.yaml", "names: {x: ship}"), ("c.txt", "\n"), ("d.yaml", "[1")]:
        with pytest.raises(InputError, match=f"--class_names .*{name}"):
            read(tmp_path / "set", images=images, class_names=str(write(tmp_path / name, text)))
    with pytest.raises(InputError, match="--class_names"):
        read(tmp_path / "set", images=images, class_names=str(tmp_path / "nowhere.txt"))


# DOTA


def test_dota_lines_with_headers_names_and_flags(tmp_path: Path, images: Path) -> None:
    corners = "50 10 60 20 50 30 40 20"
    lines = ["imagesource:GoogleEarth", "gsd:0.25", f"{corners} ship 0", f"{corners} large vehicle 1"]
    lines += [f"{corners} small vehicle", f"{corners} 7 2", "10.0 10.0 30.0 10.0 30.0 20.0 10.0 20.0 harbor 0"]
    lines += ["1 2 3 4 ship 0", "1 2 3 4 5 6 7 8", "1 2 3 4 5 x 7 8 car 0", "nan 2 3 4 5 6 7 8 car 0"]
    write(tmp_path / "labelTxt/a.txt", "\n".join(lines))
    write(tmp_path / "labelTxt/b.txt", "imagesource:GF3\ngsd:null\n")
    (labelled, empty), problems, annotations = read(tmp_path / "labelTxt", images=images)
    rotated = [50.0, 10.0, 60.0, 20.0, 50.0, 30.0, 40.0, 20.0]
    assert boxes_of(labelled) == [("ship", rotated), ("small vehicle", rotated), ("harbor", [10, 10, 20, 10])]
    assert labelled.unsure == {"large vehicle", "7", "", "car"}
    assert (labelled.resolution_m, empty.resolution_m, empty.boxes) == (0.25, None, [])
    assert annotations.format == "dota"
    assert reasons(problems) == {
        "marked as difficult": 2, "wrong columns": 2, "line without eight numbers": 1, "box not finite": 1
    }  # fmt: skip


# Masks


def write_mask(path: Path, mask: np.ndarray, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        shape = {"height": mask.shape[0], "width": mask.shape[1], "count": 1, "dtype": mask.dtype}
        with rasterio.open(path, "w", driver="GTiff", **shape) as file:
            file.write(mask, 1)
        return path
    image = Image.fromarray(mask)
    if palette:
        image = image.convert("P")
        image.putdata(mask.ravel().tolist())
    image.save(path)
    return path


def ships() -> np.ndarray:
    """Two ships that touch at a corner, one alone, a car, a speck, and a value that has no class."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[10:20, 10:30] = mask[20:30, 30:40] = mask[50:60, 50:55] = 1
    mask[70:74, 0:4] = 2
    mask[0:2, 0:2] = 2
    mask[40:44, 90:94] = 9
    return mask


SHIP_PARTS = [("ship", [10, 10, 30, 20]), ("ship", [50, 50, 5, 10]), ("car", [0, 70, 4, 4])]


@pytest.mark.parametrize("kind", ["a.png", "palette a.png", "a.tif"])
@pytest.mark.parametrize("names", ["ship\ncar\n", "background\nship\ncar\n", "_background_\nship\ncar"])
def test_connected_parts_of_a_class_mask_are_boxes(kind: str, names: str, tmp_path: Path, images: Path) -> None:
    write_mask(tmp_path / "masks" / kind.split()[-1], ships(), palette="palette" in kind)
    write(tmp_path / "masks/classes.txt", names)
    (labelled,), problems, annotations = read(tmp_path / "masks", images=images, format="class_masks")
    assert boxes_of(labelled) == SHIP_PARTS and annotations.classes == ["ship", "car"]
    assert labelled.unsure == {"ship", "car", ""}, "touching ships are one part"
    assert reasons(problems) == {"part under the smallest area": 1, "value without a class": 1}
    given = {"format": "class_masks", "count_components": True, "min_area": 1}
    (labelled,), problems, _ = read(tmp_path / "masks", images=images, **given)
    assert len(labelled.boxes) == 4 and labelled.unsure == {""}


def test_values_of_a_mapping_may_be_any_and_background_too(tmp_path: Path, images: Path) -> None:
    write_mask(tmp_path / "masks/a.png", np.where(ships() == 9, 255, ships()).astype(np.uint8))
    names = write(tmp_path / "names.yaml", "0: water\n2: car\n1: ship\n255: background\n")
    (labelled,), problems, annotations = read(
        tmp_path / "masks", images=images, format="class_masks", class_names=str(names)
    )
    assert boxes_of(labelled) == [("water", [0, 0, 100, 80]), *SHIP_PARTS]
    assert annotations.classes == ["water", "ship", "car"]
    assert reasons(problems) == {"part under the smallest area": 1}


def test_instances_are_objects_by_class_and_number(tmp_path: Path, images: Path) -> None:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint16)
    mask[10:20, 10:20], mask[10:20, 20:30], mask[50:60, 50:60], mask[70:72, 0:2] = 24000, 24001, 26003, 26004
    mask[30:40, 0:10], mask[0:5, 90:100] = 24, 7001
    mask[10:20, 40:42] = 24000
    write_mask(tmp_path / "masks/a.png", mask)
    names = str(write(tmp_path / "names.yaml", "names: {24: ship, 26: car}\n"))
    given = {"format": "instance_masks", "class_names": names}
    (labelled,), problems, _ = read(tmp_path / "masks", images=images, **given)
    ship, other, car = [10, 10, 32, 10], [20, 10, 10, 10], [50, 50, 10, 10]
    assert boxes_of(labelled) == [("ship", ship), ("ship", other), ("car", car)]
    assert labelled.unsure == {"ship", "car", ""}
    assert reasons(problems) == {
        "value without a number of the object": 1, "value without a class": 1, "part under the smallest area": 1
    }  # fmt: skip


def test_with_a_single_class_every_value_is_one_object(tmp_path: Path, images: Path) -> None:
    mask = np.zeros((SIZE[1], SIZE[0]), np.int32)
    mask[10:20, 10:20], mask[10:20, 20:30], mask[50:60, 50:60] = 1, 2, 70_000
    write_mask(tmp_path / "masks/a.tif", mask)
    write(tmp_path / "masks/classes.txt", "ship")
    (labelled,), problems, _ = read(tmp_path / "masks", images=images, format="instance_masks")
    assert [box.points[:2] for box in labelled.boxes] == [[10, 10], [20, 10], [50, 50]]
    assert not problems and not labelled.unsure


def test_a_picture_that_is_no_mask_costs_itself(tmp_path: Path, images: Path) -> None:
    masks = tmp_path / "masks"
    write_mask(masks / "a.tif", ships().astype(np.float32))
    write_mask(masks / "b.png", np.stack([ships()] * 3, -1))
    write_mask(masks / "c.png", ships()[:-1])
    write(masks / "d.png", "no picture")
    write(masks / "classes.txt", "ship\ncar")
    labelled, problems, _ = read(masks, images=images, format="class_masks")
    assert not labelled and reasons(problems) == {
        "mask not of whole numbers": 1,
        "mask of several bands": 1,
        "mask unreadable": 1,
        "size differs from the annotations": 1,
        "of an image that cannot be used": 5,
    }


def test_masks_are_decoded_in_processes_just_the_same(tmp_path: Path, images: Path) -> None:
    for name in "abcd":
        write_mask(tmp_path / "masks" / f"{name}.png", ships())
    write(tmp_path / "masks/classes.txt", "ship\ncar")
    one, several = (read(tmp_path / "masks", images=images, format="class_masks", workers=n) for n in (1, 2))
    assert one == several and len(one[0]) == 4


# Sources


@pytest.mark.parametrize(
    ("file", "split"),
    [("x/instances_train2017.json", "train"), ("x/valid/all.json", "val"), ("test/train.json", "train"),
     ("x/all.json", "test")],
)  # fmt: skip
def test_the_split_is_what_files_or_folders_state(file: str, split: str, tmp_path: Path, images: Path) -> None:
    write_coco(tmp_path / "set" / file, [coco_image(1, "a.png")], [], [SHIP])
    (labelled,), _, _ = read(tmp_path / "set", images=images, split="test")
    assert labelled.split == split
    (labelled,), _, _ = read(f"valid={tmp_path / 'set'}", images=images, split="test")
    assert labelled.split == "val"


def test_the_name_of_a_single_image_states_no_split(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", "test_1.png", "2.png")
    for name in ("labels/test_1.txt", "labels/val/2.txt"):
        write(tmp_path / name, "10 10 20 12 18 30 9 28 ship 0")
    labelled, _, _ = read(tmp_path / "labels", images=root)
    assert [(image.image, image.split) for image in labelled] == [("test_1.png", "train"), ("2.png", "val")]


@pytest.mark.parametrize(
    ("scene", "name"), [(coco_scene, "coco"), (yolo_scene, "yolo"), (dota_scene, "dota"), (None, "voc")]
)
def test_formats_are_told_by_their_files(scene: object, name: str, tmp_path: Path, images: Path) -> None:
    source = voc_scene(tmp_path / "set", INNER, 1) if scene is None else scene(tmp_path / "set", INNER)
    write(tmp_path / "set/notes.json", '{"by": "us"}')
    write(tmp_path / "set/gdal.aux.xml", "<PAMDataset/>")
    write(tmp_path / "set/.hidden.xml", "<annotation/>")
    assert read_annotations([str(source)]).format == name


def test_sources_that_cannot_be_read_are_refused_with_a_remedy(tmp_path: Path) -> None:
    coco_scene(tmp_path / "both", INNER)
    dota_scene(tmp_path / "both", INNER)
    write(tmp_path / "none/a.txt", "\n")
    wrong = [
        ([], {}, "name at least one"),
        ([tmp_path / "nowhere"], {}, "no such file or folder; give PATH or SPLIT=PATH"),
        ([f"other={tmp_path}"], {}, "no such file or folder"),
        ([tmp_path / "both", f"val={tmp_path / 'both'}"], {}, "given twice"),
        ([tmp_path / "both"], {}, "coco and dota; choose one with --format"),
        ([tmp_path / "none"], {}, "masks must be named: class_masks, instance_masks"),
        ([tmp_path / "none"], {"format": "voc"}, r"no \.xml file there.*; give"),
        ([tmp_path / "both"], {"format": "cocoo"}, "did you mean `coco`"),
        ([tmp_path / "both"], {"split": "tset"}, "did you mean `test`"),
    ]
    for sources, more, message in wrong:
        with pytest.raises(InputError, match=message):
            read_annotations([str(source) for source in sources], **more)


def test_a_changed_file_changes_the_hash_of_its_folder(tmp_path: Path, images: Path) -> None:
    folder = dota_scene(tmp_path / "set", INNER)
    before = read(folder, images=images)[2].inputs
    assert before == read(folder, images=images)[2].inputs and list(before) == ["."]
    (folder / "a.txt").rename(folder / "b.txt")
    assert read(folder, images=images)[2].inputs != before


def test_real_scenes_with_vehicles_come_in_whole(real_data: Path) -> None:
    annotations = read_annotations([str(real_data / "mstar_scenes/instances.json")])
    labelled, problems = label_images(annotations, real_data / "mstar_scenes/images")
    stated = json.loads((real_data / "mstar_scenes/instances.json").read_text())
    assert len(labelled) == len(stated["images"]) == 150
    assert sum(len(image.boxes) for image in labelled) == len(stated["annotations"]) == 253
    assert reasons(problems) == {"clipped to the image": 31} and not any(image.unsure for image in labelled)
