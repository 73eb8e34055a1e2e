"""A small clean data folder, and for every finding of `validate.py` a way to spoil it."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import rasterio
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from sarlang_sft.backbone_fit import Sight
from sarlang_sft.findings import Finding
from sarlang_sft.image_checks import examine_images
from sarlang_sft.records import (
    Box,
    Dialogue,
    Record,
    Turn,
    image_root_of,
    read_manifest,
    to_table,
    write_data_folder,
)
from sarlang_sft.sarlang_texts import CAPTION_PROMPT
from sarlang_sft.text_checks import special_tokens
from sarlang_sft.validation import check_manifest, dialogue_findings, image_findings, list_images

WIDTH, HEIGHT = 40, 32

SPLITS_OF = ("train", "train", "train", "test", "test", "val")

LARGEST_MB = 8

often = settings(max_examples=150, deadline=None, derandomize=True, database=None)

NOT_UTF8 = b"\xed\xa0\x80"  # a lone surrogate as careless writers store it

IN_ITS_PLACE = "@@@"


def findings_of(data: Path, sight: Sight | None = None, processes: int = 1) -> list[Finding]:
    manifest = check_manifest(data)
    images = list_images(data)
    facts = list(examine_images(image_root_of(data, None), list(images), LARGEST_MB, processes))
    special = special_tokens(sight.processor.tokenizer.all_special_tokens if sight else [])
    return [*image_findings(images, facts, sight), *dialogue_findings(data, manifest, special, 2000)]


def noise(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def write_tiff(path: Path, bands: np.ndarray) -> None:
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype) as file:
        file.write(bands)


def declared(width: int, height: int) -> bytes:
    """A whole small PNG whose header claims another size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + b"\0\0\0\0IEND\xaeB`\x82"


def asked(identifier: str, task: str, question: str, answer: str) -> Dialogue:
    return Dialogue(identifier, "vqa2", task, [Turn(question, answer)])


@dataclass
class Folder:
    """A data folder in the making, and the record of it that a corruption befalls."""

    root: Path
    victim: int
    draw: Callable
    records: list[Record] = field(default_factory=list)
    afterwards: list[Callable[[Path], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, split in enumerate(SPLITS_OF):
            name = f"images/{number}.png"
            (self.root / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(number)).save(self.root / name)
            boxes = [Box("ship", [2.0, 3.0, 10.0, 8.0]), Box("car", [5.0, 5.0, 15.0, 8.0, 12.0, 18.0, 2.0, 14.0])]
            dialogues = [
                asked(f"{number}:0", "referring", "What is the object at <box:0>?", "Ship."),
                asked(f"{number}:1", "identification", "Is there a car in the image?", "Yes."),
                asked(f"{number}:2", "description", CAPTION_PROMPT, "A ship and a car."),
                asked(f"{number}:3", "description", CAPTION_PROMPT, "A car beside a ship."),
            ]
            record = Record([name], WIDTH, HEIGHT, "noise", split, boxes=boxes, dialogues=dialogues)
            self.records.append(record)

    @property
    def record(self) -> Record:
        return self.records[self.victim]

    @property
    def path(self) -> Path:
        return self.root / self.record.images[0]

    def change(self, **fields: object) -> None:
        self.records[self.victim] = replace(self.record, **fields)

    def says(self, question: str, answer: str, task: str = "others") -> None:
        self.change(dialogues=[*self.record.dialogues, asked(f"{self.victim}:new", task, question, answer)])

    def with_box(self, *points: float) -> None:
        self.change(boxes=[*self.record.boxes, Box("tank", list(points))])

    def becomes(self, picture: np.ndarray, suffix: str = ".png") -> None:
        """The victim's image as another file, (C, H, W) for .tif."""
        self.path.unlink()
        name = f"images/{self.victim}{suffix}"
        if suffix == ".tif":
            write_tiff(self.root / name, np.atleast_3d(picture) if picture.ndim == 3 else picture[None])
        else:
            Image.fromarray(picture).save(self.root / name)
        height, width = picture.shape[-2:] if suffix == ".tif" else picture.shape[:2]
        self.change(images=[name], width=width, height=height)

    def without_boxes(self) -> None:
        self.change(boxes=[], dialogues=self.record.dialogues[1:])

    def other(self, same_split: bool) -> Record:
        others = [one for one in self.records if (one.split == self.record.split) == same_split]
        return self.draw(st.sampled_from([one for one in others if one is not self.record]))

    def write(self) -> Path:
        data = self.root / "data"
        write_data_folder(data, to_table(self.records), [], self.root, {})
        for change in self.afterwards:
            change(data)
        return data


def missing_image(folder: Folder) -> None:
    folder.path.unlink()
    if folder.draw(st.booleans()):
        folder.path.mkdir()


def outside_root(folder: Folder) -> None:
    outside = folder.root.parent / f"outside-{folder.root.name}.png"
    shutil.move(folder.path, outside)
    way = folder.draw(st.sampled_from(["link", "dots", "absolute"]))
    if way == "link":
        folder.path.symlink_to(outside)
    else:
        folder.change(images=[f"images/../../{outside.name}" if way == "dots" else str(outside)])


def unreadable_image(folder: Folder) -> None:
    suffix = folder.draw(st.sampled_from([".png", ".jpg", ".bmp", ".tif"]))
    folder.becomes(noise(folder.victim), suffix)
    whole = folder.path.read_bytes()
    kept = folder.draw(st.integers(0, len(whole) - 20))
    folder.path.write_bytes(folder.draw(st.sampled_from([whole[:kept], b"GIF or what" * 9, bytes(kept)])))


def huge_image(folder: Folder) -> None:
    folder.path.write_bytes(
        declared(*folder.draw(st.sampled_from([(50_000, 50_000), (9_000, 1_000), (3_000, 3_000)])))
    )


def wrong_size(folder: Folder) -> None:
    more = folder.draw(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(any))
    folder.change(width=WIDTH + more[0], height=HEIGHT + more[1])


def elongated_image(folder: Folder) -> None:
    folder.without_boxes()
    shape = folder.draw(st.permutations([1, folder.draw(st.integers(201, 300))]))
    folder.becomes(noise(folder.victim, *shape))


def tiny_image(folder: Folder) -> None:
    folder.without_boxes()
    shape = folder.draw(st.permutations([folder.draw(st.integers(1, 15)), folder.draw(st.integers(15, 60))]))
    folder.becomes(
        noise(folder.victim, *shape) if min(shape) > 1 else np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    )


def blank_image(folder: Folder) -> None:
    level = folder.draw(st.integers(0, 255))
    folder.becomes(np.full((HEIGHT, WIDTH), level, np.uint8), folder.draw(st.sampled_from([".png", ".bmp", ".tif"])))


def missing_values(folder: Folder) -> None:
    picture = noise(folder.victim).astype(np.float32)
    row, column = folder.draw(st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1)))
    picture[row, column:] = folder.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    folder.becomes(picture, ".tif")


def complex_pixels(folder: Folder) -> None:
    folder.becomes((noise(folder.victim) * (1 + 1j)).astype(folder.draw(st.sampled_from(["c8", "c16"]))), ".tif")


def deep_pixels(folder: Folder) -> None:
    kind = folder.draw(st.sampled_from(["uint16", "int16", "uint32", "float32", "float64"]))
    suffix = ".png" if kind == "uint16" and folder.draw(st.booleans()) else ".tif"
    folder.becomes((noise(folder.victim).astype(np.float64) * 100).astype(kind), suffix)


def converted_image(folder: Folder) -> None:
    mode = folder.draw(st.sampled_from(["P", "LA", "RGBA", "1"]))
    Image.fromarray(noise(folder.victim)).convert(mode).save(folder.path)


def duplicate_image(folder: Folder) -> None:
    original = np.asarray(Image.open(folder.root / folder.other(same_split=True).images[0]))
    grey = folder.draw(st.booleans())
    folder.becomes(original if grey else np.dstack([original] * 3), folder.draw(st.sampled_from([".png", ".bmp"])))


def shared_image(folder: Folder) -> None:
    other = folder.other(same_split=False)
    if folder.draw(st.booleans()):
        folder.change(images=other.images)
    else:
        folder.becomes(np.asarray(Image.open(folder.root / other.images[0])), ".tif")


def duplicate_record(folder: Folder) -> None:
    new = asked("another", "counting", "How many cars are there?", "1.")
    folder.records.append(replace(folder.record, dialogues=[new]))


def no_dialogues(folder: Folder) -> None:
    folder.change(dialogues=[])


def unusable_box(folder: Folder) -> None:
    bad = [
        [5.0, 5.0, 0.0, 4.0], [5.0, 5.0, 3.0, -2.0], [WIDTH + 0.5, 3.0, 4.0, 4.0], [1.0, -9.0, 5.0, 5.0], [1.0, 2.0],
        [float("nan"), 1.0, 2.0, 2.0], [1.0, 1.0, float("inf"), 2.0], [1.0, 1.0, 9.0, 1.0, 5.0, 1.0, 3.0, 1.0], [],
    ]  # fmt: skip
    folder.with_box(*folder.draw(st.sampled_from(bad)))


def box_outside(folder: Folder) -> None:
    beyond = folder.draw(st.floats(1.1, 50))
    wide = [3.0, 3.0, WIDTH - 3 + beyond, 5.0]
    folder.with_box(*folder.draw(st.sampled_from([wide, [-beyond, 3.0, beyond + 5, 4.0]])))


def no_such_box(folder: Folder) -> None:
    name = folder.draw(st.sampled_from(["<box:2>", "<box:17>", "<box:-1>", "<box:ship>", "<box: 0>"]))
    question, answer = folder.draw(st.permutations([f"Here: {name}", "Which?"]))
    folder.says(question, answer)


def duplicate_id(folder: Folder) -> None:
    stolen = folder.other(folder.draw(st.booleans())).dialogues[1].id
    first, *others = folder.record.dialogues
    folder.change(dialogues=[replace(first, id=stolen), *others])


def unknown_task(folder: Folder) -> None:
    folder.says("What now?", "Nothing.", folder.draw(st.sampled_from(["", "captioning", "Counting"])))


def empty_text(folder: Folder) -> None:
    question, answer = folder.draw(st.permutations(["What?", folder.draw(st.sampled_from(["", " ", "\n\t "]))]))
    folder.says(question, answer)
    if folder.draw(st.booleans()):
        folder.change(dialogues=[*folder.record.dialogues[:-1], replace(folder.record.dialogues[-1], turns=[])])


def long_text(folder: Folder) -> None:
    folder.says("Tell me all.", "ship " * folder.draw(st.integers(401, 1000)))


def special_token(folder: Folder) -> None:
    token = folder.draw(st.sampled_from(["<image>", "<|im_end|>", "<|image_pad|>", "</s>", "<s>", "<video>", "<pad>"]))
    question, answer = folder.draw(st.permutations(["What is it?", f"A {token} ship."]))
    folder.says(question, answer)


def control_characters(folder: Folder) -> None:
    code = folder.draw(st.sampled_from([0, 7, 0x1B, 0x7F, 0x85, 0x200B, 0xFEFF, 0xFFFD]))
    folder.says("What is it?", f"A sh{chr(code)}ip.")


def answer_in_question(folder: Folder) -> None:
    leaks = [("What is the shape of the circular pond?", "Circular."), ("What does the swimming pool show?", "pool")]
    folder.says(*folder.draw(st.sampled_from(leaks)))


def contradiction(folder: Folder) -> None:
    question = folder.draw(st.sampled_from(["Is there a car in the image?", "is there a car  in the image? "]))
    folder.says(question, folder.draw(st.sampled_from(["No.", "no", "Two."])), "identification")


def duplicate_dialogue(folder: Folder) -> None:
    copied = folder.draw(st.sampled_from(folder.record.dialogues))
    folder.change(dialogues=[*folder.record.dialogues, replace(copied, id="copy")])


def wrong_split(folder: Folder) -> None:
    def change(data: Path) -> None:
        path = data / f"{folder.record.split}.parquet"
        table = pq.read_table(path)
        rows = table.to_pylist()
        rows[0]["split"] = "elsewhere"
        pq.write_table(table.from_pylist(rows, schema=table.schema), path)

    folder.afterwards.append(change)


def undecodable_text(folder: Folder) -> None:
    question, answer = folder.draw(st.permutations(["What is it?", f"A {IN_ITS_PLACE} ship."]))
    folder.says(question, answer)

    def change(data: Path) -> None:
        path = data / f"{folder.record.split}.parquet"
        pq.write_table(pq.read_table(path), path, compression="none")
        path.write_bytes(path.read_bytes().replace(IN_ITS_PLACE.encode(), NOT_UTF8))

    folder.afterwards.append(change)


def manifest_counts(folder: Folder) -> None:
    way = folder.draw(st.sampled_from(["read", "accepted", "rejected", "counts", "lost", "listed"]))
    more = folder.draw(st.integers(1, 9))

    def change(data: Path) -> None:
        if way == "listed":
            (data / "rejected.jsonl").write_text('{"reason": "image not found"}\n' * more)
            return
        manifest = read_manifest(data)
        if way == "rejected":
            manifest["rejected"] = {"image not found": more}
        elif way == "counts":
            manifest["counts"]["test"]["vqa2"]["identification"] += more
        elif way == "lost":
            del manifest["counts"]["train"]["vqa2"]["description"]
        else:
            manifest[way] += more
        (data / "manifest.json").write_text(json.dumps(manifest))

    folder.afterwards.append(change)


CORRUPTIONS = {
    function.__name__: function
    for function in (
        missing_image, outside_root, unreadable_image, huge_image, wrong_size, elongated_image, tiny_image,
        blank_image, missing_values, complex_pixels, deep_pixels, converted_image, duplicate_image, shared_image,
        duplicate_record, wrong_split, no_dialogues, unusable_box, box_outside, no_such_box, duplicate_id,
        unknown_task, empty_text, long_text, undecodable_text, special_token, control_characters, answer_in_question,
        contradiction, duplicate_dialogue, manifest_counts,
    )
}  # fmt: skip

COMES_WITH = {"missing_values": {"deep_pixels"}}

WITH_ANOTHER = {"duplicate_image", "shared_image", "wrong_split"}

OF_NO_IMAGE = {"manifest_counts", "duplicate_id"}
