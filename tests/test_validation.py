import json
import os
import runpy
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from conftest import ROOT, run_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sarlang_sft import image_checks
from sarlang_sft.backbone_fit import RELEASED, Sight, choose_sight, shape_problem
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.class_folders import convert_folders
from sarlang_sft.errors import InputError
from sarlang_sft.findings import KINDS, Finding, write_findings
from sarlang_sft.image_checks import examine_image, examine_images
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
from sarlang_sft.sarlang import CLASS_PREFIX, POSITION_PREFIX, VQA_PROMPT
from sarlang_sft.sarlang_texts import CAPTION_PROMPT
from sarlang_sft.text_checks import SPECIAL_TOKENS, gives_away, same_answer, special_tokens
from sarlang_sft.validation import box_problem, check_manifest, dialogue_findings, image_findings, list_images

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
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


def test_every_kind_has_a_corruption() -> None:
    assert set(KINDS) - set(CORRUPTIONS) == {"strongly_resized"}  # for a backbone only, below


@pytest.mark.parametrize("kind", CORRUPTIONS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(choice=st.data())
def test_a_corruption_is_found_and_nothing_else_is(kind: str, choice: st.DataObject) -> None:
    alone = kind in ("duplicate_image", "duplicate_id")  # the last record has no other in its split
    with TemporaryDirectory() as place:
        victim = choice.draw(st.integers(0, 4 if alone else 5))
        folder = Folder(Path(place).resolve() / "root", victim, choice.draw)
        CORRUPTIONS[kind](folder)
        found = findings_of(folder.write())
        assert {one.finding for one in found} - COMES_WITH.get(kind, set()) == {kind}, found
        if kind in WITH_ANOTHER:  # the second of the two is reported
            assert all(one.image in {image for record in folder.records for image in record.images} for one in found)
        elif kind not in OF_NO_IMAGE:
            assert {(one.split, one.image) for one in found} == {(folder.record.split, folder.record.images[0])}


def test_the_sample_and_the_clean_folder_have_no_finding(data: Path, tmp_path: Path) -> None:
    assert findings_of(Folder(tmp_path, 0, None).write()) == []
    assert findings_of(data) == []


def test_pairs_texts_alone_and_long_talks_are_no_finding(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 0, None)
    first, second, third, *_ = folder.records
    start = Turn("What is it?", "A ship.")
    talks = [
        Dialogue(f"talk {number}", "vqa2", "others", [start, Turn("Where?", answer)])
        for number, answer in enumerate(["Left of the pier.", "At sea."])
    ]
    compared = asked("pair", "cross_identification", "Is <box:0> in both?", "Yes.")
    folder.records += [
        replace(first, images=[*first.images, *second.images], dialogues=talks),
        replace(first, images=[*first.images, *third.images], dialogues=[compared]),
        Record([], 0, 0, "texts", "train", dialogues=[asked("text", "others", "What is sigma0?", "A ratio.")]),
        Record([], 0, 0, "texts", "train", dialogues=[asked("text 2", "others", "What is a look?", "A part.")]),
    ]
    assert findings_of(folder.write()) == []


def test_what_is_not_there_stops_nothing(tmp_path: Path) -> None:
    data = Folder(tmp_path, 0, None).write()
    table = pq.read_table(data / "train.parquet")
    rows = table.to_pylist()
    rows[0] |= {"images": None, "boxes": [None, {"label": None, "points": None}], "source": None, "width": None}
    rows[1] |= {"dialogues": None, "boxes": None}
    rows[2]["dialogues"] = [None, {"id": None, "task": "others", "turns": [None, {"question": None, "answer": "A."}]}]
    pq.write_table(table.from_pylist(rows, schema=table.schema), data / "train.parquet")
    assert {one.finding for one in findings_of(data)} == {
        "unusable_box", "no_dialogues", "duplicate_id", "unknown_task", "empty_text", "manifest_counts",
    }  # fmt: skip


@often
@given(
    st.tuples(st.floats(0, 90), st.floats(0, 40)),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    st.sampled_from([(-1, 0), (1, 0), (0, -1), (0, 1)]),
    st.floats(1.01, 1e6),
)
def test_boxes_are_judged_by_the_image_in_both_forms(
    corner: tuple[float, float], sides: tuple[float, float], way: tuple[int, int], beyond: float
) -> None:
    (x, y), (w, h) = corner, sides
    assert box_problem([x, y, w, h], 100, 50) is None
    assert box_problem([x, y, x + w, y, x + w, y + h, x, y + h], 100, 50) is None
    # moved until it reaches `beyond` pixels out of the image on one side
    x = {-1: -beyond, 1: 100 + beyond - w, 0: x}[way[0]]
    y = {-1: -beyond, 1: 50 + beyond - h, 0: y}[way[1]]
    expected = "box_outside" if beyond < (w if way[0] else h) * 0.999 else "unusable_box"
    if abs(beyond - (w if way[0] else h)) > 0.01:
        assert box_problem([x, y, w, h], 100, 50) == expected
        assert box_problem([x, y, x, y + h, x + w, y + h, x + w, y], 100, 50) == expected


@pytest.mark.parametrize("prompt", ["{question}", VQA_PROMPT])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Are there any surrounding trees?", "Yes."),
        ("Is there a road surrounding the stadium?", "no"),
        ("Is there no ship in the image?", "No."),
        (f"{CLASS_PREFIX} Is there a ship in the image?", "Yes."),
        ("What type of area is mostly visible?", "Forest/park."),
        (f"{CLASS_PREFIX} What categories are visible?", "ship, harbor."),
        (f"{CLASS_PREFIX} What categories are visible?", "tank, car."),
        (f"{CLASS_PREFIX} How many harbors are located in the image?", "2."),
        (f"{CLASS_PREFIX} What is the object present in the area [56.0, 191.0, 112.0, 122.0]?", "aircraft."),
        (f"{CLASS_PREFIX} What is the category visible in the area [88.0, 376.0, 90.0, 99.0]?", "ship."),
        ("How many ships are in the area [2.0, 3.0, 40.0, 9.0]?", "2."),
        (f"{POSITION_PREFIX} Where are most harbors positioned within the image?", "bottom."),
        ("Where is the ship in the top left part?", "top left"),
        ("Is the tank near the center?", "near center"),
        ("What shape are the swimming pools?", "Rectangular."),
        ("What direction is the main road?", "Diagonal."),
        ("What is the predominant land cover?", "Urban."),
        ("Is the area urban or rural?", "Urban."),
        ("Which is larger, the ship or the harbor next to the ship?", "The ship."),
        ("Which of these is it: forest, water?", "Water."),
        ("Which is it? A. ship B. car", "B"),
        ("Which is it? (a) ship (b) car", "ship"),
        ("Options: forest, open water. What surrounds the island?", "Open water."),
        ("What is the category of the target in the image?", "T72."),
        ("Is the object in <box:0> that in <box:1>?", "<box:1>"),
        ("How many of the two ships move?", "two"),
    ],
)
def test_official_forms_give_nothing_away(prompt: str, question: str, answer: str) -> None:
    assert not gives_away(prompt.replace("{question}", question), answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the shape of the circular pond?", "Circular."),
        ("What is the predominant land cover of the agricultural field?", "agricultural field."),
        (f"{CLASS_PREFIX} What is the ship in the area [1.0, 2.0, 3.0, 4.0]?", "ship."),
        ("What kind of storage tank is visible?", "Storage tank"),
    ],
)
def test_a_question_that_holds_its_answer_is_told(question: str, answer: str) -> None:
    assert gives_away(VQA_PROMPT.replace("{question}", question), answer)
    assert not gives_away(VQA_PROMPT.replace("{question}", question), f"{answer.strip('.')}like")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yes.", "Yes, there is one.", True), ("Vessel.", "a ship", True), ("2.", "two", True),
        ("top left", "Left top.", True), ("\u00b0", "\u00b0 ", True), ("Yes.", "No.", False), ("2.", "3.", False),
        ("ship", "ship, car", False),
    ],
)  # fmt: skip
def test_answers_contradict_by_what_they_say(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) == same_answer(other, one) == same


def test_blank_images_are_no_copies_of_each_other(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 0, None)
    for folder.victim in (0, 1, 4):
        folder.becomes(np.zeros((HEIGHT, WIDTH), np.uint8), ".bmp")
    assert [one.finding for one in findings_of(folder.write())] == ["blank_image"] * 3


def test_every_family_sees_as_its_released_models_do() -> None:
    assert set(RELEASED) == set(BACKBONES)
    expected = {"qwen2_vl": (28, 324), "qwen2_5_vl": (28, 324), "qwen3_vl": (32, 256), "llava": (14, 576)}
    for family in BACKBONES:
        sight = choose_sight(None, family, None)
        assert (sight.factor, sight.tokens(512, 512)) == expected.get(family, (14, sight.tokens(512, 512)))
        assert SPECIAL_TOKENS.search(BACKBONES[family].image_token)
        assert shape_problem(sight, 512, 512) is None
        assert shape_problem(sight, 9, 40)[0] == "tiny_image"
        picture = Image.fromarray(noise(0, 300, 200)).convert("RGB")
        inputs = sight.processor(images=[picture], text=BACKBONES[family].image_token, return_tensors="pt")
        image_token = sight.processor.tokenizer.convert_tokens_to_ids(BACKBONES[family].image_token)
        assert int((inputs["input_ids"] == image_token).sum()) == sight.tokens(300, 200)


def test_shapes_are_judged_by_the_processor(tmp_path: Path) -> None:
    sight = choose_sight(None, "qwen2_5_vl", 56 * 56)
    folder = Folder(tmp_path, 1, None)
    folder.becomes(noise(1, 300, 300))
    assert [(one.finding, one.image) for one in findings_of(folder.write(), sight)] == [
        ("strongly_resized", "images/1.png")
    ]
    assert shape_problem(sight, 27, 300)[0] == "tiny_image" and shape_problem(None, 27, 300) is None
    assert shape_problem(sight, 10, 2001)[0] == shape_problem(None, 10, 2001)[0] == "elongated_image"
    assert shape_problem(choose_sight(None, "llava", None), 100, 30_000)[0] != "elongated_image"  # it cuts the ends


def test_the_real_model_and_its_family_see_alike(real_data: Path) -> None:
    model, family = choose_sight(str(real_data / "qwen2_5_vl_7b"), None, None), choose_sight(None, "qwen2_5_vl", None)
    assert model.factor == family.factor == 28
    for size in [(20, 20), (128, 128), (512, 400), (5000, 4000)]:
        assert model.tokens(*size) == family.tokens(*size)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("a-model", "llava", None), "give one of the two"),
        ((None, "blip", None), "choose one of"),
        ((None, None, 5000), "give --model or --family"),
        ((None, "qwen2_5_vl", 9), "below the processor's smallest image"),
    ],
)
def test_a_backbone_that_makes_no_sense_is_refused(choice: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_sight(*choice)


def test_nothing_is_opened_that_an_image_refers_to(tmp_path: Path) -> None:
    """GDAL's virtual files name others, EPS starts a program, a pipe never ends, links go round in circles."""
    secret = tmp_path / "secret.png"
    Image.fromarray(noise(1)).save(secret)
    root = tmp_path / "root"
    root.mkdir()
    band = f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{band}</VRTRasterBand>'
    (root / "virtual.tif").write_text(f'<VRTDataset rasterXSize="40" rasterYSize="32">{band}</VRTDataset>')
    (root / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    os.mkfifo(root / "pipe.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "inside.png").symlink_to(root / "real.png")
    shutil.copy(secret, root / "real.png")
    found = {name: examine_image(root, LARGEST_MB, name).problem for name in sorted(os.listdir(root))}
    assert {name: problem and problem[0] for name, problem in found.items()} == {
        "circle.png": "missing_image", "inside.png": None, "pipe.png": "missing_image",
        "program.png": "unreadable_image", "real.png": None, "virtual.tif": "unreadable_image",
    }  # fmt: skip
    assert "cannot identify" in found["program.png"][1]  # it was not even asked whether it is EPS
    for name in ("a\0b.png", "x" * 5000 + ".png", ""):
        assert examine_image(root, LARGEST_MB, name).problem[0] == "missing_image"


@often
@given(
    suffix=st.sampled_from([".png", ".jpg", ".bmp", ".tif"]), place=st.floats(0, 0.999), junk=st.binary(max_size=40)
)
def test_no_broken_file_raises(suffix: str, place: float, junk: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"image{suffix}"
        Image.fromarray(noise(3)).save(path)
        whole = bytearray(path.read_bytes())
        start = int(place * len(whole))
        whole[start : start + len(junk)] = junk
        path.write_bytes(bytes(whole))
        fact = examine_image(Path(folder), LARGEST_MB, path.name)
        assert (fact.problem is None) == bool(fact.digest)


def test_colour_of_16_bit_and_palettes_in_tiffs_are_told(tmp_path: Path) -> None:
    colour = np.stack([noise(band) for band in range(3)]).astype(np.uint16) * 200
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=3, height=32, width=40, dtype="uint16") as file:
        file.write(colour)
    Image.fromarray(noise(1)).convert("P").save(tmp_path / "b.tif")
    write_tiff(tmp_path / "c.tif", np.stack([noise(band) for band in range(5)]))
    facts = [examine_image(tmp_path, LARGEST_MB, name) for name in ("a.png", "b.tif", "c.tif")]
    assert [(fact.pixels, fact.converted) for fact in facts] == [
        ("uint16", "the upper 8 bits of colour"), ("uint8", "palette, as its numbers"), ("uint8", "5 bands"),
    ]  # fmt: skip


def test_findings_are_the_same_in_any_number_of_processes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2, None)
    folder.path.unlink()
    folder.victim = 4
    folder.says("What is it?", "<image>")
    folder.with_box(1.0, 1.0, 0.0, 0.0)
    data = folder.write()
    assert findings_of(data, processes=2) == findings_of(data)
    assert [one.finding for one in findings_of(data)] == ["missing_image", "unusable_box", "special_token"]


def die(*_: object) -> None:
    os._exit(9)


def test_a_killed_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_checks, "examine_image", die)
    with pytest.raises(InputError, match="one was killed"):
        list(examine_images(tmp_path, ["a.png", "b.png"], LARGEST_MB, 2))


def test_what_scripts_and_people_are_told(
    data: Path, tinies: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = runpy.run_path(str(ROOT / "data_prep/validate.py"))["main"]
    out = tmp_path / "findings.jsonl"

    def validate(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["validate.py", "--processes", "1", "--out", *map(str, (out, *words))])
        return main(), capsys.readouterr().out

    code, output = validate("--data", data, "--model", tinies["qwen2_5_vl"])
    assert code == 0 and out.read_text() == ""
    assert "fit to train on (0 errors, 0 warnings, 0 notes" in output
    assert "uint8 40" in output and "tokens per image (quantiles): 0% 16" in output

    folder = Folder(tmp_path / "root", 3, None)
    folder.says("What is the shape of the circular pond?", "Circular.\x1b[2J")
    code, output = validate("--data", folder.write())
    assert code == 0 and "fit to train on (0 errors, 1 warning" in output and "\x1b" not in output
    assert validate("--data", tmp_path / "root/data", "--strict")[0] == 1
    folder.path.unlink()
    output = run_script("data_prep/validate.py", "--data", tmp_path / "root/data", "--out", out, code=1)
    assert "test noise 1" in output and "such as images/3.png: no such file" in output
    assert "Verdict: mend this before you train (1 error" in output
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == {
        "finding": "missing_image", "severity": "error", "split": "test", "source": "noise", "image": "images/3.png",
        "dialogue": None, "detail": "no such file",
    }  # fmt: skip
    assert (second["finding"], second["dialogue"]) == ("control_characters", "3:new")


def torn(data: Path) -> None:
    path = data / "test.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def rotten(data: Path) -> None:
    path = data / "test.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:400] = bytes(396)
    path.write_bytes(bytes(whole))


def other_columns(data: Path) -> None:
    pq.write_table(pq.read_table(data / "val.parquet").drop_columns("boxes"), data / "val.parquet")


def more_columns(data: Path) -> None:
    table = pq.read_table(data / "val.parquet")
    pq.write_table(table.append_column("mine", table["width"]), data / "val.parquet")


def change_manifest(text: str) -> Callable[[Path], object]:
    return lambda data: (data / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torn, "test.parquet: is no whole parquet file"),
        (rotten, "test.parquet: is no whole parquet file"),
        (lambda data: (data / "train.parquet").unlink(), "train.parquet is missing"),
        (other_columns, "another type: boxes"),
        (more_columns, "another type: mine"),
        (lambda data: (data / "manifest.json").unlink(), "manifest.json is missing"),
        (change_manifest("[1"), "no valid JSON"),
        (change_manifest("[]"), "no `read`"),
        (change_manifest('{"read": 3, "accepted": "3"}'), "no `accepted`"),
        (
            change_manifest('{"read": 3, "accepted": 3, "rejected": {"a": "b"}, "counts": {}, "image_root": "."}'),
            "no `rejected`",
        ),
        (
            change_manifest('{"read": 3, "accepted": 3, "rejected": {}, "counts": {"train": 3}, "image_root": "."}'),
            "no `counts`",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(
    change: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    data = Folder(tmp_path, 0, None).write()
    change(data)
    with pytest.raises(InputError, match=message):
        findings_of(data)


def test_findings_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> None:
        yield Finding("missing_image", "no such file", "train")
        raise InputError("in the middle")

    with pytest.raises(InputError, match="in the middle"):
        write_findings(broken(), tmp_path / "findings.jsonl")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is a folder"):
        write_findings([], tmp_path)


def test_real_mstar_is_clean(real_data: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("T72", "BMP2", "ZSU_23_4"):
            (tmp_path / "chips" / split / label).mkdir(parents=True)
            for path in sorted((real_data / "mstar10" / split / label).iterdir())[:6]:
                shutil.copy(path, tmp_path / "chips" / split / label)
    root = tmp_path / "chips"
    records, rejections, inputs = convert_folders(root, "MSTAR", 0.1, CAPTION_PROMPT, VQA_PROMPT, 0)
    write_data_folder(tmp_path / "data", records, rejections, root, inputs)
    sight = choose_sight(str(real_data / "qwen2_5_vl_7b"), None, None)
    assert findings_of(tmp_path / "data") == findings_of(tmp_path / "data", sight) == []


def test_real_bigearthnet_is_float_and_whole(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "bigearthnet_s1"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tif"))
    records = [
        Record([name], 120, 120, "BigEarthNet", "train", dialogues=[asked(name, "others", "What is it?", "Land.")])
        for name in names
    ]
    write_data_folder(tmp_path / "data", to_table(records), [], root, {})
    found = findings_of(tmp_path / "data")
    assert {(one.finding, one.detail) for one in found} == {("deep_pixels", "float32")} and len(found) == len(names)


def test_the_page_lists_every_finding() -> None:
    page = (ROOT / "docs/validation.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | {kind.severity} | {kind.meaning} | {kind.remedy} |" for name, kind in KINDS.items()]
    assert "\n".join(rows) in page
