"""Semantic localisation (SeLo): how well a contrastive model finds in a large image what a text says.

Annotations are laid out as those of AIR-SLT (22 images of 3,000 x 2,000 to 10,000 x 10,000 pixels, 59 queries), of
Yuan et al., arXiv 2209.06515: a JSON list of `{"jpg_name": ..., "caption": ..., "points": [polygon, ...]}`, a polygon
being a list of corners `[x, y]` in pixels.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sarlang_sft.contrastive.features import READERS, encode_texts
from sarlang_sft.contrastive.heat_maps import Similarity, WindowArguments, heat_map, window_similarities, windows_of
from sarlang_sft.contrastive.localization_metrics import (
    LocalizationMetrics,
    cut_off,
    localization_metrics,
    regions_problem,
)
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.results import Figure
from sarlang_sft.errors import InputError, UnreadableImageError, nearest
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import Scale, apply_ops, read_image
from sarlang_sft.scoring.intervals import mean_with_interval

KEYS = ("jpg_name", "caption", "points")
LARGEST = 1e9  # pixels; nothing that is no number is below
FIGURES = ("rmi", "rsu", "ras", "rda")


class Query(NamedTuple):
    """A text and the regions of one image that it is true of.

    Attributes:
        number: Place in the file, from 0.
        image: Name of the image's file.
        regions: Corners of each, (x, y) in pixels.
    """

    number: int
    image: str
    path: Path
    caption: str
    regions: list[list[tuple[float, float]]]


@dataclass
class Annotations:
    """The queries of a file, and what of it could not be used.

    Attributes:
        left_out: The reason by number of the query.
        ignored_keys: How many queries have a key that means nothing here.
    """

    queries: list[Query]
    left_out: dict[int, str]
    ignored_keys: dict[str, int]


class Localised(NamedTuple):
    """What came of one query.

    Attributes:
        image: (H, W, 3) float32 of 0-255.
        heat: (H, W) float32 in 0-1.
    """

    query: Query
    image: np.ndarray
    heat: np.ndarray
    metrics: LocalizationMetrics


def read_annotations(file: Path, images: Path) -> Annotations:
    """The queries of an annotation file; those that cannot be asked are told with their reason.

    Raises:
        InputError: It is no JSON list, or none of its queries can be asked.
    """
    try:
        items = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"annotations {file}: cannot be read as JSON ({error})") from error
    if not isinstance(items, list) or not items:
        raise InputError(f"annotations {file}: must be a list of queries, each with {', '.join(KEYS)}")
    found = Annotations([], {}, {})
    ignored: Counter[str] = Counter()
    for number, item in enumerate(items):
        problem = _item_problem(item)
        if problem is None:
            ignored.update(item.keys() - {*KEYS})
            try:
                path = path_inside(images, item["jpg_name"])
            except (InputError, ValueError) as error:
                problem = str(error)
        if problem is not None:
            found.left_out[number] = problem
            continue
        regions = [[(float(x), float(y)) for x, y in region] for region in item["points"]]
        found.queries.append(Query(number, item["jpg_name"], path, item["caption"].strip(), regions))
    if not found.queries:
        raise InputError(f"annotations {file}: none of {len(items)} queries can be used: {found.left_out[0]}")
    found.ignored_keys = dict(ignored)
    return found


def _item_problem(item: Any) -> str | None:
    if not isinstance(item, dict):
        return "is no object"
    for key in KEYS:
        if key not in item:
            return f"has no `{key}`; {nearest(key, item.keys() - {*KEYS}, 'needed are ' + ', '.join(KEYS))}"
    for key in KEYS[:2]:
        if not isinstance(item[key], str) or not item[key].strip():
            return f"`{key}` is no text, or empty"
    if not isinstance(item["points"], list) or not item["points"]:
        return "`points` is no list of regions, or empty"
    for number, region in enumerate(item["points"]):
        if not isinstance(region, list) or len(region) < 3:
            return f"region {number} has fewer than three corners"
        if not all(
            isinstance(corner, list) and len(corner) == 2 and all(map(_is_number, corner)) for corner in region
        ):
            return f"region {number} has a corner that is no [x, y]"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def similarity_to(model: ContrastiveModel, texts: Sequence[str]) -> Callable[[list[int]], Similarity]:
    """For some of the texts, by their rows, what gives the cosine similarity of crops to them.

    Every crop goes through the model's `image_ops` and its own preprocessing, as an image of its own would.
    """
    features = encode_texts(model, texts)
    pool = ThreadPoolExecutor(READERS)

    def to_some(rows: list[int]) -> Similarity:
        wanted = features[rows]

        def similarity(crops: Sequence[np.ndarray]) -> np.ndarray:
            pictures = torch.stack(list(pool.map(lambda crop: model.picture(apply_ops(crop, model.image_ops)), crops)))
            with torch.inference_mode():
                seen = model.model.encode_image(pictures.to(model.device), normalize=True).float().cpu()
            return (seen @ wanted.T).numpy()

        return similarity

    return to_some


def localise(
    annotations: Annotations,
    similarity_to_queries: Callable[[list[int]], Similarity],
    arguments: WindowArguments,
    batch_size: int,
    unreadable: dict[Path, str],
    scale: Scale | None = None,
) -> Iterator[Localised]:
    """Every query that can be asked, image by image; each image is read, and its windows are encoded, once.

    Args:
        annotations: Queries that turn out to be unusable are added to its `left_out`.
        similarity_to_queries: For rows of `annotations.queries`, the similarity of crops to their texts.
        batch_size: Crops at once.
        unreadable: Gets the reason of every image that cannot be read.
        scale: Of pixels of more than 8 bits, see `imagery.read_image`.
    """
    by_image: dict[Path, list[int]] = {}
    for row, query in enumerate(annotations.queries):
        by_image.setdefault(query.path, []).append(row)
    for path, rows in tqdm(by_image.items(), desc="localisation", unit=" images"):
        try:
            image = read_image(path, scale)
        except UnreadableImageError as error:
            unreadable[path] = error.reason
            for row in rows:
                annotations.left_out[annotations.queries[row].number] = f"the image cannot be read ({error.reason})"
            continue
        height, width, _ = image.shape
        asked = []
        for row in rows:
            problem = regions_problem(height, width, annotations.queries[row].regions)
            if problem:
                annotations.left_out[annotations.queries[row].number] = problem
            else:
                asked.append(row)
        if not asked:
            continue
        windows = windows_of(height, width, arguments)
        similarities = window_similarities(image, windows, similarity_to_queries(asked), batch_size)
        for row, own in zip(asked, similarities.T, strict=True):
            query = annotations.queries[row]
            heat = heat_map(height, width, windows, own, arguments.blur)
            yield Localised(query, image, heat, localization_metrics(heat, query.regions))


def localization_row(found: Localised) -> dict[str, Any]:
    """What the result keeps of one query."""
    query, metrics = found.query, found.metrics
    row = {"query": query.number, "image": query.image, "caption": query.caption, "regions": len(query.regions)}
    return row | metrics._asdict() | {"cut_off": cut_off(*found.heat.shape, query.regions)}


def localization_figures(rows: Sequence[dict[str, Any]], annotations: Annotations) -> dict[str, Figure]:
    """Means over queries with bootstrap intervals over images, if there are several; higher is better but for `ras`.

    Raises:
        InputError: There is no row, because all queries were left out.
    """
    if not rows:
        number, reason = next(iter(annotations.left_out.items()))
        raise InputError(
            f"annotations: all {len(annotations.left_out)} queries are left out; query {number}: {reason}"
        )
    images = [row["image"] for row in rows]
    found = {name: mean_with_interval([row[name] for row in rows], images) for name in FIGURES}
    return found if len({*images}) > 1 else {name: {"value": one["value"]} for name, one in found.items()}


def show_left_out(annotations: Annotations) -> str:
    """Lines on the queries that were not asked, each reason once, and on keys that mean nothing."""
    lines = []
    for reason, count in Counter(annotations.left_out.values()).most_common():
        number = next(number for number, why in annotations.left_out.items() if why == reason)
        lines.append(f"left out: {count} queries, such as query {number}: {reason}")
    lines += [f"ignored: key `{key}` of {count} queries" for key, count in annotations.ignored_keys.items()]
    return "\n".join(lines)
