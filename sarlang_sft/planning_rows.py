"""What a row holds: of the data folder where there is one, else of dialogues like SARLANG-1M's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import ProcessorMixin

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import Backbone
from sarlang_sft.box_texts import write_table
from sarlang_sft.errors import InputError
from sarlang_sft.lengths import Lengths, measure
from sarlang_sft.mixture import Draw, read_mixture
from sarlang_sft.packing import Layout, find_left_out, make_trees, pack, tokens_of

SAMPLED_IMAGES = 2000
# arXiv 2504.03254: 955,372 questions and 31,968 captions to train on; 1,126,277 texts on 118,331 images.
PUBLISHED_TRAIN = 955_372 + 31_968
PUBLISHED_PER_IMAGE = 1_126_277 / 118_331
SIDE = 512  # pixels of most of its images
# Questions of the forms it prints, in about its shares of applications, and a caption.
TYPICAL = (
    *[("Are there any surrounding trees?", "Yes.")] * 4,
    ("What type of area is mostly visible?", "Forest/park."),
    ("How many harbors are located in the image?", "2."),
    *[("What is the object present in the area [56.0, 191.0, 112.0, 122.0]?", "aircraft.")] * 2,
    ("Where are most harbors positioned within the image?", "bottom."),
)
END_OF_ANSWER = 2  # tokens that are supervised behind every answer


@dataclass(frozen=True)
class RowStatistics:
    """Means of the planned rows.

    Attributes:
        source: Where they are from, in words.
        width: Of an image in pixels, before the processor.
        image_tokens: Of one image.
        images_per_row, dialogues_per_row, tokens_per_row, scored_per_row: Means.
        dialogues: Of an epoch.
        dialogues_per_image: Of the data.
        left_out: Share of dialogues that no row can hold.
    """

    source: str
    width: int
    height: int
    image_tokens: int
    images_per_row: float
    dialogues_per_row: float
    tokens_per_row: float
    scored_per_row: float
    dialogues: int
    dialogues_per_image: float
    left_out: float


def row_statistics(
    data: DataArguments, processor: ProcessorMixin, backbone: Backbone, context: int | None
) -> RowStatistics:
    """Plan rows of the dialogues of at most 2,000 images, drawn evenly, as training plans those of all.

    Raises:
        InputError: No row can hold any of the dialogues.
    """
    rng = np.random.default_rng(0)
    if any((Path(source.path) / "train.parquet").is_file() for source in data.sources()):
        table = read_mixture(data.sources(), "train")
        dialogues, source = len(table), f"{data.data}, {len(table):,} dialogues"
        records = np.unique(table["record"].to_numpy())
        per_image = dialogues / len(records)
        if len(records) > SAMPLED_IMAGES:
            kept = rng.choice(records, SAMPLED_IMAGES, replace=False)
            table = table.filter(pa.array(np.isin(table["record"].to_numpy(), kept)))
            source += f", rows from {SAMPLED_IMAGES:,} of {len(records):,} images"
        table, _ = write_table(table, processor, backbone, data.image_ops)
    else:
        dialogues, per_image = PUBLISHED_TRAIN, PUBLISHED_PER_IMAGE
        source = f"no data folder {data.data}: SARLANG-1M's published counts, questions of its printed forms"
        table = _typical_table(rng)
    lengths = measure(table, processor, backbone, data.image_ops)
    layout = Layout(data.image_trees, data.max_tokens_per_row, data.turns_per_image, 1, context=context)
    usable = np.ones(len(table), dtype=bool)
    usable[[item.dialogue for item in find_left_out(lengths, layout)]] = False
    if not usable.any():
        raise InputError(f"max_tokens_per_row {data.max_tokens_per_row}: no dialogue fits into a row; raise it")
    draw = Draw(np.flatnonzero(usable), np.zeros(usable.sum(), dtype=np.int64))
    trees = make_trees(draw, lengths, layout, rng)
    rows = pack(trees, lengths, layout, rng)
    drawn = sum(len(tree) for tree in trees)
    seen = lengths.visual[lengths.visual > 0]
    return RowStatistics(
        source=source,
        width=int(np.median(table["width"].to_numpy())),
        height=int(np.median(table["height"].to_numpy())),
        image_tokens=int(np.median(seen)) if len(seen) else 0,
        images_per_row=len(trees) / len(rows),
        dialogues_per_row=drawn / len(rows),
        tokens_per_row=sum(tokens_of(tree, lengths) for tree in trees) / len(rows),
        scored_per_row=_scored(table, processor, lengths) * drawn / len(rows),
        dialogues=int(dialogues * usable.mean() * drawn / usable.sum()),
        dialogues_per_image=per_image,
        left_out=float(1 - usable.mean()),
    )


def _scored(table: pa.Table, processor: ProcessorMixin, lengths: Lengths) -> float:
    """Supervised tokens of a dialogue, on average."""
    answers = [turn["answer"] for turns in table["turns"].to_pylist() for turn in turns]
    counts = [len(ids) + END_OF_ANSWER for ids in processor.tokenizer(answers, add_special_tokens=False)["input_ids"]]
    return sum(counts) / len(lengths.record)


def _typical_table(rng: np.random.Generator) -> pa.Table:
    counts = rng.poisson(PUBLISHED_PER_IMAGE - 1, SAMPLED_IMAGES) + 1
    record = np.repeat(np.arange(SAMPLED_IMAGES), counts)
    chosen = rng.integers(len(TYPICAL), size=len(record))
    return pa.table(
        {
            "record": record,
            "images": [["image"]] * len(record),
            "width": np.full(len(record), SIDE),
            "height": np.full(len(record), SIDE),
            "turns": [[dict(zip(("question", "answer"), TYPICAL[number], strict=True))] for number in chosen],
        }
    )
