"""What the preview shows is what the collator makes: pictures, labels, counts; and hostile texts stay texts."""

import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as transforms
from conftest import run_script
from PIL import Image
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES, Backbone
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import load_picture
from sarlang_sft.loading import load_processor
from sarlang_sft.pieces import IMAGE, SPECIAL, Piece, characters
from sarlang_sft.preview import Sheet, make_sheet
from sarlang_sft.preview_pages import END_TRAINED, takes_colours, terminal_lines, visible, write_page
from sarlang_sft.records import Box, Dialogue, Record, Turn, read_records, to_table, write_data_folder
from sarlang_sft.views import View

HOSTILE = '</mark><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3) \x1b[31m\u202e{{ 7 }}'
ENDS = {  # what the template keeps inside its generation markers before and behind the answer
    "qwen2_vl": ("", "<|im_end|>\n"),
    "qwen2_5_vl": ("", "<|im_end|>\n"),
    "qwen3_vl": ("", "<|im_end|>\n"),
    "llava": (" ", "</s>"),
    "llava_next": (" ", "</s>"),
    "llava_onevision": ("", "<|im_end|>"),
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of boxes, pairs, text alone, several turns, and broken and hostile things."""
    root = tmp_path_factory.mktemp("messy")
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a.png": (140, 100), "b<b>.png": (48, 150), "c.png": (96, 96)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width), np.uint8)).save(root / name)
    (root / "torn.png").write_bytes((root / "a.png").read_bytes()[:2000])

    def dialogue(name: str, *turns: tuple[str, str]) -> Dialogue:
        return Dialogue(name, "<i>made</i>", "others", [Turn(*turn) for turn in turns])

    boxes = [Box("ship", [40.0, 20.0, 60.0, 50.0]), Box(HOSTILE, [60.0, 30.0, 70.0, 30.0, 70.0, 45.0, 60.0, 45.0])]
    records = [
        Record(["a.png"], 140, 100, "made", "train", boxes=boxes, dialogues=[
            dialogue("a:1", ("Where is the ship?", "<box:0>")),
            dialogue("a:2", ("What is this?", "日本語 🚢👩‍🚀, größer."), ("And that?", HOSTILE)),
            dialogue("a:3", ("Is there a car?", "No.")),
            dialogue("a:4", ("No answer?", " ")),
            dialogue("a:5", ("No such box?", "<box:7>")),
        ]),
        Record(["torn.png"], 140, 100, "made", "train", dialogues=[dialogue("torn:1", ("What?", "That."))]),
        Record(["gone.png"], 140, 100, "made", "train", dialogues=[dialogue("gone:1", ("What?", "That."))]),
        Record(["a.png", "b<b>.png"], 140, 100, "made", "train", dialogues=[dialogue("pair:1", ("Same?", "No."))]),
        Record([], 0, 0, "made", "train", dialogues=[dialogue("text:1", ("What is SAR?", "Radar.\nWith a trick."))]),
        Record(["c.png"], 96, 96, "made", "train", dialogues=[dialogue("c:1", ("Empty?", ""))]),
    ]  # fmt: skip
    write_data_folder(root / "data", to_table(records), [], root, {})
    return root / "data"


@pytest.fixture(params=list(BACKBONES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def sheet_of(model: Path, data: Path, images: int = 12, seed: int | None = None, **options: object) -> Sheet:
    return make_sheet(str(model), DataArguments(str(data), **options), "train", images, seed)


def spoken(pieces: list[Piece]) -> str:
    """The trained pieces as text."""
    return "".join(piece.text for piece in pieces if piece.trained)


def expected_view(picture: Image.Image, backbone: Backbone, processor: ProcessorMixin, view: View) -> torch.Tensor:
    """(3, H, W) uint8: the picture resized as the frames say, and put where they say, on black."""
    frame = backbone.frame(processor, *picture.size).then(view.frame)
    height, width, _ = view.pixels.shape
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    size = [round(side * scale) for side, scale in zip(picture.size, frame.scale, strict=True)]
    bicubic = transforms.InterpolationMode.BICUBIC
    resized = transforms.resize(pixels, size[::-1], bicubic, antialias=True)
    left, top = round(frame.shift[0]), round(frame.shift[1])
    return transforms.pad(resized, [left, top, width - left - size[0], height - top - size[1]])


def check_views(model: Path, backbone: Backbone, pictures: list[Image.Image]) -> None:
    processor = load_processor(str(model), backbone)
    tensors = processor.image_processor(images=pictures, return_tensors="pt")
    for number, picture in enumerate(pictures):
        for view in backbone.views(processor, tensors, number):
            expected = expected_view(picture, backbone, processor, view).permute(1, 2, 0).numpy()
            assert view.pixels.shape == expected.shape and view.pixels.std() > 10
            assert np.abs(view.pixels.astype(int) - expected.astype(int)).max() <= 1, (number, view.tiles)


def test_pictures_from_the_tensors_are_the_resized_pictures(family: str, tinies: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    sizes = ((140, 100), (48, 150), (96, 96), (300, 90))
    pictures = [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]
    check_views(tinies[family], BACKBONES[family], pictures)


@pytest.mark.parametrize("trees", [True, False])
def test_trained_is_exactly_the_answers_and_what_ends_them(
    trees: bool, family: str, tinies: dict[str, Path], data: Path, messy: Path
) -> None:
    before, behind = ENDS[family]
    sheet = sheet_of(tinies[family], data, images=4, image_trees=trees)
    shown = [branch for entry in sheet.entries for sample in entry.samples for branch in sample.branches]
    stored = [item for record in list(read_records(data, "train"))[:4] for item in record.dialogues]
    assert [branch.id for branch in shown] == [item.id for item in stored]
    assert [spoken(branch.pieces) for branch in shown] == [before + d.turns[0].answer + behind for d in stored]
    assert all(bool(sample.trunk) == trees for entry in sheet.entries for sample in entry.samples)
    assert not any(spoken(sample.trunk) for entry in sheet.entries for sample in entry.samples)
    branches = {
        branch.id: branch
        for entry in sheet_of(tinies[family], messy, image_trees=trees).entries
        for sample in entry.samples
        for branch in sample.branches
    }
    assert spoken(branches["a:2"].pieces) == f"{before}日本語 🚢👩‍🚀, größer.{behind}{before}{HOSTILE}{behind}"
    assert spoken(branches["text:1"].pieces) == f"{before}Radar.\nWith a trick.{behind}"
    assert set(branches) == {"a:1", "a:2", "a:3", "pair:1", "text:1"}


def test_spaces_stay_where_decoders_drop_them_in_front() -> None:
    """As SentencePiece's do, which LLaVA's released tokenizers are."""
    words = Tokenizer(models.WordLevel({"\u2581Is": 0, "\u2581it": 1, "?": 2, "\u2581Yes": 3}, unk_token="?"))
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([3]) == "Yes"
    assert list(characters(tokenizer, [0, 1, 2], [])) == [("Is", [0]), (" it", [1]), ("?", [2])]
    assert list(characters(tokenizer, [3], [0, 1, 2])) == [(" Yes", [3])]


def test_counts_of_image_tokens_are_those_of_the_models_features(
    family: str, tinies: dict[str, Path], messy: Path
) -> None:
    backbone = BACKBONES[family]
    model, processor = backbone.model_class.from_pretrained(tinies[family]), load_processor(tinies[family], backbone)
    entries = {" ".join(entry.images): entry for entry in sheet_of(tinies[family], messy).entries}
    for names in (["a.png"], ["a.png", "b<b>.png"]):
        pictures = [load_picture(messy.parent / name, []) for name in names]
        tensors = processor.image_processor(images=pictures, return_tensors="pt")
        tensors = {name: value for name, value in tensors.items() if name != "batch_num_images"}
        features = model.get_image_features(**tensors).pooler_output
        runs = [len(piece.ids) for piece in entries[" ".join(names)].pieces() if piece.kind == IMAGE]
        assert sum(runs) == sum(len(feature) for feature in features) and len(runs) <= len(names)


def test_a_trunk_is_shown_once_and_its_branches_start_where_it_ends(
    family: str, tinies: dict[str, Path], data: Path
) -> None:
    [entry] = sheet_of(tinies[family], data, images=1).entries
    [sample] = entry.samples
    flat = [
        sample
        for entry in sheet_of(tinies[family], data, images=1, image_trees=False).entries
        for sample in entry.samples
    ]
    tokens = [token for piece in sample.trunk for token in piece.ids]
    whole = [[token for piece in one.branches[0].pieces for token in piece.ids] for one in flat]
    branches = [[token for piece in branch.pieces for token in piece.ids] for branch in sample.branches]
    assert [tokens + branch for branch in branches] == whole
    [start] = {branch.start for branch in sample.branches}
    saved = sum(len(piece.ids) for piece in sample.trunk if piece.kind == IMAGE)
    side = round(saved**0.5)
    assert start == (len(tokens) - saved + side if BACKBONES[family].recipes == "qwen" else len(tokens))
    assert {one.branches[0].start for one in flat} == {None}


def test_outlines_lie_where_the_box_is_in_every_view(family: str, tinies: dict[str, Path], tmp_path: Path) -> None:
    image = np.zeros((120, 180), np.uint8)
    image[40:70, 70:110] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    dialogues = [Dialogue("1", "made", "others", [Turn("What?", "A box.")])]
    boxes = [Box("here", [70.0, 40.0, 40.0, 30.0]), Box("far", [-50.0, 0.0, 20.0, 20.0])]
    records = [Record(["a.png"], 180, 120, "made", "train", boxes=boxes, dialogues=dialogues)]
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path, {})
    for ops in ([], ["crop:110", "resize:128"]):
        [entry] = sheet_of(tinies[family], tmp_path / "data", image_ops=ops).entries
        for view in entry.pictures[0].views:
            [outline] = view.outlines  # the other box is outside
            rows, columns = np.nonzero(np.asarray(view.picture.convert("L")) > 127)
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            left, top, right, bottom = (*np.min(outline.corners, axis=0), *np.max(outline.corners, axis=0))
            assert outline.label == "0 here" and np.allclose(seen, [left, top, right, bottom], atol=1.5), ops
    [entry] = sheet_of(tinies[family], tmp_path / "data", image_ops=["shift:9"]).entries
    assert not entry.pictures[0].views[0].outlines, "nobody knows where the box went"


def test_what_training_stops_at_or_leaves_out_is_shown_with_its_reason(tiny: Path, messy: Path) -> None:
    entries = {" ".join(entry.images): entry for entry in sheet_of(tiny, messy).entries}
    assert len(entries) == 6
    assert "torn.png" in entries["torn.png"].problem and entries["gone.png"].problem == "gone.png: image unreadable"
    assert not entries["torn.png"].samples and not entries["torn.png"].pictures and not entries["a.png"].problem
    assert dict(entries["a.png"].left_out) == {
        "a:4": "no answer (its answers are empty)",
        "a:5": "no box of this number (a text names a box that its record has not)",
    }
    assert [name for name, _ in entries["c.png"].left_out] == ["c:1"] and not entries["c.png"].samples
    page = "\n".join(terminal_lines(sheet_of(tiny, messy), False))
    assert "training stops here: gone.png: image unreadable" in page and "left out: a:4: no answer" in page


def test_a_wrong_label_mask_shows(tinies: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that trains on the model's cue and forgets the stop token."""
    [template] = BACKBONES["llava"].training_templates
    wrong = template.replace("{{- 'ASSISTANT:' -}}{%- generation -%}", "{%- generation -%}{{- 'ASSISTANT:' -}}")
    wrong = wrong.replace("{{- eos_token -}}{%- endgeneration -%}", "{%- endgeneration -%}{{- eos_token -}}")
    monkeypatch.setitem(BACKBONES, "llava", replace(BACKBONES["llava"], training_templates=(wrong,)))
    [entry] = sheet_of(tinies["llava"], data, images=1).entries
    [record, *_] = read_records(data, "train")
    shown = [spoken(branch.pieces) for branch in entry.samples[0].branches]
    assert shown == [f"ASSISTANT: {dialogue.turns[0].answer}" for dialogue in record.dialogues]


def test_images_are_whole_first_or_drawn_and_cut_as_training_cuts_them(tiny: Path, data: Path) -> None:
    stored = list(read_records(data, "train"))
    first = sheet_of(tiny, data, images=3)
    assert [entry.images for entry in first.entries] == [record.images for record in stored[:3]]
    assert first.records == len(stored) and first.counts()["images"] == 3
    drawn = [[entry.images for entry in sheet_of(tiny, data, images=3, seed=seed).entries] for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(sheet_of(tiny, data, images=1000).entries) == len(stored)
    [entry] = sheet_of(tiny, data, images=1, max_tokens_per_row=200).entries
    branches = [branch.id for sample in entry.samples for branch in sample.branches]
    assert len(entry.samples) > 1 and branches == [dialogue.id for dialogue in stored[0].dialogues]
    [entry] = sheet_of(tiny, data, images=1, turns_per_image=2).entries
    assert len(entry.samples[0].branches) == 2 and entry.undrawn == len(stored[0].dialogues) - 2


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_one_file_in_which_hostile_texts_stay_texts(tiny: Path, messy: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "preview.html"
    write_page(sheet_of(tiny, messy), out)
    assert [path.name for path in out.parent.iterdir()] == ["preview.html"]
    page = Page(out.read_text(encoding="utf-8"))
    names = {name for _, attributes in page.tags for name in attributes}
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags) and not names & {
        "onerror",
        "onmouseover",
    }
    assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in page.tags if tag == "img")
    whole = "".join(page.text)
    assert visible(HOSTILE) in whole and "<i>made</i>" in whole and "b<b>.png" in whole
    assert "\x1b" not in whole and "\u202e" not in whole and "日本語" in whole
    marked = [attributes["title"] for tag, attributes in page.tags if tag == "mark" and "title" in attributes]
    assert marked and all(title.endswith(", trained") for title in marked)
    assert sum(tag == "polygon" for tag, _ in page.tags) == 2 * 2


def test_the_terminal_gets_colours_or_marks_and_no_control_signs_of_the_data(tiny: Path, messy: Path) -> None:
    sheet = sheet_of(tiny, messy)
    plain, coloured = ("\n".join(terminal_lines(sheet, colours)) for colours in (False, True))
    assert "\x1b" not in plain and "\u202e" not in plain and visible(HOSTILE) in plain
    assert f"⟦No.<|im_end|>↵{END_TRAINED}" in plain and "[24 image tokens]" in plain and "starts at position" in plain
    bare = [line for line in re.sub(r"\x1b\[[\d;]*m", "", coloured).split("\n") if "▀" not in line]
    assert "\n".join(bare) == plain.replace("⟦", "").replace("⟧", ""), "the same content"
    assert "\x1b[31m" not in coloured and "▀" in coloured


def test_only_terminals_take_colours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    ends = os.openpty()
    with open(ends[1], "w") as terminal, open(tmp_path / "file", "w") as file:
        assert takes_colours(terminal) and not takes_colours(file)
        monkeypatch.setenv("NO_COLOR", "1")
        assert not takes_colours(terminal)
    os.close(ends[0])


def test_the_script_reads_no_weights_and_prints_plain_text_into_a_pipe(tiny: Path, data: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    output = run_script("data_prep/preview.py", "--data", data, "--model", tmp_path, "--images", 1)
    assert f"1 of {len(list(read_records(data, 'train')))} images" in output and "[1/1] SARimages/" in output
    assert "  trunk: " in output and "⟦" in output and "\x1b[1" not in output


def test_the_real_7b_processor_on_real_chips(real_data: Path, tmp_path: Path) -> None:
    model, root = real_data / "qwen2_5_vl_7b", real_data / "mstar10"
    chips = sorted(root.glob("train/*/*.*"))[::400]
    sizes = [Image.open(chip).size for chip in chips]
    records = [
        Record([str(chip.relative_to(root))], *size, "MSTAR", "train", dialogues=[
            Dialogue(f"{chip.name}: {asked}", "folders", "others", [Turn(asked, f"{chip.parent.name}.")])
            for asked in ("What is it?", "Which class?")
        ])
        for chip, size in zip(chips, sizes, strict=True)
    ]  # fmt: skip
    write_data_folder(tmp_path / "data", to_table(records), [], root, {})
    sheet = sheet_of(model, tmp_path / "data", max_pixels=112 * 112)
    for chip, entry in zip(chips, sheet.entries, strict=True):
        [sample] = entry.samples
        assert [spoken(branch.pieces) for branch in sample.branches] == [f"{chip.parent.name}.<|im_end|>\n"] * 2
        [view] = entry.pictures[0].views
        runs = [len(piece.ids) for piece in sample.trunk if piece.kind == IMAGE]
        assert runs == [view.size[0] // 28 * (view.size[1] // 28)] and max(view.size) <= 112
        specials = [piece.text for piece in sample.trunk if piece.kind == SPECIAL]
        assert specials[-2:] == ["<|vision_start|>", "<|vision_end|>"]
    check_views(model, BACKBONES["qwen2_5_vl"], [load_picture(chip, []) for chip in chips[:2]])


def test_wrong_input_names_the_option(tinies: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tiny = tinies["qwen2_5_vl"]
    cases = {
        "--images 0": lambda: sheet_of(tiny, data, images=0),
        "--seed -1": lambda: sheet_of(tiny, data, seed=-1),
        "--split nowhere": lambda: make_sheet(str(tiny), DataArguments(str(data)), "nowhere", 1, None),
        "--data .*no data folder": lambda: sheet_of(tiny, tmp_path),
        "model .*neither a folder": lambda: sheet_of(tmp_path / "none", data),
        "max_pixels 9000": lambda: sheet_of(tinies["llava"], data, max_pixels=9000),
        "image_ops: unknown operation": lambda: sheet_of(tiny, data, image_ops=["sharpen"]),
        "--out .*is a folder": lambda: write_page(sheet_of(tiny, data, images=1), tmp_path),
        "cannot be written": lambda: write_page(sheet_of(tiny, data, images=1), tiny / "config.json" / "x.html"),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message):
            call()


def test_broken_boxes_and_texts_of_control_tokens_do_not_end_the_preview(tiny: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (96, 96)).save(tmp_path / name)
    said = {
        name: [Dialogue(name, "made", "others", [Turn(text, "That.")])]
        for name, text in (("a", "What?"), ("b", "<|image_pad|>?"))
    }
    boxes = [Box("good", [10.0, 10.0, 20.0, 20.0]), Box("none", []), Box("three", [1.0, 2.0, 3.0])]
    records = [Record([f"{name}.png"], 96, 96, "made", "train", boxes=boxes, dialogues=said[name]) for name in said]
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path, {})
    first, second = make_sheet(str(tiny), DataArguments(data=str(tmp_path / "data")), "train", 2, None).entries
    assert [outline.label for outline in first.pictures[0].views[0].outlines] == ["0 good"] and not first.problem
    assert second.problem and not second.samples
