"""Test images with everything asked about them and every run's answer, as the page's script reads them."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from sarlang_sft.boxes import PLACEHOLDER, box_problem, corners
from sarlang_sft.errors import InputError, UnreadableImageError
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import read_image, to_picture
from sarlang_sft.reporting.given import Run
from sarlang_sft.reporting.measures import confidence
from sarlang_sft.reporting.tables import bare_question
from sarlang_sft.scoring.found_boxes import listed_boxes
from sarlang_sft.scoring.predictions import CAPTION_TASK, Row

SIDE = 320  # pixels of a thumbnail's longer side
QUALITY = 82
LONGEST_TEXT = 2_000  # characters of a text on the page
MOST_BOXES = 20  # drawn for one question
DIGITS = 6  # of the number of a box

About = tuple[str, ...]  # the images of a record
Outline = list[tuple[float, float]]  # the corners of a box, in pixels of the stored image


class Gallery(NamedTuple):
    """What is shown: `content` for the script, how many images there are in all, and those that cannot be read."""

    content: dict[str, Any]
    shown: int
    images: int
    questions: int
    unreadable: dict[str, str]


def choose_images(rows: Sequence[Row], count: int) -> list[About]:
    """At most `count` records' images, in stored order: tasks take turns, each spread evenly over the split.

    The choice depends on the split alone, so that nothing is picked by how well it went. 0 takes all.

    Raises:
        InputError: `count` is negative.
    """
    if count < 0:
        raise InputError(f"--images {count}: must be 0 (all) or more")
    by_task: dict[str, dict[About, None]] = defaultdict(dict)
    for row in rows:
        by_task[row.task].setdefault(row.images)
    everything = list(dict.fromkeys(row.images for row in rows))
    if count == 0 or count >= len(everything):
        return everything
    chosen: dict[About, None] = {}
    queues = [_spread(list(by_task[task])) for task in sorted(by_task)]
    while len(chosen) < count:
        for queue in queues:
            fresh = next((images for images in queue if images not in chosen), None)
            if fresh is not None and len(chosen) < count:
                chosen[fresh] = None
    return [images for images in everything if images in chosen]


def _spread(images: list[About]) -> Iterator[About]:
    """The images in an order whose every beginning lies evenly over them: places by their bits, reversed."""
    bits = max(len(images) - 1, 1).bit_length()
    for number in range(2**bits):
        place = int(f"{number:0{bits}b}"[::-1], 2)
        if place < len(images):
            yield images[place]


def make_gallery(runs: Sequence[Run], image_root: Path, count: int) -> Gallery:
    """The images chosen by [`choose_images`], each once, with all questions about them.

    A run that answered no caption, or no question, is shown beside none.

    Args:
        runs: At least one; all of the same split.
    """
    rows = {run.name: [*run.captions, *run.questions] for run in runs}
    asked = {run.name: {True: run.captioned > 0, False: run.answered > 0} for run in runs}  # of captions, of questions
    right = {run.name: [*(None for _ in run.captions), *run.right] for run in runs}
    first = rows[runs[0].name]
    chosen = choose_images(first, count)
    number = {images: place for place, images in enumerate(chosen)}
    shown, unreadable = [], {}
    for images in tqdm(chosen, desc="gallery", unit=" images"):
        pictures = [thumbnail(image_root, image) for image in images]
        unreadable |= {
            image: picture for image, picture in zip(images, pictures, strict=True) if isinstance(picture, str)
        }
        shown.append(
            {
                "names": [clipped(image)[0] for image in images],
                "pictures": [
                    {"problem": one} if isinstance(one, str) else {"src": one.uri, "size": one.size}
                    for one in pictures
                ],
            }
        )
    tasks = sorted({row.task for row in first})
    entries = [
        {
            "image": number[row.images],
            "task": tasks.index(row.task),
            "question": clipped(bare_question(row.question)),
            "truth": clipped(row.label),
            "boxes": drawn_boxes(row),
            "answers": [
                answer(rows[run.name][place], right[run.name][place])
                if asked[run.name][row.task == CAPTION_TASK]
                else None
                for run in runs
            ],
        }
        for place, row in sorted(enumerate(first), key=lambda item: item[1].task != CAPTION_TASK)
        if row.images in number
    ]
    content = {
        "runs": [{"name": run.name, "plain": run.kind == "plain"} for run in runs],
        "tasks": tasks,
        "images": shown,
        "entries": entries,
    }
    return Gallery(content, len(chosen), len({row.images for row in first}), len(first), unreadable)


def answer(row: Row, right: bool | None) -> dict[str, Any]:
    """What a run said to a question; `right` is null for captions, `text` where it said nothing."""
    sure = confidence(row)
    return {
        "text": None if row.predict is None else clipped(row.predict),
        "right": right,
        "sure": None if sure is None or row.predict is None else round(sure, 3),
        "boxes": outlines(row.predicted or ()),
    }


def clipped(text: str) -> list[str | int]:
    """The beginning of a text and how many characters it has; what does not print is written out."""
    return [printable(text[:LONGEST_TEXT]), len(text)]


def printable(text: str) -> str:
    """A text without signs that steer: direction marks, NUL and the like are written out; line breaks stay."""
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
    )


class Thumbnail(NamedTuple):
    """A picture inside the page, and the width and height of the stored image in pixels."""

    uri: str
    size: tuple[int, int]


def thumbnail(image_root: Path, image: str) -> Thumbnail | str:
    """An image as the page shows it, or why it cannot be read."""
    try:
        pixels = read_image(path_inside(image_root, image))
    except UnreadableImageError as error:
        return printable(f"{image}: unreadable image: {error.reason.replace(str(error.path), image)}")
    except InputError:
        return printable(f"{image}: leaves the image root")
    picture = to_picture(pixels)
    size = picture.size
    if np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 0], pixels[..., 2]):
        picture = picture.convert("L")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Thumbnail("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), size)


def drawn_boxes(row: Row) -> list[Outline]:
    """The boxes that question or truth name, as `[x, y, w, h]`, with eight numbers, or as `<box:i>`."""
    found = []
    for text in (row.question, row.label):
        found += map(list, listed_boxes(text))
        named = [int(match[1]) for match in PLACEHOLDER.finditer(text) if len(match[1]) <= DIGITS]
        found += [list(row.boxes[place].points) for place in named if place < len(row.boxes)]
    return outlines(found)


def outlines(boxes: Sequence[Sequence[float]]) -> list[Outline]:
    """The corners of the boxes that have an area, at most `MOST_BOXES`."""
    usable = [points for points in boxes if box_problem(list(points), math.inf, math.inf) != "unusable_box"]
    return [[(round(x, 1), round(y, 1)) for x, y in corners(points)] for points in usable[:MOST_BOXES]]
