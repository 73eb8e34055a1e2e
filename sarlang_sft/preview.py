"""What a model will see in training: pictures, tokens and labels of a few images, as the collator makes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoConfig, ProcessorMixin

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES, Backbone, find_backbone
from sarlang_sft.box_texts import frame_of
from sarlang_sft.boxes import Frame
from sarlang_sft.collate import IGNORED, DialogueCollator
from sarlang_sft.errors import InputError
from sarlang_sft.image_files import header_size
from sarlang_sft.imagery import AUGMENTING_OPS, parse_ops
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, Draw, read_mixture
from sarlang_sft.packing import HINTS, Layout, make_trees
from sarlang_sft.pieces import IMAGE, Piece, pieces_of, token_count, trained_count
from sarlang_sft.training import check_pixels, prepare_dialogues
from sarlang_sft.trees import PADDING, TRUNK, TreeCollator
from sarlang_sft.views import View

LARGEST_SHOWN = 1024  # pixels of a side; larger pictures are shown smaller
Dialogue = dict[str, Any]  # a row of `read_mixture`


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
    trees = make_trees(Draw(usable, np.zeros_like(usable)), lengths, layout, np.random.default_rng(0))
    reasons = {item.dialogue: f"{item.reason} ({HINTS[item.reason]})" for item in left_out}
    boxes = read_boxes(data.sources(), split, table)
    previewer = Previewer(processor, backbone, data)
    entries = []
    with torch.random.fork_rng(devices=[]):  # which the collator draws augmentations from
        torch.manual_seed(seed or 0)
        for number in tqdm(pc.unique(table["record"]).to_pylist(), desc="preview", unit=" images"):
            rows = np.flatnonzero(lengths.record == number)
            own = [table.take(tree).to_pylist() for tree in trees if lengths.record[tree[0]] == number]
            dialogues = table.take(rows).to_pylist()
            without = [(table["id"][row].as_py(), reasons[row]) for row in rows.tolist() if row in reasons]
            entries.append(previewer.entry(dialogues, own, boxes.get(number, []), without))
    options = {
        "model": model,
        "family": next(name for name, row in BACKBONES.items() if row is backbone),
        "data": ", ".join(source.path for source in data.sources()),
        "split": split,
        "chosen": "first in stored order" if seed is None else f"drawn by seed {seed}",
        "image_trees": str(data.image_trees).lower(),
        "image_ops": " ".join(data.image_ops) or "none",
        "max_pixels": "the processor's" if data.max_pixels is None else f"{data.max_pixels:,}",
        "turns_per_image": str(data.turns_per_image or "all"),
    }
    return Sheet(options, len(pc.unique(everything["record"])), entries)


def choose_records(table: pa.Table, count: int, seed: int | None) -> pa.Table:
    """The rows of `read_mixture` about `count` records: the first, or those drawn by the seed, in stored order."""
    records = pc.unique(table["record"]).to_numpy()
    if seed is not None:
        records = np.random.default_rng(seed).permutation(records)
    return table.filter(pc.is_in(table["record"], pa.array(records[:count])))


def read_boxes(sources: list[DataSource], split: str, table: pa.Table) -> dict[int, list[dict[str, Any]]]:
    """The boxes of the records of a table, also those that no text names, by the number of the record."""
    named = pa.table({name: table[name] for name in ("record", "source", "images")}).to_pylist()
    found = {}
    for number, source in enumerate(sources):
        stored = pq.read_table(Path(source.path) / f"{split}.parquet", columns=["images", "boxes"])
        places = {tuple(images): place for place, images in enumerate(stored["images"].to_pylist())}
        for row in named:
            if row["source"] == number:
                found[row["record"]] = stored["boxes"][places[tuple(row["images"])]].as_py()
    return found


class Previewer:
    """Records as entries, by the collator of a training with these options."""

    def __init__(self, processor: ProcessorMixin, backbone: Backbone, data: DataArguments) -> None:
        self.processor = processor
        self.backbone = backbone
        self.data = data
        collator = TreeCollator if data.image_trees else DialogueCollator
        self.collate = collator(processor, backbone, data.image_ops)

    def entry(
        self,
        dialogues: list[Dialogue],
        trees: list[list[Dialogue]],
        boxes: list[dict[str, Any]],
        left_out: list[tuple[str, str]],
    ) -> Entry:
        """All `dialogues` of a record, of which training takes the `trees`."""
        images, root = dialogues[0]["images"], Path(dialogues[0]["image_root"])
        undrawn = len(dialogues) - len(left_out) - sum(map(len, trees))
        sizes = [header_size(root, image) for image in images]
        broken = [f"{image}: {why}" for image, why in zip(images, sizes, strict=True) if isinstance(why, str)]
        problem = "; ".join(broken)
        pictures: list[Picture] = []
        samples: list[Sample] = []
        try:
            for tree in trees if not problem else []:
                batch = self.collate([[tree]] if self.data.image_trees else tree)
                samples.append(self.sample(batch, tree))
                if len(samples) == 1:
                    pictures = [
                        Picture(image, sizes[number], self.views(batch, number, dialogues[0], boxes))
                        for number, image in enumerate(images)
                    ]
        except InputError as error:
            return Entry(images, str(error), [], [], left_out, undrawn)
        return Entry(images, problem, pictures, samples, left_out, undrawn)

    def sample(self, batch: dict[str, torch.Tensor], dialogues: list[Dialogue]) -> Sample:
        """What stands in a batch of one row."""
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        if "segments" in batch:
            tree, branch = batch["segments"][0].unbind(-1)
            branch = torch.where(tree == 0, branch, PADDING)  # behind a text without image stands a blank one
        else:
            branch = torch.where(batch["attention_mask"][0].bool(), TRUNK + 1, PADDING)
        trunk = ids[branch == TRUNK].tolist()
        branches = []
        for number, dialogue in enumerate(dialogues, start=TRUNK + 1):
            own = branch == number
            start = int(batch["position_ids"].reshape(-1, len(ids))[0, own][0]) if "position_ids" in batch else None
            pieces = pieces_of(self.collate, ids[own].tolist(), (labels[own] != IGNORED).tolist(), trunk)
            branches.append(Branch(dialogue["id"], dialogue["subset"], dialogue["task"], start, pieces))
        return Sample(pieces_of(self.collate, trunk, (labels[branch == TRUNK] != IGNORED).tolist(), []), branches)

    def views(
        self, batch: dict[str, torch.Tensor], number: int, dialogue: Dialogue, boxes: list[dict[str, Any]]
    ) -> list[ShownView]:
        """How the model sees an image of a record; boxes lie in the first."""
        views = self.backbone.views(self.processor, batch, number)
        moving = any(name in AUGMENTING_OPS for name, _ in parse_ops(self.data.image_ops))
        if number > 0 or (moving and dialogue["split"] == "train"):
            boxes = []
        size = dialogue["width"], dialogue["height"]
        frame = frame_of(self.processor, self.backbone, self.data.image_ops, *size)
        return [show(view, boxes, frame.then(view.frame)) for view in views]


def show(view: View, boxes: list[dict[str, Any]], frame: Frame) -> ShownView:
    """A view with the boxes that reach into it; `frame` is the view's of the stored image."""
    height, width, _ = view.pixels.shape
    picture = Image.fromarray(view.pixels)
    picture.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
    outlines = []
    for number, box in enumerate(boxes):
        corners = [frame.inside(x, y) for x, y in corners_of(box["points"])]
        across, down = zip(*corners, strict=True)
        if max(across) > 0 and max(down) > 0 and min(across) < width and min(down) < height:
            outlines.append(Outline(f"{number} {box['label']}", corners))
    return ShownView(picture, (width, height), view.tiles, outlines)


def corners_of(points: list[float]) -> list[tuple[float, float]]:
    """The four corners of a stored box."""
    if len(points) == 4:
        x, y, width, height = points
        return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return list(zip(points[::2], points[1::2], strict=True))
