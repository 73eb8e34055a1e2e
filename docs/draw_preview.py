"""Draw docs/preview.png: the preview of a simulated scene for a tiny Qwen2.5-VL, in a browser.

    pip install -r requirements-browser.txt && python docs/draw_preview.py

Boxes are those that the simulator has put into truth.json; the released layout has none.
"""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import sync_playwright

from sarlang_sft.arguments import DataArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.preview import make_sheet
from sarlang_sft.preview_pages import write_page
from sarlang_sft.records import Box, to_records, to_table, write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert

OUT = Path(__file__).resolve().with_name("preview.png")
WIDTH, MARGIN = 1040, 16


def write_preview() -> Path:
    """The page of the scene with most boxes, written to the working folder."""
    sample, data, model = Path("sample"), Path("data/sarlang"), Path("models/tiny")
    write_sample(sample, images=40, seed=0)
    truth = json.loads((sample / "truth.json").read_text(encoding="utf-8"))
    records, rejections, inputs = convert(sample, sample, 0.02, Prompts(class_prefix="never"))
    boxes = {name: [Box(**box) for box in scene["boxes"]] for name, scene in truth.items()}
    records = [replace(record, boxes=boxes[Path(record.images[0]).name]) for record in to_records(records)]
    records.sort(key=lambda record: -len(record.boxes))
    write_data_folder(data, to_table(records), rejections, sample, inputs)
    texts = [
        text for record in records for one in record.dialogues for turn in one.turns for text in vars(turn).values()
    ]
    BACKBONES["qwen2_5_vl"].build_tiny(model, texts, 0)
    page = Path("preview.html")
    write_page(make_sheet(str(model), DataArguments(str(data), turns_per_image=6), "train", 12, None), page)
    return page.resolve()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.chdir(folder)  # so that the page shows short paths
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(write_preview().as_uri())
        first = page.locator("article").first.bounding_box()
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": first["y"] + first["height"] + MARGIN}
        page.screenshot(path=OUT, full_page=True, clip=clip)
        browser.close()
        os.chdir(OUT.parent)
    print(f"Picture: {OUT}")


if __name__ == "__main__":
    main()
