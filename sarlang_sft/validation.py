"""Is a data folder complete and sane? Every image decoded, every record, dialogue and count looked at, as findings.

Images are examined one by one in several processes; the parquet files are read in batches of records, so that memory
grows with the number of images and with the bytes of the dialogues' ids alone.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from re import Pattern
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarlang_sft.backbone_fit import Sight, shape_problem
from sarlang_sft.boxes import box_problem
from sarlang_sft.errors import InputError
from sarlang_sft.findings import Finding
from sarlang_sft.image_checks import ImageFacts
from sarlang_sft.records import RECORDS_AT_ONCE, SCHEMA, SPLITS, TASKS, check_not_in_shards, open_split, read_manifest
from sarlang_sft.scoring.predictions import CAPTION_TASK
from sarlang_sft.text_checks import boxes_not_there, gives_away, same_answer, same_question, text_problems

TOKEN_QUANTILES = (0, 0.05, 0.5, 0.95, 1)


class Use(NamedTuple):
    """One record that shows an image; `size` (width, height) is recorded for the first image of a record alone."""

    split: str
    source: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Batch:
    """Some records of a split with their dialogues.

    Attributes:
        records: `images width height source split boxes` of R records.
        dialogues: `id subset task` of D dialogues, and the place of their record in `records`.
        turns: (question, answer) of every dialogue.
        undecodable: Numbers of the dialogues with a text that is no UTF-8; its bad bytes are replaced in `turns`.
    """

    split: str
    records: list[dict[str, Any]]
    dialogues: list[dict[str, Any]]
    turns: list[list[tuple[str, str]]]
    undecodable: set[int]


def check_manifest(data: Path) -> dict[str, Any]:
    """The manifest of a data folder; raises [`InputError`] if it is none of `write_data_folder`."""
    check_not_in_shards(data)
    manifest = read_manifest(data)
    levels = {"read": 0, "accepted": 0, "rejected": 1, "counts": 3}  # of mappings around the numbers
    wrong = [name for name, depth in levels.items() if not _counted(manifest, name, depth)]
    if wrong:
        raise InputError(f"--data {data}: manifest.json has no `{wrong[0]}` as converters write it; convert again")
    return manifest


def _counted(found: Any, name: str, depth: int) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get(name), dict if depth else int):
        return False
    return depth == 0 or all(_counted(found[name], inner, depth - 1) for inner in found[name])


def _batches(data: Path, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with open_split(data, split, SCHEMA.names) as file:
        wanted, found = ({one.name: one.type for one in schema} for schema in (SCHEMA, file.schema_arrow))
        if wrong := sorted(name for name in found if wanted.get(name) != found[name]):
            raise InputError(
                f"{data}: {split}.parquet: columns are unknown or of another type: {', '.join(wrong)}; convert again"
            )
        yield from file.iter_batches(RECORDS_AT_ONCE, columns=list(columns))


def _rows(data: Path, split: str, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{data / split}.parquet: a name in it is no UTF-8 ({error}); convert again") from error


def list_images(data: Path) -> dict[str, list[Use]]:
    """Every image of a data folder in stored order, and the records that show it."""
    images: dict[str, list[Use]] = {}
    for split in SPLITS:
        for batch in _batches(data, split, ("images", "width", "height", "source")):
            for row in _rows(data, split, batch):
                for place, image in enumerate(row["images"] or []):
                    size = (row["width"] or 0, row["height"] or 0) if place == 0 else None
                    images.setdefault(image or "", []).append(Use(split, row["source"] or "", size))
    return images


def image_findings(images: dict[str, list[Use]], facts: list[ImageFacts], sight: Sight | None) -> Iterator[Finding]:
    """What is wrong with the images, in stored order.

    Args:
        facts: One for each of `images`.
        sight: Of the chosen backbone; None checks general limits only.
    """
    first: dict[bytes, dict[str, str]] = {}  # by digest and split
    for (image, uses), fact in zip(images.items(), facts, strict=True):
        split, source, _ = uses[0]
        found = [fact.problem] if fact.problem else list(_of_pixels(fact, sight))
        sizes = {use.size for use in uses if use.size} - {(fact.width, fact.height)}
        if sizes and not fact.problem:
            recorded = " and ".join(f"{width} x {height}" for width, height in sorted(sizes))
            found.append(("wrong_size", f"the file has {fact.width} x {fact.height} pixels, recorded are {recorded}"))
        others = sorted({use.split for use in uses} - {split}, key=SPLITS.index)
        found += [("shared_image", f"the same path is in {other}") for other in others]
        if fact.digest and not fact.blank:
            seen = first.setdefault(fact.digest, {})
            if split in seen:
                found.append(("duplicate_image", f"the same pixels as {seen[split]}"))
            found += [("shared_image", f"the same pixels as {seen[o]} of {o}") for o in seen if o != split]
            for use in uses:
                seen.setdefault(use.split, image)
        yield from (Finding(name, detail, split, source, image) for name, detail in found)


def _of_pixels(fact: ImageFacts, sight: Sight | None) -> Iterator[tuple[str, str]]:
    if problem := shape_problem(sight, fact.width, fact.height):
        yield problem
    if fact.blank:
        yield "blank_image", "all pixels are equal"
    if fact.missing:
        yield "missing_values", f"{fact.missing:.2%} of the pixels are NaN or infinite"
    if fact.pixels.startswith("complex"):
        yield "complex_pixels", fact.pixels
    elif fact.pixels != "uint8":
        yield "deep_pixels", fact.pixels
    if fact.converted:
        yield "converted_image", fact.converted


def dialogue_findings(
    data: Path, manifest: dict[str, Any], special: Pattern[str], max_characters: int
) -> Iterator[Finding]:
    """What is wrong with records, boxes and dialogues, in stored order; then with ids, and with the manifest.

    Args:
        special: Tokens that no text may hold.
        max_characters: Of a question or an answer.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    ids: dict[str, list[pa.Array]] = {}
    for split in SPLITS:
        seen: set[tuple[str, ...]] = set()
        for stored in _batches(data, split, SCHEMA.names):
            batch = _read_batch(data, split, stored)
            counts.update((split, row["subset"] or "", row["task"] or "") for row in batch.dialogues)
            ids.setdefault(split, []).append(pa.array([row["id"] or "" for row in batch.dialogues], pa.string()))
            for number, problem in _record_problems(batch, seen):
                yield _finding(batch, number, None, problem)
            for number, problem in _dialogue_problems(batch, special, max_characters):
                yield _finding(batch, batch.dialogues[number]["record"], number, problem)
    yield from _repeated_ids(ids)
    yield from _manifest_findings(data, manifest, counts)


def _finding(batch: Batch, record: int, dialogue: int | None, problem: tuple[str, str]) -> Finding:
    row = batch.records[record]
    image = ", ".join(row["images"]) or None
    identifier = None if dialogue is None else batch.dialogues[dialogue]["id"]
    return Finding(*problem, batch.split, row["source"], image, identifier)


def _read_batch(data: Path, split: str, stored: pa.RecordBatch) -> Batch:
    records = _rows(data, split, stored.drop_columns(["dialogues"]))
    for row in records:
        row["images"] = [image or "" for image in row["images"] or []]
        row["boxes"] = [box or {"label": None, "points": None} for box in row["boxes"] or []]
    said = pc.list_flatten(stored["dialogues"])
    named = {name: pc.struct_field(said, name) for name in ("id", "subset", "task")}
    dialogues = _rows(data, split, pa.RecordBatch.from_pydict(named))
    for row, record in zip(dialogues, pc.list_parent_indices(stored["dialogues"]).to_pylist(), strict=True):
        row["record"] = record
    parents = pc.list_parent_indices(pc.struct_field(said, "turns")).to_pylist()
    texts = pc.list_flatten(pc.struct_field(said, "turns"))
    (questions, bad_questions), (answers, bad_answers) = (
        _decoded(pc.struct_field(texts, name)) for name in ("question", "answer")
    )
    turns: list[list[tuple[str, str]]] = [[] for _ in dialogues]
    for parent, question, answer in zip(parents, questions, answers, strict=True):
        turns[parent].append((question, answer))
    return Batch(split, records, dialogues, turns, {parents[number] for number in (*bad_questions, *bad_answers)})


def _decoded(texts: pa.StringArray) -> tuple[list[str], list[int]]:
    """Texts with what is no UTF-8 replaced, and the numbers of those; nothing is the empty text."""
    try:
        return [text or "" for text in texts.to_pylist()], []
    except UnicodeDecodeError:
        raw = [text or b"" for text in texts.cast(pa.binary()).to_pylist()]
    decoded = [text.decode("utf-8", "replace") for text in raw]
    return decoded, [number for number, text in enumerate(raw) if decoded[number].encode() != text]


def _record_problems(batch: Batch, seen: set[tuple[str, ...]]) -> Iterator[tuple[int, tuple[str, str]]]:
    """(record, problem); `seen` holds the images of the split's earlier records and grows."""
    spoken = {row["record"] for row in batch.dialogues}
    for number, row in enumerate(batch.records):
        images = tuple(row["images"])
        if images in seen:
            yield number, ("duplicate_record", "an earlier record of the split has the same images")
        if images:
            seen.add(images)
        if row["split"] != batch.split:
            yield number, ("wrong_split", f"`{row['split']}` in {batch.split}.parquet")
        if number not in spoken:
            yield number, ("no_dialogues", "no dialogue in the record")
        for place, box in enumerate(row["boxes"]):
            if problem := box_problem(box["points"], row["width"] or 0, row["height"] or 0):
                yield number, (problem, f"box {place} `{box['label']}` {box['points']}")


def _dialogue_problems(
    batch: Batch, special: Pattern[str], max_characters: int
) -> Iterator[tuple[int, tuple[str, str]]]:
    record, said, asked = -1, {}, {}  # what the dialogues of one record said and answered so far
    for number, (row, turns) in enumerate(zip(batch.dialogues, batch.turns, strict=True)):
        if row["record"] != record:
            record, said, asked = row["record"], {}, {}
        if row["task"] not in TASKS:
            yield number, ("unknown_task", f"`{row['task']}`")
        if number in batch.undecodable:
            yield number, ("undecodable_text", "bytes that are no UTF-8")
            continue
        if not turns:
            yield number, ("empty_text", "no turns")
            continue
        boxes = len(batch.records[record]["boxes"])
        for turn in turns:
            for name, text in zip(("question", "answer"), turn, strict=True):
                for kind, detail in text_problems(text, special, max_characters):
                    yield number, (kind, f"{name}: {detail}")
                if "<box:" in text:
                    for missing in boxes_not_there(text, boxes):
                        yield number, ("no_such_box", f"{name}: {missing}; the record has {boxes} boxes")
            if gives_away(*turn):
                yield number, ("answer_in_question", f"{turn[0][:160]} -> {turn[1]}")
        question, answer = turns[0]  # later turns depend on what was said before
        before, by = asked.setdefault(same_question(question), (answer, row["id"]))
        if tuple(turns) in said:
            yield number, ("duplicate_dialogue", f"the same turns as {said[tuple(turns)]}")
        elif row["task"] != CAPTION_TASK and not same_answer(answer, before):
            yield number, ("contradiction", f"{question[:160]} -> {answer[:80]}; but {by} -> {before[:80]}")
        said.setdefault(tuple(turns), row["id"])


def _repeated_ids(ids: dict[str, list[pa.Array]]) -> Iterator[Finding]:
    """`ids` holds those of every split in arrays: a million are strings in Arrow, not objects."""
    counted = pc.value_counts(pa.chunked_array(chain.from_iterable(ids.values()), pa.string()))
    repeated = counted.filter(pc.greater(pc.struct_field(counted, "counts"), 1))
    times = {row["values"]: row["counts"] for row in repeated.to_pylist()}
    values = pc.struct_field(repeated, "values")
    for split, arrays in ids.items():
        of_split = pa.chunked_array(arrays, pa.string())
        for identifier in of_split.filter(pc.is_in(of_split, value_set=values)).to_pylist():
            yield Finding("duplicate_id", f"{times[identifier]} dialogues have it", split, dialogue=identifier)


def _manifest_findings(
    data: Path, manifest: dict[str, Any], counts: Counter[tuple[str, str, str]]
) -> Iterator[Finding]:
    def differing(what: str, claimed: object, found: int, split: str | None = None) -> Iterator[Finding]:
        if claimed != found:
            yield Finding("manifest_counts", f"{what}: the manifest says {claimed}, found are {found}", split)

    claimed = {
        (split, subset, task): number
        for split, subsets in manifest["counts"].items()
        for subset, tasks in subsets.items()
        for task, number in tasks.items()
    }
    for split, subset, task in sorted(claimed.keys() | counts.keys()):
        key = (split, subset, task)
        yield from differing(f"{subset} {task} of {split}", claimed.get(key, 0), counts[key], split)
    rejected = sum(manifest["rejected"].values())
    yield from differing("accepted", manifest["accepted"], counts.total())
    yield from differing("read = accepted + rejected", manifest["read"], manifest["accepted"] + rejected)
    listed = data / "rejected.jsonl"
    lines = 0
    if listed.is_file():
        with open(listed, "rb") as file:
            lines = sum(1 for line in file if line.strip())
    yield from differing("lines of rejected.jsonl", rejected, lines)


def print_images(images: dict[str, list[Use]], facts: list[ImageFacts], sight: Sight | None) -> None:
    """How many images every split has, the types of their pixels, and what they cost the backbone in tokens."""
    shown = Counter(split for uses in images.values() for split in {use.split for use in uses})
    print(f"{len(images):,} images: " + ", ".join(f"{split} {shown[split]:,}" for split in SPLITS))
    types = Counter(fact.pixels for fact in facts if not fact.problem)
    print("  pixel types: " + ", ".join(f"{name} {count:,}" for name, count in types.most_common()))
    sizes = Counter((fact.width, fact.height) for fact in facts if not fact.problem)
    usable = {size: count for size, count in sizes.items() if sight and _taken(sight, size)}
    if sight and usable:
        tokens = np.repeat([sight.tokens(*size) for size in usable], list(usable.values()))
        values = np.quantile(tokens, TOKEN_QUANTILES, method="nearest")
        listed = ", ".join(f"{share:.0%} {value}" for share, value in zip(TOKEN_QUANTILES, values, strict=True))
        print(f"  tokens per image (quantiles): {listed}; one token is {sight.factor} x {sight.factor} pixels")


def _taken(sight: Sight, size: tuple[int, int]) -> bool:
    problem = shape_problem(sight, *size)
    return problem is None or problem[0] != "elongated_image"
