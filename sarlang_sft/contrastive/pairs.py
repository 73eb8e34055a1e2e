"""Image-text pairs from data folders or CSV files, and which texts are true of which images."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import path_inside
from sarlang_sft.records import SCHEMA, check_not_in_shards, flatten_dialogues, image_root_of, open_split
from sarlang_sft.scoring.predictions import CAPTION_TASK

CSV_COLUMNS = ("imgpath", "caption")  # of SARVLM-1M


@dataclass
class Pairs:
    """Captions with their images.

    Attributes:
        paths: Every image once.
        texts: Every caption text once, as it is worded.
        image: Row in `paths` of each pair, (N,) int64.
        text: Row in `texts` of each pair, (N,) int64.
        sources: Of each image, the data set that it comes from.
    """

    paths: list[Path]
    texts: list[str]
    image: np.ndarray
    text: np.ndarray
    sources: list[str]

    def __post_init__(self) -> None:
        order = np.argsort(self.image, kind="stable")
        self.order = order
        self.starts = np.searchsorted(self.image[order], np.arange(len(self.paths) + 1))
        known = np.unique(self.image * len(self.texts) + self.text)
        self.known = known  # image x texts + text, of all that are true, sorted

    def __len__(self) -> int:
        return len(self.image)

    def of_image(self, image: int) -> np.ndarray:
        """The pairs of an image, in their order."""
        return self.order[self.starts[image] : self.starts[image + 1]]

    def captions_of(self, image: int) -> list[str]:
        """The texts of an image."""
        return [self.texts[self.text[pair]] for pair in self.of_image(image)]

    def true_of(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """(I, T) bool: whether a text is among the captions of an image.

        Args:
            images: (I,) rows of `paths`.
            texts: (T,) rows of `texts`.
        """
        wanted = images[:, None] * len(self.texts) + texts[None, :]
        place = np.minimum(np.searchsorted(self.known, wanted), len(self.known) - 1)
        return self.known[place] == wanted

    def one_per_image(self, rng: np.random.Generator) -> np.ndarray:
        """One pair of every image, drawn at random."""
        lengths = np.diff(self.starts)
        some = np.flatnonzero(lengths)
        return self.order[self.starts[some] + rng.integers(0, lengths[some])]


def make_pairs(paths: Sequence[Path], captions: Sequence[str], sources: Sequence[str]) -> Pairs:
    """Pairs of rows that belong together; equal images and equal texts become one."""
    images = {path: row for row, path in enumerate(dict.fromkeys(paths))}
    texts = {text: row for row, text in enumerate(dict.fromkeys(captions))}
    source_of = dict(zip(paths, sources, strict=True))
    return Pairs(
        list(images),
        list(texts),
        np.array([images[path] for path in paths], np.int64),
        np.array([texts[text] for text in captions], np.int64),
        [source_of[path] for path in images],
    )


def read_pairs(
    data: Path,
    split: str,
    image_root: str | None = None,
    subsets: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Pairs:
    """The captions (dialogues of the task `description`) of a split of a data folder.

    Args:
        subsets: Take captions of these alone; none: all.
        leave_out: Names of sources whose images are not taken, for honest zero-shot figures on them.
        only: Names of sources whose images alone are taken; none: all.

    Raises:
        InputError: There is no such split, source or subset, or no caption is left.
    """
    check_not_in_shards(data)
    root = image_root_of(data, image_root)
    with open_split(data, split, SCHEMA.names) as file:
        table = file.read(columns=["images", "source", "dialogues"])
    known = set(table["source"].to_pylist())
    for option, names in (("leave_out", leave_out), ("only", only)):
        if wrong := sorted({*names} - known):
            raise InputError(
                f"{option} {wrong[0]}: no source of {data} ({split}); it has {', '.join(sorted(map(str, known)))}"
            )
    if only:
        table = table.filter(pc.is_in(table["source"], pa.array(list(only), pa.string())))
    if leave_out:
        table = table.filter(pc.invert(pc.is_in(table["source"], pa.array(list(leave_out), pa.string()))))
    flat = flatten_dialogues(table, ["images", "source"])
    flat = flat.filter(pc.equal(flat["task"], CAPTION_TASK))
    flat = flat.filter(pc.equal(pc.list_value_length(flat["images"]), 1))
    if subsets:
        held = set(flat["subset"].unique().to_pylist())
        if wrong := sorted({*subsets} - held):
            raise InputError(
                f"subsets {wrong[0]}: {data} ({split}) has no captions of it; it has {', '.join(sorted(held))}"
            )
        flat = flat.filter(pc.is_in(flat["subset"], pa.array(list(subsets), pa.string())))
    if not len(flat):
        raise InputError(f"data {data}: split {split} has no captions of single images; convert it with captions")
    captions = [turns[-1]["answer"] for turns in flat["turns"].to_pylist()]
    names = [images[0] for images in flat["images"].to_pylist()]
    inside = {name: path_inside(root, name) for name in dict.fromkeys(names)}
    return make_pairs([inside[name] for name in names], captions, flat["source"].to_pylist())


def read_csv_pairs(file: Path, image_root: Path) -> Pairs:
    """The pairs of a comma CSV with the columns `imgpath` and `caption`, as SARVLM-1M publishes its tests.

    Raises:
        InputError: The file has other columns, or no row, or a row without a caption or with a path out of the root.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if missing := [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(
                    f"{file}: has no column `{missing[0]}` but {', '.join(reader.fieldnames or ['none'])}; the header "
                    "must be imgpath,caption, separated by commas"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: is no CSV file in UTF-8 ({error})") from error
    if not rows:
        raise InputError(f"{file}: holds no pairs")
    for number, row in enumerate(rows, 2):
        if not (row["imgpath"] or "").strip() or not (row["caption"] or "").strip():
            raise InputError(f"{file}: line {number}: the image or the caption is empty")
    inside = {row["imgpath"]: path_inside(image_root, row["imgpath"]) for row in rows}
    paths = [inside[row["imgpath"]] for row in rows]
    return make_pairs(paths, [row["caption"] for row in rows], [file.stem] * len(rows))
