"""Boxes of a set to records with dialogues: every text built, read back and checked, in several processes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from sarlang_sft.annotations.model import LabelledImage
from sarlang_sft.errors import InputError
from sarlang_sft.language.balance import choose_identifications, choose_named_boxes
from sarlang_sft.language.captions import box_captions
from sarlang_sft.language.checking import check_dialogue
from sarlang_sft.language.dialogues import Said, YesNo, grounding, vqa
from sarlang_sft.language.facts import facts_of
from sarlang_sft.language.reading import Reader, make_reader
from sarlang_sft.language.things import name_things
from sarlang_sft.language.truth import look_at
from sarlang_sft.language.wording import Wording, make_wording
from sarlang_sft.processes import in_processes
from sarlang_sft.records import SCHEMA, Box, Rejection

TEXTS = ("vqa", "captions", "grounding")
IMAGES_AT_ONCE = 500


@dataclass
class TextArguments:
    """What is said of every image."""

    texts: list[str] = field(
        default_factory=lambda: list(TEXTS),
        metadata={"help": "What to build: questions (vqa), captions, dialogues that name boxes (grounding)."},
    )
    wording: str = field(default="en", metadata={"help": "Words: en, sarlang (its printed forms alone), or a file."})
    captions: int = field(default=5, metadata={"help": "Captions of an image, as far as its boxes allow so many."})
    boxes_asked: int = field(
        default=100, metadata={"help": "Boxes of an image at most whose class, or place, is asked for."}
    )
    seed: int = field(default=0, metadata={"help": "Draws forms, classes of no questions, and the order of things."})

    def __post_init__(self) -> None:
        if unknown := {*self.texts} - {*TEXTS}:
            raise ValueError(f"--texts {' '.join(sorted(unknown))}: choose among {', '.join(TEXTS)}")
        if not self.texts or self.captions < 0 or self.boxes_asked < 0:
            raise ValueError("--texts must name something; --captions and --boxes_asked must not be negative")

    def facts(self, wording: Wording) -> dict[str, Any]:
        """For the manifest: what decides the texts of given boxes."""
        options = {"texts": self.texts, "captions": self.captions, "boxes_asked": self.boxes_asked, "seed": self.seed}
        return {"wording": {"name": wording.name, "hash": wording.hash}, "text_arguments": options}


class Task(NamedTuple):
    """An image and what is asked of it beside what its own boxes decide."""

    image: LabelledImage
    identifications: list[YesNo]
    named: int | None
    verifications: list[YesNo]


class Built(NamedTuple):
    """What was built of a set.

    Attributes:
        records: Of `SCHEMA`, the images that have dialogues.
        rejections: One for every dialogue that the checker did not agree with: none, unless the names of classes
            read like something else.
        classes: Labels in the order of texts.
    """

    records: pa.Table
    rejections: list[Rejection]
    classes: list[str]


def build_texts(
    images: Sequence[LabelledImage],
    classes: Sequence[str],
    source: str,
    wording: Wording,
    arguments: TextArguments,
    workers: int | None = None,
) -> Built:
    """All dialogues of a set, as records; those of an image depend on the seed, its path and the balance of the set.

    Args:
        classes: Labels in the order in which texts list them; only those with a box count.
        source: Name of the data set.
        workers: Processes; None: as many as there are cores.

    Raises:
        InputError: There is no box, or texts could not tell two classes apart.
    """
    occurring = Counter(box.label for image in images for box in image.boxes)
    labels = tuple(label for label in classes if occurring[label])
    if not labels:
        raise InputError(f"--annotations: no usable box in {len(images):,} images; there is nothing to speak of")
    things = name_things(labels, wording)
    rng = np.random.default_rng(arguments.seed)
    identifications = choose_identifications(images, things, rng)
    named, verifications = choose_named_boxes(images, things, rng)
    tasks = map(Task, images, identifications, named, verifications)
    chunks = list(iter(lambda: list(islice(tasks, IMAGES_AT_ONCE)), []))
    build = partial(_build_some, source, wording.dump(), labels, arguments)
    workers = 1 if len(chunks) == 1 else workers
    built = list(in_processes(build, chunks, workers, 1, "chunks of images", "run it again with less beside it"))
    table = pa.Table.from_batches([batch for batch, _ in built], SCHEMA)
    return Built(table, [one for _, rejections in built for one in rejections], list(labels))


@lru_cache(maxsize=1)
def _tools(words: str, labels: tuple[str, ...]) -> Reader:
    """Made once in every process."""
    wording = make_wording("", yaml.safe_load(words))
    return make_reader(wording, name_things(labels, wording))


def _build_some(
    source: str, words: str, labels: tuple[str, ...], arguments: TextArguments, tasks: Sequence[Task]
) -> tuple[pa.RecordBatch, list[Rejection]]:
    reader = _tools(words, labels)
    rejections: list[Rejection] = []
    kept: list[tuple[LabelledImage, list[tuple[str, Said]]]] = []
    for task in tasks:
        image = task.image
        picture = look_at(reader.labels, image.boxes, image.width, image.height)
        dialogues = []
        for row, said in enumerate(_say_all(task, reader, arguments), 1):
            problem = check_dialogue(reader, picture, said.subset, said.task, said.style, said.turns)
            if problem is None:
                dialogues.append((f"{image.split}/{image.image}:{row}", said))
            else:
                rejections.append(Rejection(said.subset, row, image.image, f"the checker disagrees: {problem}"))
        if dialogues:
            kept.append((image, dialogues))
    return _to_batch(kept, source), rejections


def _say_all(task: Task, reader: Reader, arguments: TextArguments) -> Iterator[Said]:
    image, wording = task.image, reader.wording
    facts = facts_of(image.boxes, image.width, image.height, image.unsure, reader.labels)
    rng = Random(f"{arguments.seed}/{image.split}/{image.image}")
    if "vqa" in arguments.texts:
        yield from vqa(facts, task.identifications, arguments.boxes_asked, wording, rng)
    if "captions" in arguments.texts:
        yield from box_captions(facts, arguments.captions, wording, rng)
    if "grounding" in arguments.texts:
        yield from grounding(facts, task.named, task.verifications, arguments.boxes_asked, wording, rng)


def say_everything(boxes: Sequence[Box], width: int, height: int, reader: Reader, rng: Random) -> Iterator[Said]:
    """All that can be said of one image, asked for every class: to try a wording."""
    things = list(dict.fromkeys(reader.labels.values()))
    facts = facts_of(boxes, width, height, frozenset(), reader.labels)
    plain = [number for number in range(len(boxes)) if facts.is_plain(number)]
    named = rng.choice(plain) if plain else None
    verified = [] if named is None else [YesNo(thing, thing == facts.things[named]) for thing in things]
    yield from vqa(facts, [YesNo(thing, thing in facts.things) for thing in things], len(boxes), reader.wording, rng)
    yield from box_captions(facts, 2 * len(boxes) + 10, reader.wording, rng)
    yield from grounding(facts, named, verified, len(boxes), reader.wording, rng)


def _to_batch(kept: Sequence[tuple[LabelledImage, list[tuple[str, Said]]]], source: str) -> pa.RecordBatch:
    """Column by column, which takes a fraction of the time of records as objects."""
    said = [one for _, dialogues in kept for _, one in dialogues]
    turns = [turn for one in said for turn in one.turns]
    dialogue_type = SCHEMA.field("dialogues").type.value_type
    turn_type = dialogue_type.field("turns").type.value_type
    box_type = SCHEMA.field("boxes").type.value_type
    columns = {
        "id": pa.array([name for _, dialogues in kept for name, _ in dialogues], pa.string()),
        "subset": pa.array([one.subset for one in said], pa.string()),
        "task": pa.array([one.task for one in said], pa.string()),
        "style": pa.array([one.style for one in said], pa.string()),
        "turns": _lists(
            [len(one.turns) for one in said],
            pa.StructArray.from_arrays(
                [
                    pa.array([turn.question for turn in turns], pa.string()),
                    pa.array([turn.answer for turn in turns], pa.string()),
                ],
                fields=list(turn_type),
            ),
        ),
    }
    boxes = [box for image, _ in kept for box in image.boxes]
    points = _lists(
        [len(box.points) for box in boxes], pa.array([number for box in boxes for number in box.points], pa.float64())
    )
    images = [image for image, _ in kept]
    return pa.record_batch(
        [
            _lists([1] * len(images), pa.array([image.image for image in images], pa.string())),
            pa.array([image.width for image in images], pa.int32()),
            pa.array([image.height for image in images], pa.int32()),
            pa.array([source] * len(images), pa.string()),
            pa.array([image.split for image in images], pa.string()),
            pa.nulls(len(images), pa.string()),
            pa.array([image.resolution_m for image in images], pa.float64()),
            _lists(
                [len(image.boxes) for image in images],
                pa.StructArray.from_arrays(
                    [pa.array([box.label for box in boxes], pa.string()), points], fields=list(box_type)
                ),
            ),
            _lists(
                [len(dialogues) for _, dialogues in kept],
                pa.StructArray.from_arrays(
                    [columns[field.name] for field in dialogue_type], fields=list(dialogue_type)
                ),
            ),
        ],
        SCHEMA,
    )


def _lists(lengths: Sequence[int], values: pa.Array) -> pa.ListArray:
    """Values cut into lists of these lengths."""
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]), pa.int32()), values)
