"""The published SARLANG-1M release (arXiv 2504.03254) to records: what names and words tell, and converting."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import header_size
from sarlang_sft.image_lookup import NOT_FOUND, ImageFolder, NoImageError, stem_of
from sarlang_sft.processes import in_processes
from sarlang_sft.records import SCHEMA, Rejection, carve_val, check_fraction, file_hash, one_turn_dialogues
from sarlang_sft.sarlang_texts import CAPTION_PROMPT, Part, Row, TextFile, find_text_files, read_rows

VQA_PROMPT = "Question: {question}. Answer the question concisely."
CLASS_PREFIX = "The classes are: tank, car, aircraft, harbor, bridge, ship."
POSITION_PREFIX = "The classes are: top, center, bottom, left, right."
_PREFIX = re.compile(r"^\s*The classes are:[^.]*\.\s*", re.IGNORECASE)

Rules = list[tuple[re.Pattern[str], str]]


def _rules(*rules: tuple[str, str]) -> Rules:
    return [(re.compile(pattern, re.IGNORECASE), name) for pattern, name in rules]


def _decide(rules: Rules, text: str, otherwise: str) -> str:
    """The name behind the first pattern that is found in a text."""
    return next((name for pattern, name in rules if pattern.search(text)), otherwise)


# Anything else is one of the paper's Others.
TASK_RULES = _rules(
    (r"\bin the (area|region) \[", "referring"),
    (r"^\s*(how many|count)\b|\bnumber of\b", "counting"),
    (r"^\s*(is|are|does|do|has|have|can)\b", "identification"),
    (r"^\s*where\b|\bpositioned\b", "positioning"),
    (r"^\s*(what|which) (type|kind) of area\b|\bcategor(y|ies)\b|^\s*(what|which) (class|object)", "classification"),
)

# The paper's five kinds of Others; a question of none of these four asks for reasoning.
OTHERS_RULES = _rules(
    (r"\bshapes?\b|\bshaped\b", "shape"),
    (r"\b(direction|orientation|oriented)\b", "direction"),
    (r"\bland[ -]?(cover|use)\b", "land_cover"),
    (r"\b(pattern|arrange[dm]|arrangement|layout|laid out)", "pattern"),
)

SIMULATED = "simulator"
SARDET = "SARDet-100K"
SARLANG_SOURCES = {"SpaceNet6", "DFC2023", "OpenEarthMap-SAR", SARDET}
SOURCE_RULES = _rules(
    (r"^SIM_", SIMULATED),
    (r"^SN6_", "SpaceNet6"),
    (r"^GF\d_", "DFC2023"),
    (r"^\d+$", SARDET),
    (r"^(SV|[A-Za-z]+)_", "OpenEarthMap-SAR"),
)

# Folders of SARDet-100K by the split of the texts, the likeliest first: SARVQA1_test asks about its val images.
SARDET_FOLDERS = {"train": ("train",), "test": ("val", "test")}
RESOLUTION_M = {"SpaceNet6": 0.5}  # the other sources mix resolutions
SPECIAL_TOKEN = re.compile(r"<\|\w+\|>|<image>")
_ROWS_AT_ONCE = 1 << 16
HEADERS_AT_ONCE = 512
_FLAT = pa.schema(
    [
        ("image", pa.int32()),
        ("file", pa.int32()),
        ("row", pa.int32()),
        ("split", pa.string()),
        ("subset", pa.string()),
        ("task", pa.string()),
        ("style", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)


def task_of(question: str) -> str:
    """The application of a VQA question, recognised from its words behind an official list of classes."""
    return _decide(TASK_RULES, _PREFIX.sub("", question), "others")


def others_kind(question: str) -> str:
    """Which of the paper's five kinds a question of the task `others` is."""
    return _decide(OTHERS_RULES, question, "reasoning")


def source_of(stem: str) -> str:
    """The data set that an image comes from, by its name."""
    return _decide(SOURCE_RULES, stem, "unknown")


def style_of(caption: str) -> str:
    """`complex` for captions of several sentences or more than 20 words, else `concise`.

    The training file mixes both styles unmarked; the published concise captions are one short sentence.
    """
    sentences = re.findall(r"[.!?](?:\s|$)", caption.strip())
    return "complex" if len(sentences) > 1 or len(caption.split()) > 20 else "concise"


class Prompts(NamedTuple):
    """How questions are put: `vqa` holds `{question}`; `class_prefix` is `auto`, `always` or `never`."""

    caption_concise: str = CAPTION_PROMPT
    caption_complex: str = CAPTION_PROMPT
    vqa: str = VQA_PROMPT
    class_prefix: str = "auto"


def check_prompts(vqa: str, **captions: str) -> None:
    """Raise [`InputError`] on prompts that put no question, or break every sample; named as the options are."""
    if "{question}" not in vqa:
        raise InputError("--vqa_prompt must hold {question}, the place of the question")
    for name, prompt in {"vqa": vqa, **captions}.items():
        if not prompt.strip() or SPECIAL_TOKEN.search(prompt):
            raise InputError(f"--{name}_prompt {prompt!r}: is empty, or holds a token that chat templates write")


class Conversion(NamedTuple):
    """What [`convert`] gives: records as a table of `records.SCHEMA`, a rejection for every row in none of them, and
    the hash of every file read."""

    records: pa.Table
    rejections: list[Rejection]
    inputs: dict[str, str]


def convert(root: Path, image_root: Path, val_fraction: float, prompts: Prompts) -> Conversion:
    """Read the release into records; columnar, so that a million rows take seconds and little memory.

    Args:
        root: Holds the text files at any depth, or is `Text.zip`.
        image_root: Holds the images at any depth; record paths are relative to it.
        val_fraction: Of the training images, carved out as `val`.
    """
    check_fraction(val_fraction)
    files = [twins[0] for twins in find_text_files(root).values()]
    folder = ImageFolder(image_root)
    kinds = {file.part.kind for file in files}
    prefixed = prompts.class_prefix == "always" or (prompts.class_prefix == "auto" and {"vqa1", "vqa2"} <= kinds)
    numbers: dict[str, int] = {}
    rejections: list[Rejection] = []
    batches = []
    for number, file in enumerate(files):
        usable = _usable(file, file.name(root), folder, numbers, rejections)
        flat = ((image, number, *_flat_row(row, file.part, prompts, prefixed)) for image, row in usable)
        while chunk := list(islice(flat, _ROWS_AT_ONCE)):
            columns = zip(_FLAT, zip(*chunk, strict=True), strict=True)
            batches.append(pa.record_batch([pa.array(values, field.type) for field, values in columns], _FLAT))
    _say_what_is_missing(rejections, folder.index, numbers)
    images = list(numbers)
    read, remedy = partial(header_size, image_root), "run it again with less beside it"
    sizes = list(in_processes(read, images, None, HEADERS_AT_ONCE, "image headers", remedy))
    table, broken = _without_broken(pa.Table.from_batches(batches, _FLAT), files, root, images, sizes)
    records = _records(table, files, images, sizes)
    inputs = {file.outer(root): file_hash(file.path) for file in files}
    return Conversion(carve_val(records, val_fraction), rejections + broken, inputs)


def _usable(
    file: TextFile, name: str, images: ImageFolder, numbers: dict[str, int], rejections: list[Rejection]
) -> Iterator[tuple[int, Row]]:
    """Rows with the number of their image, counted in `numbers` by its path; the others go to `rejections`."""
    for row in tqdm(read_rows(file), desc=name, unit=" rows"):
        problem = row.problem or _problem_in_text(row)
        try:
            folders = SARDET_FOLDERS[file.part.split] if stem_of(row.image).isdigit() else ()
            relative = "" if problem else images.locate(row.image, folders)
        except NoImageError as error:
            problem = str(error)
        if problem:
            rejections.append(Rejection(name, row.number, row.image, problem))
        else:
            yield numbers.setdefault(relative, len(numbers)), row


def _say_what_is_missing(rejections: list[Rejection], index: dict[str, list[str]], numbers: dict[str, int]) -> None:
    missing = sorted({stem_of(row.image) for row in rejections if row.reason == NOT_FOUND})
    if missing:
        print(f"  {len(missing):,} images that texts name were not found (such as {missing[0]!r})")
    unnamed = len(index) - len({stem_of(path) for path in numbers})
    if unnamed:
        print(f"  {unnamed:,} images are named by no text")


def _problem_in_text(row: Row) -> str | None:
    if row.question == "":
        return "empty question"
    if not row.answer:
        return "empty answer"
    if SPECIAL_TOKEN.search(row.answer) or SPECIAL_TOKEN.search(row.question or ""):
        return "special token in the text"
    return None


def _flat_row(row: Row, part: Part, prompts: Prompts, prefixed: bool) -> tuple[object, ...]:
    """The values of `_FLAT` behind `image` and `file`."""
    if row.question is None:
        style = part.style or style_of(row.answer)
        prompt = prompts.caption_concise if style == "concise" else prompts.caption_complex
        return row.number, part.split, f"caption_{style}", "description", style, prompt, row.answer
    task = task_of(row.question)
    question = row.question
    if prefixed and part.kind == "vqa1" and not _PREFIX.match(question):
        question = f"{POSITION_PREFIX if task == 'positioning' else CLASS_PREFIX} {question}"
    style = others_kind(row.question) if task == "others" else None
    return row.number, part.split, part.kind, task, style, prompts.vqa.replace("{question}", question), row.answer


def _without_broken(
    table: pa.Table, files: list[TextFile], root: Path, images: list[str], sizes: list[tuple[int, int] | str]
) -> tuple[pa.Table, list[Rejection]]:
    """The rows whose image has a size, and a rejection for each of the others."""
    broken = pa.array([number for number, size in enumerate(sizes) if isinstance(size, str)], pa.int32())
    is_broken = pc.is_in(table["image"], broken)
    rejections = [
        Rejection(files[row["file"]].name(root), row["row"], images[row["image"]], sizes[row["image"]])
        for row in table.filter(is_broken).select(["image", "file", "row"]).to_pylist()
    ]
    return table.filter(pc.invert(is_broken)), rejections


def _records(
    table: pa.Table, files: list[TextFile], images: list[str], sizes: list[tuple[int, int] | str]
) -> pa.Table:
    """Rows of `_FLAT` as records: those of one image and split together, in the order they were read."""
    key = np.asarray(table["image"]) + len(images) * np.asarray(pc.equal(table["split"], "test"))
    order = np.argsort(key, kind="stable")
    key, table = key[order], table.take(order).combine_chunks()
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    stems = pa.array([file.inner.stem for file in files], pa.string())
    ids = pc.binary_join_element_wise(stems.take(table["file"]), table["row"].cast(pa.string()), ":")
    dialogues = one_turn_dialogues(table.append_column("id", ids))
    image, count = np.asarray(table["image"])[starts], len(starts)
    sources = [source_of(Path(path).stem) for path in images]
    width, height = np.array([(0, 0) if isinstance(size, str) else size for size in sizes]).reshape(-1, 2)[image].T
    columns = {
        "images": pa.ListArray.from_arrays(np.arange(count + 1), pa.array(images, pa.string()).take(image)),
        "width": width,
        "height": height,
        "source": pa.array(sources, pa.string()).take(image),
        "split": table["split"].take(starts),
        "sensor": pa.nulls(count),
        "resolution_m": pa.array(map(RESOLUTION_M.get, sources), pa.float64()).take(image),
        "boxes": [[]] * count,
        "dialogues": pa.ListArray.from_arrays(np.append(starts, len(table)), dialogues),
    }
    return pa.table(columns).cast(SCHEMA)
