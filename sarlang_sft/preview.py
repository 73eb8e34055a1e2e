"""What a model will see in training: pictures, tokens and labels of a few images, as the collator makes them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoConfig

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES, find_backbone
from sarlang_sft.box_texts import frame_of
from sarlang_sft.boxes import Frame, box_problem, corners
from sarlang_sft.collate import IGNORED, DialogueCollator, Encoder
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import header_size
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, Draw, read_mixture
from sarlang_sft.packing import HINTS, Layout, make_trees
from sarlang_sft.pieces import IMAGE, Piece, pieces_of, token_count, trained_count
from sarlang_sft.records import open_split
from sarlang_sft.training import check_pixels, prepare_dialogues
from sarlang_sft.trees import PADDING, TRUNK, TreeCollator
from sarlang_sft.views import View

LARGEST_SHOWN = 1024  # pixels of a side; larger pictures are shown smaller
Dialogue = dict[str, Any]  # a row of `read_mixture`
Stored = dict[str, Any]  # a box: `label` and `points`


@dataclass(frozen=True)
class Branch:
    """What one dialogue adds to its trunk.

    Attributes:
        start: Position id of its first token; None: the model itself counts from 0.
    """

    id: str
    subset: str
    task: str
    start: int | None
    pieces: list[Piece]


@dataclass(frozen=True)
class Sample:
    """A tree; or one dialogue as a sequence of its own, with an empty trunk and a single branch."""

    trunk: list[Piece]
    branches: list[Branch]


@dataclass(frozen=True)
class Outline:
    """A box of the record in a view: `corners` (n, 2), across and down, in pixels of the view."""

    label: str
    corners: list[tuple[float, float]]


@dataclass(frozen=True)
class ShownView:
    """One picture that the vision tower gets.

    Attributes:
        picture: No side longer than `LARGEST_SHOWN`.
        size: Width and height that the tower gets, in pixels.
        tiles: Rows and columns of tiles.
        outlines: Of the boxes that reach into it.
    """

    picture: Image.Image
    size: tuple[int, int]
    tiles: tuple[int, int]
    outlines: list[Outline]


@dataclass(frozen=True)
class Picture:
    """An image of the record: its path, its stored width and height in pixels, and how the model sees it."""

    name: str
    size: tuple[int, int]
    views: list[ShownView]


@dataclass(frozen=True)
class Entry:
    """One record.

    Attributes:
        images: Paths relative to the image root.
        problem: Why training would stop at it, with no pictures and no samples then; else empty.
        left_out: Identifier of every dialogue that training leaves out, with the reason.
        undrawn: Dialogues beyond `turns_per_image`.
    """

    images: list[str]
    problem: str
    pictures: list[Picture]
    samples: list[Sample]
    left_out: list[tuple[str, str]]
    undrawn: int

    def pieces(self) -> Iterator[Piece]:
        """Of all its samples in order."""
        for sample in self.samples:
            yield from sample.trunk
            for branch in sample.branches:
                yield from branch.pieces


@dataclass(frozen=True)
class Sheet:
    """What is shown, and with which options.

    Attributes:
        options: Name and value, as text.
        records: How many images (or texts without any) the split holds.
    """

    options: dict[str, str]
    records: int
    entries: list[Entry]

    def counts(self) -> dict[str, int]:
        """Of what is shown: `images`, `dialogues`, `tokens`, and the `trained` and the `image` tokens among them."""
        pieces = [piece for entry in self.entries for piece in entry.pieces()]
        return {
            "images": len(self.entries),
            "dialogues": sum(len(sample.branches) for entry in self.entries for sample in entry.samples),
            "tokens": token_count(pieces),
            "trained": trained_count(pieces),
            "image": token_count(pieces, IMAGE),
        }


def make_sheet(model: str, data: DataArguments, split: str, images: int, seed: int | None) -> Sheet:
    """Everything to show of some records of a split, through the processor and the collator of a training.

    Only the model's configuration and processor are read, never its weights. Weights and caps of a mixture play no
    part; of images with more dialogues than `turns_per_image` the first are taken.

    Args:
        images: At most this many records.
        seed: Draws the records and the augmentations; None takes the first records in stored order.

    Raises:
        InputError: An option makes no sense, or data or model cannot be read.
    """
    if images < 1:
        raise InputError(f"--images {images}: must be at least 1")
    if seed is not None and seed < 0:
        raise InputError(f"--seed {seed}: must be 0 or more")
    backbone = find_backbone(model)
    processor = load_processor(model, backbone, data.max_pixels)
    context = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
    check_pixels(processor, data.max_pixels, context)
    everything = read_mixture(data.sources(), split)
    chosen = choose_records(everything, images, seed)
    layout = Layout(data.image_trees, data.max_tokens_per_row, data.turns_per_image, 1, shuffle=False, context=context)
    table, lengths, left_out = prepare_dialogues(chosen, layout, processor, backbone, data.image_ops)
    usable = np.setdiff1d(np.arange(len(table)), [item.dialogue for item in left_out])
    draw = Draw(usable, np.zeros_like(usable))
    trees = make_trees(draw, lengths, layout, np.random.default_rng(0)) if len(usable) else []
    reasons = {item.dialogue: f"{item.reason} ({HINTS[item.reason]})" for item in left_out}
    boxes = read_boxes(data.sources(), split, table)
    collator = (TreeCollator if data.image_trees else DialogueCollator)(processor, backbone, data.image_ops)
    entries = []
    for number in tqdm(boxes, desc="preview", unit=" images"):
        rows = np.flatnonzero(lengths.record == number)
        drawn = [tree for tree in trees if lengths.record[tree[0]] == number]
        own = [[dialogue | {"draw": [seed or 0, number]} for dialogue in table.take(t).to_pylist()] for t in drawn]
        without = [(table["id"][row].as_py(), reasons[row]) for row in rows.tolist() if row in reasons]
        entries.append(make_entry(collator, table.take(rows).to_pylist(), own, boxes[number], without))
    family = next(name for name, row in BACKBONES.items() if row is backbone)
    options = {"model": model, "family": family, **describe_options(data, split, seed)}
    return Sheet(options, len(pc.unique(everything["record"])), entries)


def describe_options(data: DataArguments, split: str, seed: int | None) -> dict[str, str]:
    """What the sheet is made with, as text."""
    return {
        "data": ", ".join(source.path for source in data.sources()),
        "split": split,
        "chosen": "first in stored order" if seed is None else f"drawn by seed {seed}",
        "image_ops": " ".join(data.image_ops) or "none",
        "max_pixels": "the processor's" if data.max_pixels is None else f"{data.max_pixels:,}",
        "image_trees": str(data.image_trees).lower(),
        "max_tokens_per_row": f"{data.max_tokens_per_row:,}" if data.image_trees else "any",
        "turns_per_image": str(data.turns_per_image or "all"),
    }


def choose_records(table: pa.Table, count: int, seed: int | None) -> pa.Table:
    """The rows of `read_mixture` about `count` records: the first, or those drawn by the seed, in stored order."""
    records = pc.unique(table["record"]).to_numpy()
    if seed is not None:
        records = np.random.default_rng(seed).permutation(records)
    return table.filter(pc.is_in(table["record"], pa.array(records[:count])))


def read_boxes(sources: list[DataSource], split: str, table: pa.Table) -> dict[int, list[Stored]]:
    """The boxes of every record of a table, also those that no text names, by the number of the record."""
    tables = []
    for source in sources:
        with open_split(source.folder, split, ["images", "boxes"]) as file:
            tables.append(file.read(columns=["images", "boxes"]))
    places = [{tuple(names): place for place, names in enumerate(one["images"].to_pylist())} for one in tables]
    rows = zip(*(table[name].to_pylist() for name in ("record", "source", "images")), strict=True)
    return {record: tables[source]["boxes"][places[source][tuple(images)]].as_py() for record, source, images in rows}


def make_entry(
    collator: TreeCollator | DialogueCollator,
    dialogues: list[Dialogue],
    trees: list[list[Dialogue]],
    boxes: list[Stored],
    left_out: list[tuple[str, str]],
) -> Entry:
    """A record with all its dialogues; of them training takes the `trees`, in the flat layout of one dialogue each."""
    images, root = dialogues[0]["images"], Path(dialogues[0]["image_root"])
    undrawn = len(dialogues) - len(left_out) - sum(map(len, trees))
    sizes = [header_size(root, image) for image in images]
    problem = "; ".join(f"{image}: {why}" for image, why in zip(images, sizes, strict=True) if isinstance(why, str))
    if problem:
        return Entry(images, problem, [], [], left_out, undrawn)
    pictures: list[Picture] = []
    samples: list[Sample] = []
    try:
        for tree in trees:
            batch = collator([[tree]] if isinstance(collator, TreeCollator) else tree)
            samples.append(make_sample(collator, batch, tree))
            if len(samples) == 1:
                views = [make_views(collator, batch, number, dialogues[0], boxes) for number in range(len(images))]
                pictures = [Picture(*shown) for shown in zip(images, sizes, views, strict=True)]
    except ValueError as error:  # of the processor, too
        return Entry(images, str(error), [], [], left_out, undrawn)
    return Entry(images, "", pictures, samples, left_out, undrawn)


def make_sample(encoder: Encoder, batch: dict[str, torch.Tensor], dialogues: list[Dialogue]) -> Sample:
    """What stands in a collated batch of one row."""
    ids, trained = batch["input_ids"][0], batch["labels"][0] != IGNORED
    if "segments" in batch:
        tree, branch = batch["segments"][0].unbind(-1)
        branch = torch.where(tree == 0, branch, PADDING)  # behind a text without image follows a black picture
    else:
        branch = torch.where(batch["attention_mask"][0].bool(), TRUNK + 1, PADDING)
    trunk = ids[branch == TRUNK].tolist()
    branches = []
    for number, dialogue in enumerate(dialogues, start=TRUNK + 1):
        own = branch == number
        start = int(batch["position_ids"].reshape(-1, len(ids))[0, own][0]) if "position_ids" in batch else None
        pieces = pieces_of(encoder, ids[own].tolist(), trained[own].tolist(), trunk)
        branches.append(Branch(dialogue["id"], dialogue["subset"], dialogue["task"], start, pieces))
    return Sample(pieces_of(encoder, trunk, trained[branch == TRUNK].tolist(), []), branches)


def make_views(
    encoder: Encoder, batch: dict[str, torch.Tensor], number: int, dialogue: Dialogue, boxes: list[Stored]
) -> list[ShownView]:
    """How the model sees the image of this number of a record; boxes lie in the first.

    Where an augmenting operation moves the picture, boxes are not drawn: nothing tells where to.
    """
    if number > 0 or (encoder.augments and dialogue["split"] == "train"):
        boxes = []
    size = dialogue["width"], dialogue["height"]
    frame = frame_of(encoder.processor, encoder.backbone, encoder.image_ops, *size)
    views = encoder.backbone.views(encoder.processor, batch, number)
    return [show(view, boxes, frame.then(view.frame)) for view in views]


def show(view: View, boxes: list[Stored], frame: Frame) -> ShownView:
    """A view with the boxes that reach into it; `frame` is the view's of the stored image."""
    height, width, _ = view.pixels.shape
    picture = Image.fromarray(view.pixels)
    picture.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    outlines = []
    for number, box in enumerate(boxes):
        if box_problem(box["points"], math.inf, math.inf) == "unusable_box":
            continue
        seen = [frame.inside(x, y) for x, y in corners(box["points"])]
        across, down = zip(*seen, strict=True)
        if max(across) > 0 and max(down) > 0 and min(across) < width and min(down) < height:
            outlines.append(Outline(f"{number} {box['label']}", seen))
    return ShownView(picture, (width, height), view.tiles, outlines)
