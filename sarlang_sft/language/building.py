"""Boxes of a set to records with dialogues: every text built, read back and checked, in several processes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from sarlang_sft.language.things import Thing, name_of, name_things
from sarlang_sft.language.truth import look_at
from sarlang_sft.language.wording import Wording, make_wording
from sarlang_sft.processes import in_processes
from sarlang_sft.records import Box, Dialogue, Record, Rejection, to_table

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
    seed: int = field(
        default=0, metadata={"help": "Draws templates, the classes that are asked for, and the order of lists."}
    )

    def __post_init__(self) -> None:
        if unknown := {*self.texts} - {*TEXTS}:
            raise ValueError(f"--texts {' '.join(sorted(unknown))}: choose among {', '.join(TEXTS)}")
        if not self.texts or min(self.captions, self.boxes_asked, self.seed) < 0:
            raise ValueError("--texts must name something; --captions, --boxes_asked and --seed must be 0 or more")

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
    images = [_with_known_labels(image, things, wording) for image in images]
    rng = np.random.default_rng(arguments.seed)
    identifications = choose_identifications(images, things, rng)
    named, verifications = choose_named_boxes(images, things, rng)
    tasks = map(Task, images, identifications, named, verifications)
    chunks = list(iter(lambda: list(islice(tasks, IMAGES_AT_ONCE)), []))
    build = partial(_build_some, source, wording.dump(), labels, arguments)
    workers = 1 if len(chunks) == 1 else workers
    built = list(in_processes(build, chunks, workers, 1, "chunks of images", "run it again with less beside it"))
    table = pa.concat_tables([records for records, _ in built])
    return Built(table, [one for _, rejections in built for one in rejections], list(labels))


def _with_known_labels(image: LabelledImage, things: Mapping[str, Thing], wording: Wording) -> LabelledImage:
    """The image, unsure of labels that `things` has wherever these mean the same class."""
    if not image.unsure - things.keys():
        return image
    known = {thing.name.casefold(): label for label, thing in reversed(things.items())}
    unsure = (known.get(name_of(label, wording).casefold(), label) for label in image.unsure)
    return replace(image, unsure=frozenset(unsure))


@lru_cache(maxsize=1)
def _tools(words: str, labels: tuple[str, ...]) -> Reader:
    """Made once in every process."""
    wording = make_wording("", yaml.safe_load(words))
    return make_reader(wording, name_things(labels, wording))


def _build_some(
    source: str, words: str, labels: tuple[str, ...], arguments: TextArguments, tasks: Sequence[Task]
) -> tuple[pa.Table, list[Rejection]]:
    reader = _tools(words, labels)
    rejections: list[Rejection] = []
    records = []
    for task in tasks:
        image = task.image
        picture = look_at(reader.labels, image.boxes, image.width, image.height, image.unsure)
        dialogues = []
        for row, said in enumerate(_say_all(task, reader, arguments), 1):
            problem = check_dialogue(reader, picture, said.subset, said.task, said.style, said.turns)
            if problem is None:
                name = f"{image.split}/{image.image}:{row}"
                dialogues.append(Dialogue(name, said.subset, said.task, list(said.turns), said.style))
            else:
                rejections.append(Rejection(said.subset, row, image.image, f"the checker disagrees: {problem}"))
        if dialogues:
            size = image.width, image.height
            records.append(
                Record([image.image], *size, source, image.split, None, image.resolution_m, image.boxes, dialogues)
            )
    return to_table(records), rejections


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
    named = rng.choice(facts.plain) if facts.plain else None
    verified = [] if named is None else [YesNo(thing, thing == facts.things[named]) for thing in things]
    yield from vqa(facts, [YesNo(thing, thing in facts.things) for thing in things], len(boxes), reader.wording, rng)
    yield from box_captions(facts, 2 * len(boxes) + 10, reader.wording, rng)
    yield from grounding(facts, named, verified, len(boxes), reader.wording, rng)
