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
from sarlang_sft.records import SCHEMA, SPLITS, check_not_in_shards, flatten_dialogues, image_root_of, open_split
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

    def among(self, rows: np.ndarray) -> tuple["Pairs", np.ndarray]:
        """Only the images and texts of the pairs `rows`, with every pair between them.

        Args:
            rows: (n,) pairs, each once.

        Returns:
            The pairs, and (n,) which of them `rows` are.
        """
        images, texts = np.unique(self.image[rows]), np.unique(self.text[rows])
        kept = np.flatnonzero(np.isin(self.image, images) & np.isin(self.text, texts))
        fewer = Pairs(
            [self.paths[image] for image in images],
            [self.texts[text] for text in texts],
            np.searchsorted(images, self.image[kept]),
            np.searchsorted(texts, self.text[kept]),
            [self.sources[image] for image in images],
        )
        return fewer, np.searchsorted(kept, rows)


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


def merge_pairs(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of all; equal images and equal texts become one."""
    rows = [
        (part.paths[image], part.texts[text], part.sources[image])
        for part in parts
        for image, text in zip(part.image, part.text, strict=True)
    ]
    return make_pairs(*zip(*rows, strict=True))


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
    known = _sources(data)
    for option, names in (("leave_out", leave_out), ("only", only)):
        if wrong := sorted({*names} - known):
            raise InputError(f"{option} {wrong[0]}: no source of {data}; it has {', '.join(sorted(map(str, known)))}")
    if only:
        table = table.filter(pc.is_in(table["source"], pa.array(list(only), pa.string())))
    if leave_out:
        table = table.filter(pc.invert(pc.is_in(table["source"], pa.array(list(leave_out), pa.string()))))
    flat = flatten_dialogues(table, ["images", "source"])
    flat = flat.filter(pc.equal(flat["task"], CAPTION_TASK))
    flat = flat.filter(pc.equal(pc.list_value_length(flat["images"]), 1))
    if not len(flat):
        chosen = [
            f"{option} {' '.join(names)}" for option, names in (("leave_out", leave_out), ("only", only)) if names
        ]
        way_out = "take in other sources" if chosen else "convert it with captions"
        with_these = f" with {' and '.join(chosen)}" * bool(chosen)
        raise InputError(f"data {data}: split {split} has no captions of single images{with_these}; {way_out}")
    if subsets:
        held = set(flat["subset"].unique().to_pylist())
        if wrong := sorted({*subsets} - held):
            raise InputError(
                f"subsets {wrong[0]}: {data} ({split}) has no captions of it; it has {', '.join(sorted(held))}"
            )
        flat = flat.filter(pc.is_in(flat["subset"], pa.array(list(subsets), pa.string())))
    captions = [turns[-1]["answer"] for turns in flat["turns"].to_pylist()]
    names = [images[0] for images in flat["images"].to_pylist()]
    inside = {name: path_inside(root, name) for name in dict.fromkeys(names)}
    return make_pairs([inside[name] for name in names], captions, flat["source"].to_pylist())


def _sources(data: Path) -> set[str]:
    """Those of every split: a source may be left out of val that only train has."""
    found: set[str] = set()
    for split in SPLITS:
        if (data / f"{split}.parquet").is_file():
            with open_split(data, split, ["source"]) as file:
                found |= set(file.read(columns=["source"])["source"].unique().to_pylist())
    return found


def read_csv_pairs(file: Path, image_root: Path) -> Pairs:
    """The pairs of a comma CSV with the columns `imgpath` and `caption`, as SARVLM-1M publishes its tests.

    Raises:
        InputError: The file has other columns, or no row, or a row with too many fields, without a caption or with a
            path out of the root; or there is no such root.
    """
    if not image_root.is_dir():
        raise InputError(f"image_root {image_root}: no such folder; give the one that {file}'s paths start from")
    inside: dict[str, Path] = {}
    names, captions = [], []
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if missing := [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(
                    f"{file}: has no column `{missing[0]}` but {', '.join(reader.fieldnames or ['none'])}; the header "
                    "must be imgpath,caption, separated by commas"
                )
            for row in reader:
                name, caption = row["imgpath"], row["caption"]
                if None in row:
                    raise InputError(
                        f"{file}: line {reader.line_num}: has more fields than the header; a caption with commas must "
                        "be in double quotes"
                    )
                if not (name or "").strip() or not (caption or "").strip():
                    raise InputError(f"{file}: line {reader.line_num}: the image or the caption is empty")
                if name not in inside:
                    inside[name] = _inside(image_root, name, f"{file}: line {reader.line_num}")
                names.append(name)
                captions.append(caption)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: is no CSV file in UTF-8 ({error})") from error
    if not names:
        raise InputError(f"{file}: holds no pairs")
    return make_pairs([inside[name] for name in names], captions, [file.stem] * len(names))


def _inside(root: Path, name: str, place: str) -> Path:
    try:
        return path_inside(root, name)
    except ValueError as error:  # a zero byte is one, too
        raise InputError(f"{place}: {error}") from error
