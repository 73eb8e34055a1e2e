"""What a row holds: of the data folder where there is one, else of dialogues like SARLANG-1M's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sarlang_sft.arguments import DataArguments
from sarlang_sft.box_texts import write_table
from sarlang_sft.errors import InputError
from sarlang_sft.lengths import Lengths, measure
from sarlang_sft.mixture import DataSource, Draw, Mixture, read_mixture
from sarlang_sft.object_store import is_url
from sarlang_sft.packing import Layout, find_left_out, make_trees, pack, tokens_of
from sarlang_sft.planning.published import Architecture
from sarlang_sft.records import write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert

SAMPLED_IMAGES = 2000
SAMPLE_SCENES = 200  # as many as the recipes make where a demo's data are missing
END_OF_ANSWER = 2  # tokens that are supervised behind every answer

# arXiv 2504.03254: all texts by application, all images, and the texts to train on (questions and captions).
PUBLISHED_IMAGES = 118_331
PUBLISHED_TRAIN = 955_372 + 31_968
SIDE = 512  # pixels of most of its images


class Form(NamedTuple):
    """A question of a form that SARLANG-1M prints, and the published number of its application's texts."""

    task: str
    texts: int
    question: str
    answer: str


DESCRIBE = "Describe the content of this image in one sentence."
FORMS = (
    Form("identification", 484_620, "Are there any surrounding trees?", "Yes."),
    Form("referring", 221_450, "What is the object present in the area [56.0, 191.0, 112.0, 122.0]?", "aircraft."),
    Form("classification", 132_525, "What type of area is mostly visible?", "Forest/park."),
    Form("counting", 117_382, "How many harbors are located in the image?", "2."),
    Form("positioning", 106_171, "Where are most harbors positioned within the image?", "bottom."),
    Form("others", 18_479, "What shape are the swimming pools?", "Rectangular."),
    # Its captions are longer or shorter; this one is ours.
    Form("description", 45_650, DESCRIBE, "The radar image shows a coastal town with a harbor, bright metal roofs "
         "along two parallel roads, and dark fields behind them that reach up to the edge of a forest."),
)  # fmt: skip


@dataclass(frozen=True)
class Dialogues:
    """Dialogues to plan with.

    Attributes:
        table: Rows as `read_mixture` gives them, of some of the images.
        draw: What an epoch takes of the table.
        count: Of an epoch of all images.
        per_image: Dialogues of an image, on average.
        source: Where they are from, in words.
    """

    table: pa.Table
    draw: Draw
    count: int
    per_image: float
    source: str

    @property
    def texts(self) -> list[str]:
        """Their different questions and answers."""
        turns = [turn for dialogue in self.table["turns"].to_pylist() for turn in dialogue]
        return sorted({text for turn in turns for text in (turn["question"], turn["answer"])})


@dataclass(frozen=True)
class RowStatistics:
    """Means of the planned rows.

    Attributes:
        source: Where they are from, in words.
        width, height: Of an image in pixels, before the processor.
        image_tokens: Of one image.
        images_per_row, dialogues_per_row, tokens_per_row, scored_per_row: Means.
        longest: Tokens of the longest row.
        dialogues: Of an epoch.
        dialogues_per_image: Of the data.
        left_out: Share of dialogues that no row can hold.
        exact: Tokens of texts are the model's own.
    """

    source: str
    width: int
    height: int
    image_tokens: int
    images_per_row: float
    dialogues_per_row: float
    tokens_per_row: float
    scored_per_row: float
    longest: int
    dialogues: int
    dialogues_per_image: float
    left_out: float
    exact: bool


def find_dialogues(data: DataArguments) -> Dialogues:
    """Dialogues of 2,000 images of the data, here or at a URL; of simulated ones for a demo; else published counts."""
    if any(is_url(source.path) or (Path(source.path) / "train.parquet").is_file() for source in data.sources()):
        return _read(data.sources(), f"{data.data}")
    if data.data == data.sample_folder:
        with _simulated(data) as sources:
            return _read(sources, f"{SAMPLE_SCENES} simulated scenes, as training makes them")
    return _published(data)


def row_statistics(dialogues: Dialogues, data: DataArguments, architecture: Architecture) -> RowStatistics:
    """Plan rows of the dialogues as training plans those of all.

    Raises:
        InputError: No row can hold any of the dialogues.
    """
    rng = np.random.default_rng(0)
    processor, backbone = architecture.processor, architecture.backbone
    context = architecture.config.get_text_config().max_position_embeddings
    table, _ = write_table(dialogues.table, processor, backbone, data.image_ops)
    lengths = measure(table, processor, backbone, data.image_ops)
    layout = Layout(data.image_trees, data.max_tokens_per_row, data.turns_per_image, 1, context=context)
    usable = np.ones(len(table), dtype=bool)
    usable[[item.dialogue for item in find_left_out(lengths, layout)]] = False
    kept = usable[dialogues.draw.dialogue]
    if not kept.any():
        raise InputError(f"max_tokens_per_row {data.max_tokens_per_row}: no dialogue fits into a row; raise it")
    draw = Draw(dialogues.draw.dialogue[kept], dialogues.draw.visit[kept])
    trees = make_trees(draw, lengths, layout, rng)
    rows = pack(trees, lengths, layout, rng)
    drawn = sum(len(tree) for tree in trees)
    tokens = [sum(tokens_of(tree, lengths) for tree in row) for row in rows]
    seen = lengths.visual[lengths.visual > 0]
    return RowStatistics(
        source=dialogues.source,
        width=int(np.median(table["width"].to_numpy())),
        height=int(np.median(table["height"].to_numpy())),
        image_tokens=int(np.median(seen)) if len(seen) else 0,
        images_per_row=len(trees) / len(rows),
        dialogues_per_row=drawn / len(rows),
        tokens_per_row=sum(tokens) / len(rows),
        scored_per_row=_scored(table, architecture, lengths) * drawn / len(rows),
        longest=max(tokens),
        dialogues=int(dialogues.count * drawn / len(kept)),
        dialogues_per_image=dialogues.per_image,
        left_out=float(1 - kept.mean()),
        exact=architecture.counts_exactly,
    )


def _scored(table: pa.Table, architecture: Architecture, lengths: Lengths) -> float:
    """Supervised tokens of a dialogue, on average."""
    answers = [turn["answer"] for turns in table["turns"].to_pylist() for turn in turns]
    ids = architecture.processor.tokenizer(answers, add_special_tokens=False)["input_ids"]
    return sum(len(answer) + END_OF_ANSWER for answer in ids) / len(lengths.record)


def _read(sources: list[DataSource], name: str) -> Dialogues:
    table = read_mixture(sources, "train")
    rng = np.random.default_rng(0)
    draw = Mixture(sources, table).draw(rng, np.ones(len(table), dtype=bool))
    record = table["record"].to_numpy()
    records = np.unique(record)
    count, per_image = len(draw.dialogue), len(table) / len(records)
    source = f"{name}, {count:,} dialogues an epoch"
    if len(records) > SAMPLED_IMAGES:
        shown = np.isin(record, rng.choice(records, SAMPLED_IMAGES, replace=False))
        place, chosen = np.cumsum(shown) - 1, shown[draw.dialogue]
        draw = Draw(place[draw.dialogue[chosen]], draw.visit[chosen])
        table = table.filter(pa.array(shown))
        source += f", rows from {SAMPLED_IMAGES:,} of {len(records):,} images"
    return Dialogues(table, draw, count, per_image, source)


@contextmanager
def _simulated(data: DataArguments) -> Iterator[list[DataSource]]:
    with TemporaryDirectory() as folder:
        sample, out = Path(folder) / "sample", Path(folder) / "data"
        write_sample(sample, SAMPLE_SCENES, seed=0)
        records, rejections, inputs = convert(sample, sample / data.sample_images, 0.02, Prompts())
        write_data_folder(out, records, rejections, sample / data.sample_images, inputs)
        yield [replace(source, path=str(out)) for source in data.sources()]


def _published(data: DataArguments) -> Dialogues:
    forms = [form for form in FORMS if not data.tasks or form.task in data.tasks]
    if not forms:
        raise InputError(f"data {data.data}: no such folder, and SARLANG-1M has no {' or '.join(data.tasks)}")
    texts = np.array([form.texts for form in forms])
    per_image = float(texts.sum()) / PUBLISHED_IMAGES
    rng = np.random.default_rng(0)
    counts = rng.poisson(max(per_image - 1, 0), SAMPLED_IMAGES) + 1
    record = np.repeat(np.arange(SAMPLED_IMAGES), counts)
    chosen = rng.choice(len(forms), size=len(record), p=texts / texts.sum())
    table = pa.table(
        {
            "record": record,
            "images": [["image"]] * len(record),
            "width": np.full(len(record), SIDE),
            "height": np.full(len(record), SIDE),
            "boxes": pa.nulls(len(record)),
            "turns": [[{"question": forms[number].question, "answer": forms[number].answer}] for number in chosen],
        }
    )
    count = round(PUBLISHED_TRAIN * texts.sum() / sum(form.texts for form in FORMS))
    source = f"no data folder {data.data}: SARLANG-1M's published counts, questions of its printed forms"
    draw = Draw(np.arange(len(record)), np.zeros(len(record), dtype=np.int64))
    return Dialogues(table, draw, count, max(per_image, 1.0), source)
