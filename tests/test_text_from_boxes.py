"""build_from_boxes.py as users run it: files of annotations in, a data folder with true texts out."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import MODEL, misbehaving_server, text_of
from conftest import run_script
from PIL import Image

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.box_texts import write_table
from sarlang_sft.eval_questions import read_questions
from sarlang_sft.language.captions import CAPTIONS
from sarlang_sft.language.dialogues import GROUNDING, VQA
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.prediction_files import append_rows, make_row
from sarlang_sft.records import Record, read_manifest, read_records
from sarlang_sft.scenes import CLASSES, make_scene, render_sar

BUILD = "data_prep/build_from_boxes.py"
SCENES = 60
FAMILIES = {"general", "complex", "absolute_region", "relative_region"}


def write_scenes(root: Path, split: str, first: int, count: int) -> Path:
    """Simulated scenes with their boxes as COCO; every tenth is an empty one."""
    (root / "images" / split).mkdir(parents=True)
    images, annotations = [], []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        scene = make_scene(rng)
        name = f"{split}/{number:04d}.png"
        Image.fromarray(render_sar(scene, rng)).save(root / "images" / name)
        images.append({"id": number, "file_name": name, "width": scene.size, "height": scene.size})
        for box in scene.boxes if number % 10 else ():
            label = CLASSES.index(box.label)
            annotations.append({"image_id": number, "category_id": label, "bbox": box.points})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    return write_coco(root / f"{split}.json", images, annotations, categories)


def write_coco(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> Path:
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, "train", 0, SCENES)
    write_scenes(root, "test", SCENES, SCENES // 2)
    words = [f"train={root / 'train.json'}", f"test={root / 'test.json'}"]
    (root / "log").write_text(
        run_script(BUILD, "--annotations", *words, "--image_root", root / "images", "--out", root / "data", *VAL)
    )
    return root


VAL = ("--val_fraction", "0.1")


def records_of(data: Path) -> list[Record]:
    return [record for split in ("train", "val", "test") for record in read_records(data, split)]


def test_the_folder_holds_all_tasks_families_and_splits_and_agrees_with_its_boxes(
    run: Callable[..., str], scenes: Path
) -> None:
    data, log = scenes / "data", (scenes / "log").read_text()
    manifest = read_manifest(data)
    tasks = {task for subsets in manifest["counts"].values() for of in subsets.values() for task in of}
    assert tasks == {
        "identification", "counting", "positioning", "referring", "classification", "description", "grounding",
        "cross_identification",
    }  # fmt: skip
    assert {*manifest["counts"]["test"]} == {VQA, CAPTIONS, GROUNDING}
    assert manifest["read"] == manifest["accepted"] and manifest["rejected"] == {}
    assert manifest["classes"] == list(CLASSES) and manifest["wording"]["name"] == "en"
    boxes = manifest["annotations"]["boxes"]
    assert boxes["read"] == boxes["used"] + sum(boxes["left_out"].values())
    assert manifest["annotations"]["without_boxes"] == 9 and "images without boxes 9" in log
    output = run("data_prep/check_answers.py", "--data", data)
    assert f"{manifest['accepted']:,} of {manifest['accepted']:,} dialogues agree" in output
    assert "fit to train on" in run("data_prep/validate.py", "--data", data)


def test_images_get_five_captions_in_the_families_that_their_boxes_allow(scenes: Path) -> None:
    seen: set[str] = set()
    for record in records_of(scenes / "data"):
        captions = [one for one in record.dialogues if one.subset == CAPTIONS]
        texts = [one.turns[0].answer for one in captions]
        assert len(texts) == len({*texts}) == (5 if record.boxes else 0)
        styles = {one.style for one in captions}
        seen |= styles
        if len({box.label for box in record.boxes}) == 1:
            assert "relative_region" not in styles
        assert styles <= FAMILIES
    assert seen == FAMILIES


def test_yes_and_no_come_equally_often_with_every_class_in_every_split(scenes: Path) -> None:
    answers: Counter[tuple[str, str, str, str]] = Counter()
    for record in records_of(scenes / "data"):
        for one in record.dialogues:
            if one.task in ("identification", "cross_identification"):
                (label,) = [label for label in CLASSES if label in one.turns[0].question.split("<|", 1)[0]]
                answers[record.split, one.task, label, one.turns[0].answer] += 1
    kinds = {key[:3] for key in answers}
    assert {split for split, _, _ in kinds} == {"train", "val", "test"} and len(kinds) > 20
    for kind in kinds:
        assert answers[(*kind, "Yes.")] == answers[(*kind, "No.")], kind


def test_the_same_seed_gives_the_same_texts_and_another_one_others(
    run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    words = [f"train={scenes / 'train.json'}", f"test={scenes / 'test.json'}", "--image_root", scenes / "images", *VAL]
    run(BUILD, "--annotations", *words, "--out", tmp_path / "again")
    run(BUILD, "--annotations", *words, "--out", tmp_path / "other", "--seed", 1)
    first, again, other = (
        pq.read_table(path / "test.parquet") for path in (scenes / "data", tmp_path / "again", tmp_path / "other")
    )
    assert first.equals(again) and not first.equals(other)


def test_what_is_asked_for_is_built_and_nothing_else(run: Callable[..., str], scenes: Path, tmp_path: Path) -> None:
    words = ["--annotations", scenes / "train.json", "--image_root", scenes / "images", "--out", tmp_path / "data"]
    run(BUILD, *words, "--texts", "vqa", "--wording", "sarlang", "--boxes_asked", 1, "--test_fraction", 0.2, *VAL)
    manifest = read_manifest(tmp_path / "data")
    assert {subset for split in manifest["counts"].values() for subset in split} == {VQA}
    assert all(manifest["counts"][split] for split in ("train", "val", "test"))
    questions = {
        one.turns[0].question.removeprefix("Question: ").removesuffix(". Answer the question concisely.")
        for record in records_of(tmp_path / "data")
        for one in record.dialogues
    }
    # the forms that SARLANG-1M prints, and no other
    begins = ("Is there a", "How many ", "Where are most ", "What is the object present in the area [",
              "What is the category visible in the area [", "What categories are visible?")  # fmt: skip
    assert all(question.startswith(begins) for question in questions)
    for record in records_of(tmp_path / "data"):
        assert sum(one.task == "referring" for one in record.dialogues) <= 1


def test_the_card_stands_beside_the_published_counts(scenes: Path) -> None:
    card = (scenes / "data/card.md").read_text()
    counts = read_manifest(scenes / "data")["counts"]
    counting = sum(split[VQA]["counting"] for split in counts.values())
    assert f"| {VQA} | counting | {counting:,} | 117,382 |" in card and "| 484,620 |" in card
    assert f"| {VQA} | identification | 2 | No. 50.0%, Yes. 50.0% |" in card


def test_a_wrong_answer_in_a_folder_is_found(run: Callable[..., str], scenes: Path, tmp_path: Path) -> None:
    words = ["--annotations", scenes / "test.json", "--image_root", scenes / "images", "--out", tmp_path / "data"]
    run(BUILD, *words)
    path = tmp_path / "data/test.parquet"
    rows = pq.read_table(path).to_pylist()
    changed = next(one for row in rows for one in row["dialogues"] if one["task"] == "counting")
    changed["turns"][0]["answer"] = "77."
    pq.write_table(pq.read_table(path).from_pylist(rows, pq.read_schema(path)), path)
    output = run("data_prep/check_answers.py", "--data", tmp_path / "data", code=1)
    assert changed["id"] in output and "answers '77.', the boxes say" in output
    (tmp_path / "data/wording.yaml").unlink()
    output = run("data_prep/check_answers.py", "--data", tmp_path / "data", code=2)
    assert "was not built by build_from_boxes.py" in output


def test_a_model_that_answers_what_is_stored_scores_full_marks(
    run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    data = scenes / "data"
    rows = []
    for question in read_questions(data, "test", [], [], None):
        named = [int(part.split(">")[0]) for part in question.label.split("<box:")[1:]]
        boxes = [question.boxes[number]["points"] for number in named] if named else None
        rows.append(make_row(question, question.label, None, boxes))
    append_rows(tmp_path / "predictions.jsonl", rows)
    words = ["--predictions", tmp_path / "predictions.jsonl", "--data", data, "--split", "test", "--protocol", "exact"]
    run("eval/score_vqa.py", *words, "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["overall"]["value"] == 1.0 and scores["n"] == scores["answered"] > 300
    assert {*scores["by_task"]} >= {"grounding", "cross_identification", "referring", "positioning"}


def test_boxes_are_written_for_every_family(scenes: Path, tinies: dict[str, Path]) -> None:
    table = read_mixture([DataSource(str(scenes / "data"))], "train")
    for family, backbone in BACKBONES.items():
        written, failed = write_table(table, load_processor(str(tinies[family]), backbone), backbone, [])
        texts = [turn["answer"] for turns in written["turns"].to_pylist() for turn in turns]
        assert not failed and not any("<box:" in text for text in texts), family


def coco_of(boxes: dict[str, list[dict[str, Any]]], root: Path, names: list[str]) -> Path:
    """A COCO file of images of 100 x 100 pixels with the annotations of each."""
    images, annotations = [], []
    (root / "images").mkdir(parents=True)
    for number, (image, of_image) in enumerate(boxes.items()):
        Image.new("L", (100, 100), number).save(root / "images" / f"{image}.png")
        images.append({"id": number, "file_name": f"{image}.png"})
        annotations += [{"image_id": number, **one} for one in of_image]
    return write_coco(root / "a.json", images, annotations, [{"id": i, "name": name} for i, name in enumerate(names)])


def box(category: int, x: float, y: float, **more: Any) -> dict[str, Any]:
    return {"category_id": category, "bbox": [x, y, 8, 8], **more}


def test_nothing_is_said_of_what_is_not_known_for_sure(run: Callable[..., str], tmp_path: Path) -> None:
    boxes = {
        "sure": [box(0, 10, 40), box(1, 70, 40)],
        "crowd": [box(0, 10, 40), box(1, 70, 40), box(1, 50, 50, iscrowd=1)],
        "unknown": [box(0, 10, 40), box(9, 70, 40)],
        "broken": [box(0, 10, 40), {"category_id": 2, "bbox": [5, 5, 0, 3]}],
        "third": [box(2, 60, 60), box(1, 40, 80)],
    }
    words = ["--annotations", coco_of(boxes, tmp_path, ["ship", "car", "tank"]), "--image_root", tmp_path / "images"]
    output = run(BUILD, *words, "--out", tmp_path / "data", "--val_fraction", 0, "--keep_difficult", "false")
    said = {record.images[0][:-4]: record for record in records_of(tmp_path / "data")}
    asked = {
        image: {(one.task, one.turns[0].question.split("image")[0].split(". Answer")[0]) for one in record.dialogues}
        for image, record in said.items()
    }
    tasks = {image: Counter(task for task, _ in of_image) for image, of_image in asked.items()}
    texts = {image: str([one.turns for one in record.dialogues]) for image, record in said.items()}
    assert tasks["sure"]["classification"] == 1 and tasks["sure"]["counting"] == 2
    # a second car may be in the crowd: that there is a car is sure, how many is not
    assert tasks["crowd"]["counting"] == 1 and tasks["crowd"]["classification"] == 1
    assert "1 car" not in texts["crowd"] and "Locate the car" not in texts["crowd"]
    assert {one.style for one in said["crowd"].dialogues if one.subset == CAPTIONS} == {"absolute_region"}
    # an object of no known class: the list of classes is not whole
    assert tasks["unknown"]["classification"] == 0 and tasks["unknown"]["counting"] == 1
    # a tank without a usable box: neither yes nor no
    assert "tank" not in texts["broken"] and tasks["broken"]["classification"] == 0
    assert "with a class not known in full 3" in output
    lines = [json.loads(line) for line in (tmp_path / "data/annotations.jsonl").read_text().splitlines()]
    left_out = {(line["image"], line["what"], line["used"]) for line in lines}
    assert left_out == {(f"{image}.png", "box", False) for image in ("crowd", "unknown", "broken")}


def test_a_class_is_unsure_however_its_label_is_spelt(run: Callable[..., str], tmp_path: Path) -> None:
    boxes = {
        "crowd": [box(1, 10, 40, iscrowd=1), box(2, 70, 40)],
        "more": [box(0, 10, 40), box(1, 40, 40, iscrowd=1), box(2, 70, 40)],
        "twice": [box(0, 10, 40), box(1, 10, 40), box(2, 70, 40)],
        "car": [box(2, 10, 40)],
    }
    words = ["--annotations", coco_of(boxes, tmp_path, ["large-vehicle", "Large_Vehicle", "car"])]
    run(BUILD, *words, "--image_root", tmp_path / "images", "--out", tmp_path / "data", "--val_fraction", 0)
    texts = {
        record.images[0]: str([one.turns for one in record.dialogues]) for record in records_of(tmp_path / "data")
    }
    assert not re.search("(Is there|Does|Can|many|are) .*large vehicle", texts["crowd.png"].split("<box:")[0])
    assert "many large vehicles" not in texts["more.png"] and "1 large vehicle" not in texts["more.png"]
    left_out = read_manifest(tmp_path / "data")["annotations"]["boxes"]["left_out"]
    assert left_out == {"marked as difficult": 2, "annotated twice": 1}


def test_one_class_is_asked_for_where_it_is_and_in_empty_images(run: Callable[..., str], tmp_path: Path) -> None:
    boxes = {f"full{n}": [box(0, 10 + n, 40)] for n in range(6)} | {f"empty{n}": [] for n in range(3)}
    words = ["--annotations", coco_of(boxes, tmp_path, ["ship"]), "--image_root", tmp_path / "images"]
    run(BUILD, *words, "--out", tmp_path / "data", "--val_fraction", 0)
    answers = Counter(
        one.turns[0].answer
        for record in records_of(tmp_path / "data")
        for one in record.dialogues
        if one.task == "identification"
    )
    assert answers == {"Yes.": 3, "No.": 3}


def test_masks_speak_of_classes_and_not_of_numbers_unless_components_are_objects(
    run: Callable[..., str], tmp_path: Path
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        mask = np.zeros((100, 100), np.uint8)
        mask[10:20, 10 : 20 + number], mask[50:60, 70:80] = 1, 1 + number % 2
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.png")
        Image.new("L", (100, 100), number).save(tmp_path / f"images/{number}.png")
    (tmp_path / "names.txt").write_text("water\nroad\n")
    words = ["--annotations", tmp_path / "masks", "--image_root", tmp_path / "images", "--format", "class_masks"]
    words += ["--class_names", tmp_path / "names.txt", "--val_fraction", 0, "--out", tmp_path / "data"]
    run(BUILD, *words)
    tasks = {one.task for record in records_of(tmp_path / "data") for one in record.dialogues}
    assert tasks == {"identification", "classification", "referring", "cross_identification"}
    run(BUILD, *words, "--count_components", "true")
    tasks = {one.task for record in records_of(tmp_path / "data") for one in record.dialogues}
    assert {"counting", "description", "grounding"} <= tasks


def test_built_captions_are_rewritten_and_all_else_stays(
    run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    def reword(body: dict[str, Any]) -> str:
        caption = json.loads(text_of(body).rpartition("The caption: ")[2])
        return f"{caption.replace('SAR image', 'radar image')}\n{caption.replace('1', '2')}"

    with misbehaving_server() as server:
        server.say = reword
        words = ["--data", scenes / "data", "--out", tmp_path / "data", "--model", MODEL, "--base_url", server.url]
        output = run("data_prep/rewrite_captions.py", *words)
    facts = read_manifest(tmp_path / "data")["rewriting"]
    assert facts["rewritten"] > 50 and facts["rejected_rewrites"] and "before" in output and "after" in output
    changed = 0
    for before, after in zip(records_of(scenes / "data"), records_of(tmp_path / "data"), strict=True):
        assert before.boxes == after.boxes and len(before.dialogues) == len(after.dialogues)
        for one, other in zip(before.dialogues, after.dialogues, strict=True):
            if one != other:
                changed += 1
                caption = one.turns[0].answer
                assert one.subset == CAPTIONS and before.split != "test"
                assert other.turns[0].answer == caption.replace("SAR image", "radar image")
    assert changed == facts["rewritten"]
    assert "dialogues agree" in run("data_prep/check_answers.py", "--data", tmp_path / "data", code=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--annotations", "{root}/none.json"], "no such file"),
        (["--annotations", "{root}/train.json", "--image_root", "{root}/none"], "--image_root"),
        (["--annotations", "{root}/train.json", "--texts", "poems"], "--texts poems: choose among vqa, captions"),
        (["--annotations", "{root}/train.json", "--wording", "klingon"], "--wording klingon: cannot be read"),
        (["--annotations", "{root}/train.json", "--test_fraction", "1"], "--test_fraction 1.0: must be at least 0"),
        (["--annotations", "{root}/train.json", "--format", "yolo"], ".txt"),
        (
            ["--annotations", "{root}/train.json", "--class_names", "x"],
            "--class_names x: coco names its classes itself",
        ),
        (["--annotations", "{root}/train.json", "--seed", "-1"], "--seed must be 0 or more"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    words: list[str], message: str, run: Callable[..., str], scenes: Path, tmp_path: Path
) -> None:
    words = [word.format(root=scenes) for word in words]
    words += [] if "--image_root" in words else ["--image_root", str(scenes / "images")]
    assert message in run(BUILD, *words, "--out", tmp_path / "data", code=2)
    assert not (tmp_path / "data").exists()


def test_a_set_without_a_usable_box_is_refused(run: Callable[..., str], tmp_path: Path) -> None:
    words = ["--annotations", coco_of({"a": []}, tmp_path, ["ship"]), "--image_root", tmp_path / "images"]
    output = run(BUILD, *words, "--out", tmp_path / "data", code=2)
    assert "no usable box in 1 images" in output


def test_real_scenes_become_texts(run: Callable[..., str], real_data: Path, tmp_path: Path) -> None:
    scenes = real_data / "mstar_scenes"
    words = ["--annotations", scenes / "instances.json", "--image_root", scenes / "images", "--out", tmp_path / "data"]
    output = run(BUILD, *words)
    assert "images: read 150 = used 150" in output and "boxes: read 253 = used 253" in output
    accounts = read_manifest(tmp_path / "data")["annotations"]
    assert accounts["boxes"]["changed"] == {"clipped to the image": 31}
    assert "dialogues agree with their boxes" in run("data_prep/check_answers.py", "--data", tmp_path / "data")
