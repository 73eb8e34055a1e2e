"""Annotations of any content: none is lost uncounted, and what is used is clean; formats agree about one scene."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from annotation_files import (
    SIZE,
    Scene,
    boxes_of,
    coco_scene,
    dota_scene,
    make_images,
    read,
    voc_file,
    voc_object,
    voc_scene,
    write,
    yolo_scene,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sarlang_sft.annotations.model import LabelledImage
from sarlang_sft.boxes import box_problem, corners

FEW = settings(max_examples=120)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=9,
)
NUMBERS = (
    st.integers(-50, 150)
    | st.floats(-20, 120)
    | st.floats()
    | st.sampled_from([0, 1, 99.5, 100, 1e300, -1e300, 1e-300, 10**400])
)
POINTS = st.lists(NUMBERS, min_size=4, max_size=4) | st.lists(NUMBERS, min_size=8, max_size=8) | ANYTHING
NEAR = st.lists(st.integers(-10, 110), min_size=4, max_size=4) | st.lists(
    st.integers(-10, 110), min_size=8, max_size=8
)
IDS = st.sampled_from([0, 1, 2, 3, "1", None, 1.5]) | ANYTHING
LABELS = st.sampled_from(["ship", "oil tank", "舰船", "पोत", "<image>", "", " ", "a\u0301", "\ud800"]) | st.text(
    max_size=6
)
FLAGS = st.sampled_from([0, 1, None, "1"]) | ANYTHING
CATEGORY = st.fixed_dictionaries({}, optional={"id": IDS, "name": LABELS | ANYTHING}) | ANYTHING
IMAGE = (
    st.fixed_dictionaries(
        {"id": st.sampled_from([1, 2, 3]), "file_name": st.sampled_from(["a.png", "b.png", "no.png"])},
        optional={"width": st.just(SIZE[0]) | ANYTHING, "height": st.just(SIZE[1]) | ANYTHING},
    )
    | st.fixed_dictionaries({}, optional={"id": IDS, "file_name": st.text(max_size=5) | ANYTHING})
    | ANYTHING
)
ANNOTATION = (
    st.fixed_dictionaries(
        {"image_id": st.sampled_from([1, 2]), "category_id": st.sampled_from([0, 1, 2]), "bbox": NEAR | POINTS},
        optional={"iscrowd": FLAGS, "ignore": FLAGS},
    )
    | st.fixed_dictionaries({}, optional={"image_id": IDS, "category_id": IDS, "bbox": POINTS})
    | ANYTHING
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), "a.png", "b.png")


@pytest.fixture(scope="module")
def folders() -> Iterator[Callable[[], Path]]:
    """A new folder at every call."""
    with TemporaryDirectory() as root:
        made: list[Path] = []

        def make() -> Path:
            made.append(Path(root, str(len(made))))
            made[-1].mkdir()
            return made[-1]

        yield make


def check_clean(labelled: list[LabelledImage]) -> None:
    """Every box can be asked about and lies where the image is."""
    for image in labelled:
        assert (image.width, image.height) == SIZE
        for box in image.boxes:
            assert box.label == " ".join(box.label.split()) != "" and box.label.encode()
            columns, rows = zip(*corners(box.points), strict=True)
            area = abs(sum(columns[i - 1] * rows[i] - columns[i] * rows[i - 1] for i in range(4))) / 2
            assert area >= 1 - 1e-6
            if len(box.points) == 4:
                assert box_problem(box.points, *SIZE) is None
                assert min(columns) >= 0 and min(rows) >= 0
                assert max(columns) <= SIZE[0] + 1e-6 and max(rows) <= SIZE[1] + 1e-6
            else:
                assert box_problem(box.points, *SIZE) in (None, "box_outside")


@FEW
@given(
    entries=st.lists(ANNOTATION, max_size=12),
    listed=st.lists(IMAGE, max_size=5),
    categories=st.lists(CATEGORY, max_size=3),
    keep_doubtful=st.booleans(),
)
def test_any_coco_file_is_read_and_every_entry_counted(
    entries: list, listed: list, categories: list, keep_doubtful: bool, images: Path, folders: Callable[[], Path]
) -> None:
    listed = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, *listed]
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "舰船"}, *categories]
    content = {"images": listed, "annotations": entries, "categories": categories}
    path = write(folders() / "any.json", json.dumps(content))
    labelled, problems, _ = read(path, images=images, format="coco", keep_doubtful=keep_doubtful)
    check_clean(labelled)
    lost = [problem for problem in problems if not problem.used]
    assert sum(len(image.boxes) for image in labelled) + sum(p.what == "box" for p in lost) == len(entries)
    rows = [problem.row for problem in lost if problem.what == "box"]
    assert len(set(rows)) == len(rows)


@FEW
@given(
    scene=st.lists(
        st.tuples(st.sampled_from(["ship", "oil tank", "舰船"]), st.lists(NUMBERS, min_size=4, max_size=4)), max_size=6
    ),
    corners_mean=st.sampled_from(["auto", "one_based", "zero_based"]),
)
def test_any_voc_corners_are_counted(
    scene: Scene, corners_mean: str, images: Path, folders: Callable[[], Path]
) -> None:
    folder = folders()
    voc_file(folder / "a.xml", "".join(voc_object(label, points) for label, points in scene))
    labelled, _, _ = read(folder, images=images, format="voc", voc_corners=corners_mean)
    check_clean(labelled)


@FEW
@given(text=st.text(max_size=60) | st.binary(max_size=60), suffix=st.sampled_from(["xml", "txt", "png"]))
def test_files_of_any_bytes_cost_themselves_alone(
    text: str | bytes, suffix: str, images: Path, folders: Callable[[], Path]
) -> None:
    folder = folders()
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (folder / f"a.{suffix}").write_bytes(content)
    voc_file(folder / "b.xml", voc_object("ship", [1, 1, 9, 9]), name="b.png")
    write(folder / "b.txt", "0 0 20 1 20 20 1 20 ship 0")
    write(folder / "classes.txt", "ship")
    for name in {"xml": ["voc"], "txt": ["yolo", "dota"], "png": ["class_masks", "instance_masks"]}[suffix]:
        labelled, _, annotations = read(folder, images=images, format=name)
        check_clean(labelled)
        assert any(image.file == f"a.{suffix}" for image in annotations.images)
        if suffix != "png" and name != "yolo":
            assert labelled[-1].image == "b.png" and len(labelled[-1].boxes) == 1


WORDS = NUMBERS.map(str) | st.sampled_from(["ship", "oil", "0", "1", "0.5", "0.25", "nan", "gsd:", "舰船", "x"])


@FEW
@given(lines=st.lists(st.lists(WORDS, min_size=1, max_size=11).map(" ".join), max_size=6))
def test_lines_of_any_words_are_counted(lines: list[str], images: Path, folders: Callable[[], Path]) -> None:
    folder = folders()
    write(folder / "a.txt", "\n".join(lines))
    write(folder / "classes.txt", "ship\ncar")
    for name in ("yolo", "dota"):
        labelled, _, annotations = read(folder, images=images, format=name)
        check_clean(labelled)
        headers = sum(line.startswith("gsd:") for line in lines) if name == "dota" else 0
        assert len(annotations.images[0].boxes) == len(lines) - headers


@st.composite
def upright_scenes(draw: st.DrawFn) -> Scene:
    """Boxes of whole pixels in the image, none twice; one at the rim, by which the base of VOC corners is told."""
    scene = [("ship", [0, 0, draw(st.integers(1, 50)), draw(st.integers(1, 50))])]
    for _ in range(draw(st.integers(0, 5))):
        x, y = draw(st.integers(0, SIZE[0] - 1)), draw(st.integers(0, SIZE[1] - 1))
        width, height = draw(st.integers(1, SIZE[0] - x)), draw(st.integers(1, SIZE[1] - y))
        box = draw(st.sampled_from(["ship", "oil tank", "舰船"])), [x, y, width, height]
        scene += [box] if box not in scene else []
    return scene


@FEW
@given(scene=upright_scenes())
def test_one_scene_is_the_same_in_every_format(scene: Scene, images: Path, folders: Callable[[], Path]) -> None:
    sources = [coco_scene(folders(), scene), yolo_scene(folders(), scene), dota_scene(folders(), scene)]
    sources += [voc_scene(folders(), scene, base) for base in (0, 1)]
    for source in sources:
        (labelled,), problems, _ = read(source, images=images)
        assert not problems and not labelled.unsure
        assert [label for label, _ in boxes_of(labelled)] == [label for label, _ in scene]
        for box, (_, points) in zip(labelled.boxes, scene, strict=True):
            assert box.points == pytest.approx(points, abs=1e-6)


@FEW
@given(
    centre=st.tuples(st.integers(30, 70), st.integers(30, 50)),
    along=st.tuples(st.integers(5, 30), st.integers(3, 20)),
    across=st.integers(1, 3),
)
def test_one_rotated_box_is_the_same_in_every_format(
    centre: tuple[int, int],
    along: tuple[int, int],
    across: int,
    images: Path,
    folders: Callable[[], Path],
) -> None:
    (x, y), (dx, dy) = centre, along
    aside = (-dy * across / 4, dx * across / 4)
    ends = [(-dx - aside[0], -dy - aside[1]), (dx - aside[0], dy - aside[1])]
    ends += [(dx + aside[0], dy + aside[1]), (-dx + aside[0], -dy + aside[1])]
    points = [value for end in ends for value in (x + end[0], y + end[1])]
    scene = [("ship", points)]
    for source in (coco_scene(folders(), scene), yolo_scene(folders(), scene), dota_scene(folders(), scene)):
        (labelled,), _, _ = read(source, images=images)
        assert [box.points for box in labelled.boxes] == [pytest.approx(points, abs=1e-6)]
