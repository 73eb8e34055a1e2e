"""Annotation files as detection sets come with them."""

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from sarlang_sft.annotations.cleaning import label_images
from sarlang_sft.annotations.model import AnnotationOptions, LabelledImage, Problem
from sarlang_sft.annotations.reading import AnnotationSet, read_annotations

SIZE = (100, 80)

Scene = list[tuple[str, list[float]]]
"""Labels with `x y w h` or four corners, in pixels."""


def make_images(root: Path, *names: str, size: tuple[int, int] = SIZE) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(root / name)
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_coco(path: Path, images: list, annotations: list, categories: list) -> Path:
    return write(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco_scene(folder: Path, scene: Scene) -> Path:
    labels = sorted({label for label, _ in scene})
    boxes = [{"image_id": 7, "category_id": labels.index(label), "bbox": points} for label, points in scene]
    image = {"id": 7, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1]}
    return write_coco(
        folder / "instances.json", [image], boxes, [{"id": n, "name": label} for n, label in enumerate(labels)]
    )


def voc_object(label: str, corners: list[float], more: str = "") -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{name}>{value!r}</{name}>" for name, value in zip(names, corners, strict=True))
    return f"<object><name>{label}</name>{more}<bndbox>{box}</bndbox></object>"


def voc_file(path: Path, objects: str, name: str = "a.png", size: tuple[int, int] = SIZE) -> Path:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>"
    return write(path, f"<annotation><filename>{name}</filename>{stated}{objects}</annotation>")


def voc_scene(folder: Path, scene: Scene, base: int) -> Path:
    objects = [
        voc_object(label, [x + base, y + base, x + width, y + height]) for label, (x, y, width, height) in scene
    ]
    voc_file(folder / "a.xml", "".join(objects))
    return folder


def yolo_scene(folder: Path, scene: Scene) -> Path:
    labels = sorted({label for label, _ in scene})
    write(folder / "classes.txt", "\n".join(labels) + "\n")
    lines = []
    for label, points in scene:
        if len(points) == 4:
            x, y, width, height = points
            points = [x + width / 2, y + height / 2, width, height]
        fractions = [value / SIZE[place % 2] for place, value in enumerate(points)]
        lines.append(" ".join(map(repr, [labels.index(label), *fractions])))
    write(folder / "a.txt", "\n".join(lines))
    return folder


def dota_scene(folder: Path, scene: Scene) -> Path:
    lines = ["imagesource:GoogleEarth", "gsd:0.5"]
    for label, points in scene:
        if len(points) == 4:
            x, y, width, height = points
            points = [x, y, x + width, y, x + width, y + height, x, y + height]
        lines.append(f"{' '.join(map(repr, points))} {label} 0")
    write(folder / "a.txt", "\n".join(lines))
    return folder


def read(
    *sources: object, images: Path, keep_doubtful: bool = False, **options: object
) -> tuple[list[LabelledImage], list[Problem], AnnotationSet]:
    """Read and clean in this process.

    Args:
        options: Of `read_annotations` and `AnnotationOptions`.
    """
    reading = {name: options.pop(name) for name in ("format", "split") if name in options}
    chosen = AnnotationOptions(**{"workers": 1, **options})
    annotations = read_annotations([str(source) for source in sources], options=chosen, **reading)
    labelled, problems = label_images(annotations, images, keep_doubtful, workers=1)
    check_sum(annotations, labelled, problems)
    return labelled, problems, annotations


def check_sum(annotations: AnnotationSet, labelled: list[LabelledImage], problems: list[Problem]) -> None:
    """Every annotation is in an image or a problem, once."""
    lost = Counter(problem.what for problem in problems if not problem.used)
    apart = Counter(problem.what for problem in annotations.problems if not problem.used)
    marked = sum(len(image.boxes) for image in annotations.images)
    assert sum(len(image.boxes) for image in labelled) + lost["box"] == marked + apart["box"]
    merged = sum(problem.reason.startswith("annotated in several places") for problem in problems)
    assert len(labelled) + merged + lost["image"] == len(annotations.images) + apart["image"]


def reasons(problems: list[Problem]) -> dict[str, int]:
    return dict(Counter(problem.reason for problem in problems))


def boxes_of(image: LabelledImage) -> Scene:
    return [(box.label, box.points) for box in image.boxes]
