"""The preview's page in a real browser; apart from the other tests, since it needs one (requirements-browser.txt)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contrast import CONTRAST, READABLE
from playwright.sync_api import Browser, Page

from sarlang_sft.arguments import DataArguments
from sarlang_sft.preview import make_sheet
from sarlang_sft.preview_pages import write_page
from sarlang_sft.records import Box, Dialogue, Turn, read_manifest, read_records, to_table, write_data_folder

HOSTILE = '</mark></p><script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)'


@pytest.fixture(scope="session")
def page_file(data: Path, tinies: dict[str, Path]) -> Path:
    """The sheet of three images of the sample for LLaVA-NeXT, with boxes and hostile words."""
    image_root = Path(read_manifest(data)["image_root"])
    records = []
    for record in list(read_records(data, "train"))[:3]:
        hostile = [Turn(HOSTILE, HOSTILE), Turn("word" * 60, "0123456789" * 30)]
        dialogues = [*record.dialogues[:3], Dialogue(HOSTILE, HOSTILE, "others", hostile)]
        boxes = [Box(HOSTILE, [30.0, 30.0, 20.0, 20.0]), Box("corner", [80.0, 0.0, 40.0, 12.0])]
        records.append(replace(record, boxes=boxes, dialogues=dialogues))
    folder = data.parent / "hostile"
    write_data_folder(folder, to_table(records), [], image_root, {})
    out = data.parent / "preview.html"
    write_page(make_sheet(str(tinies["llava_next"]), DataArguments(str(folder)), "train", 3, None), out)
    return out


@pytest.fixture(params=[(1200, "light"), (1200, "dark"), (400, "light"), (400, "dark")], ids=str)
def page(request: pytest.FixtureRequest, browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page, without a network, at a width and in a colour scheme; whatever it complains of fails the test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(page_file.as_uri())
    yield page
    assert not complaints
    context.close()


def test_nothing_runs_nothing_is_missing_and_nothing_sticks_out(page: Page) -> None:
    assert page.evaluate("document.scripts.length") == 0
    decoded = "image => image.complete && image.naturalWidth === Number(image.getAttribute('width'))"
    assert page.evaluate(f"[...document.images].every({decoded})")
    assert page.locator("img").count() == 3 * 2, "the whole and the tiles"
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    sticking_out = """[...document.querySelectorAll('article *')].filter(element =>
      element.getBoundingClientRect().right > element.closest('article').getBoundingClientRect().right
      && !element.closest('.view')).length"""
    assert page.evaluate(sticking_out) == 0


def test_trained_tokens_differ_by_ground_and_underline_and_everything_can_be_read(page: Page) -> None:
    for kind in ("mark", "p.text span:not([class])", ".special", ".image", "h3 span", ".facts", "dt"):
        contrast = page.locator(kind).first.evaluate(CONTRAST)
        assert contrast >= READABLE, (kind, contrast)
    lines = "getComputedStyle(document.querySelector('{}')).textDecorationLine"
    assert page.evaluate(lines.format("mark")) == "underline"
    assert page.evaluate(lines.format("p.text span")) == "none"
    assert page.locator("mark[title*=trained]").count() > 50


def test_outlines_lie_over_the_picture_and_their_names_inside(page: Page) -> None:
    for view in page.locator(".view").all():
        picture, drawing = view.locator("img").bounding_box(), view.locator("svg").bounding_box()
        assert picture == drawing
        for name in view.locator(".name").all():
            box = name.bounding_box()
            assert box["y"] >= picture["y"] - 1 and box["x"] >= picture["x"] - 1
            assert box["x"] + box["width"] <= picture["x"] + picture["width"] + 1
