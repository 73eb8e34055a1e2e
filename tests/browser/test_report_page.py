"""The report's page in a real browser: filters, keys, widths, hostile texts, two thousand questions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from contrast import CONTRAST, READABLE
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from report_runs import HOSTILE, LONG_WORD, NUL, RAMBLE, TURNED, questions, write_predictions

from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.reporting.curves import read_history
from sarlang_sft.reporting.gallery import make_gallery
from sarlang_sft.reporting.given import read_run
from sarlang_sft.reporting.page import make_report, write_page

IMAGES, STRANGE = 250, [HOSTILE, NUL, TURNED, LONG_WORD, RAMBLE, ""]
ASKED = [
    ("identification", "Is there a ship in the image?", "Yes."),
    ("identification", "Is there a car in the image?", "No."),
    ("counting", "How many ships are located in the image?", "2."),
    ("positioning", "Where are most ships positioned within the image?", "left."),
    ("referring", "What is the object present in the area [4.0, 6.0, 20.0, 10.0]?", "ship."),
    ("referring", "What is the object present in the area <box:0>?", "car."),
    ("classification", "What categories are visible?", "ship, car."),
    ("description", "Describe the content of this image in one sentence.", "Two ships and a car."),
]
PER_IMAGE = len(ASKED)


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a blind one on 2,000 questions and captions about 250 images, two of which cannot be read."""
    root = tmp_path_factory.mktemp("report")
    (root / "images").mkdir()
    records = []
    for number in range(IMAGES):
        name = f"{number:04d}.png"
        if number not in (1, 2):
            Image.new("L", (64, 48), number).save(root / "images" / name)
        dialogues = [
            Dialogue(f"{number}:{place}", "vqa1", task, [Turn(question, answer)])
            for place, (task, question, answer) in enumerate(ASKED)
        ]
        boxes = [Box("car", [40.0, 20.0, 50.0, 20.0, 50.0, 30.0, 40.0, 30.0])]
        records.append(Record([name], 64, 48, "here", "test", boxes=boxes, dialogues=dialogues))
    taught = Dialogue("t", "vqa1", "counting", [Turn("How many cars are located in the image?", "2.")])
    records.append(Record(["taught.png"], 64, 48, "here", "train", dialogues=[taught]))
    write_data_folder(root / "data", to_table(records), [], root / "images", {})
    (root / "lora").mkdir()
    (root / "lora/evaluations.jsonl").write_text('{"step": 5, "eval_loss": 2.5}\n{"step": 9, "eval_loss": 1.5}\n')
    rows = questions(root / "data")
    answers = {
        "before": lambda place, row: "Yes.",
        "after": lambda place, row: STRANGE[place] if place < len(STRANGE) else row.label if place % 5 else None,
        "blind": lambda place, row: "No.",
    }
    runs = []
    for name, answer in answers.items():
        path = write_predictions(root / f"{name}.jsonl", rows, answer, exchange_images=name == "blind")
        runs.append(read_run(name, path, root / "data", "test"))
    gallery = make_gallery(runs, root / "images", 0)
    assert len(gallery.content["entries"]) == IMAGES * PER_IMAGE == 2000
    histories = [read_history("lora", root / "lora")]
    write_page(make_report(root / "data", "test", runs, histories, {}, {}, gallery), root / "report.html")
    return root / "report.html"


def open_page(browser: Browser, url: str, width: int, scheme: str) -> Iterator[Page]:
    """A page without a network; whatever it complains of fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url.split("#")[0]))
    page.goto(url)
    yield page
    assert not complaints
    assert {address for address in asked if not address.startswith("data:")} == {url.split("#")[0]}
    context.close()


@pytest.fixture(params=[(1200, "light"), (1200, "dark"), (400, "light"), (400, "dark")], ids=str)
def anyhow(request: pytest.FixtureRequest, browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page at a width and in a colour scheme."""
    yield from open_page(browser, page_file.as_uri(), *request.param)


@pytest.fixture
def page(browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page on a desk."""
    yield from open_page(browser, page_file.as_uri(), 1200, "light")


def test_nothing_sticks_out_and_hostile_texts_are_only_texts(anyhow: Page) -> None:
    assert anyhow.evaluate("document.documentElement.scrollWidth") == anyhow.viewport_size["width"]
    anyhow.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert anyhow.evaluate("document.documentElement.scrollWidth") == anyhow.viewport_size["width"]
    sticking_out = """[...document.querySelectorAll('.entry')].filter(card => {
      const end = card.getBoundingClientRect().right;
      return [...card.querySelectorAll('p, dl, dd, img')].some(one => one.getBoundingClientRect().right > end);
    }).length"""
    assert anyhow.evaluate(sticking_out) == 0
    first = anyhow.locator(".entry").first
    for text in (HOSTILE, "a\\x00b", "\\u202e", "(10,000 characters)"):
        assert text in first.text_content()
    assert first.locator("script, [onmouseover], img[src=x]").count() == 0
    heights = anyhow.evaluate("[...document.querySelectorAll('.said .long')].map(one => one.offsetHeight)")
    assert max(heights) < 250, "rambles scroll in their place"


def test_everything_can_be_read_in_both_schemes(anyhow: Page) -> None:
    anyhow.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    wanted = [
        "h1", "dt", ".note", ".card .big", ".bars th", ".bars th small", ".bars .figure small", ".plain thead th",
        ".plain td", ".settings tr:not(.differs) td", ".problems li", ".problems small",
        "summary", "button", "select", ".entry h3", ".question .task", ".is-right dd", ".is-wrong dd", ".said dt",
        ".none", ".clipped", "#found", ".unreadable",
    ]  # fmt: skip
    for kind in wanted:
        contrast = anyhow.locator(kind).first.evaluate(CONTRAST)
        assert contrast >= READABLE, (kind, contrast)
    cells = f"Math.min(...[...document.querySelectorAll('.matrix td')].map({CONTRAST}))"
    assert anyhow.evaluate(cells) >= READABLE


def test_pictures_are_decoded_outlined_and_said_where_they_cannot_be_read(page: Page) -> None:
    page.locator("#more").scroll_into_view_if_needed()
    card = page.locator(".entry").first
    card.scroll_into_view_if_needed()
    expect(card.locator("img")).to_be_visible()
    page.wait_for_function("document.querySelector('.entry img').naturalWidth === 64")
    assert card.locator("polygon.over").count() == 2
    picture, drawing = card.locator("img").bounding_box(), card.locator(".view svg").bounding_box()
    assert picture == drawing
    assert "unreadable image" in page.locator(".entry").nth(1).locator(".unreadable").inner_text()
    assert "2 of the shown images cannot be read" in page.locator(".problems").inner_text()
    asked = card.locator("li", has_text="<box:0>")
    asked.hover()
    assert card.locator("polygon.active").count() == 2, "under and over"


def test_charts_say_in_words_and_tables_what_they_draw(page: Page) -> None:
    charts = page.locator("figure.chart")
    assert charts.count() >= 4
    for chart in charts.all():
        assert len(chart.locator("svg title").first.text_content()) > 20
        assert chart.locator("table").count() == 1
    for bar in page.locator("svg.bar").all():
        assert "%" in bar.locator("title").text_content()
    assert page.locator(".matrix th[scope=row]").count() > 10


def test_filters_choose_questions_and_the_address_keeps_them(page: Page, page_file: Path) -> None:
    found = page.locator("#found")
    expect(found).to_have_text("2,000 of 2,000 questions and captions, on 250 of 250 images")
    page.locator("select[name=task]").select_option("counting")
    expect(found).to_have_text("250 of 2,000 questions and captions, on 250 of 250 images")
    assert {*page.locator(".question .task").all_text_contents()} == {"counting"}
    page.locator("select[name=show]").select_option(label="before ✗ → after ✓")
    expect(found).to_contain_text("on 199 of 250")
    for line in page.locator(".asked li").all():
        assert line.locator(".is-right dt, .is-wrong dt").all_text_contents()[:2] == ["before:", "after:"]
        assert line.locator(".is-wrong").first.text_content().startswith("✗")
    page.locator("input[name=text]").fill("0007.PNG")
    expect(found).to_have_text("1 of 2,000 questions and captions, on 1 of 250 images")
    page.wait_for_function("location.hash.includes('text=0007')")
    kept = page.evaluate("location.hash")
    again = page.context.new_page()
    again.goto(page_file.as_uri() + kept)
    expect(again.locator("#found")).to_have_text("1 of 2,000 questions and captions, on 1 of 250 images")
    assert again.locator("select[name=task]").input_value() == "counting"
    page.locator("button[type=reset]").click()
    expect(found).to_contain_text("2,000 of 2,000")
    page.locator("input[name=text]").fill("nothing like this")
    expect(found).to_contain_text("Nothing matches")


def test_what_changed_between_runs_is_a_choice_without_the_blind_run(page: Page) -> None:
    page.locator("select[name=show]").select_option("changed")
    expect(page.locator("#found")).not_to_contain_text("2,000 of 2,000")
    lines = page.locator(".asked li").all()
    assert lines
    for line in lines:
        before, after, *_ = line.locator("div:has(.verdict)").all_text_contents()
        assert {before[0], after[0]} == {"✓", "✗"} and "before" in before and "after" in after


def test_an_address_that_makes_no_sense_shows_everything(browser: Browser, page_file: Path) -> None:
    strange = "#task=%3Cb%3E&show=toString&text="
    for page in open_page(browser, page_file.as_uri() + strange, 1200, "light"):
        expect(page.locator("#found")).to_contain_text("2,000 of 2,000")


def test_two_thousand_questions_are_drawn_as_one_goes_on(page: Page) -> None:
    assert page.locator(".entry").count() <= 24
    for _ in range(40):
        page.locator("#more").scroll_into_view_if_needed()
        page.wait_for_timeout(30)
        if page.locator(".entry").count() == IMAGES:
            break
    assert page.locator(".entry").count() == IMAGES and page.locator("#more").is_hidden()


def test_links_lead_to_their_sections_and_baselines_are_named(page: Page) -> None:
    scores = page.locator("#scores .group").first.inner_text()
    assert scores.startswith("baselines") and "majority" in scores and "blind" in scores and "after" not in scores
    for link in page.locator("nav a").all():
        link.click()
        page.wait_for_timeout(300)
        top = "document.querySelector(location.hash).getBoundingClientRect().top"
        assert 0 <= page.evaluate(top) < 400, link.inner_text()


def test_words_of_narrow_tables_are_not_broken(browser: Browser, page_file: Path) -> None:
    for page in open_page(browser, page_file.as_uri(), 400, "light"):
        lines = page.locator("#compared td", has_text="identification").first.evaluate("cell => cell.clientHeight")
        assert lines < 40, "one line"


def test_without_scripts_everything_but_the_gallery_can_be_read(browser: Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".matrix").first.is_visible() and page.locator("#scores .big").first.is_visible()
    assert not any(control.is_visible() for control in page.locator(".controls, #more").all())
    assert "needs JavaScript" in page.locator("#gallery").inner_text()
    context.close()


def test_keys_lead_through_the_page(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    focused = "document.activeElement.closest('li')?.querySelector('.question').textContent"
    assert "Is there a ship" in page.evaluate(focused) or "Describe" in page.evaluate(focused)
    first = page.evaluate(focused)
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) != first
    page.keyboard.press("k")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == first
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"
    page.keyboard.type("jk/")
    assert page.locator("input[name=text]").input_value() == "jk/", "keys are letters in a field"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.tagName") == "BODY"


def test_keys_go_on_beyond_what_is_drawn(page: Page) -> None:
    page.locator("select[name=task]").select_option("counting")
    expect(page.locator("#found")).to_contain_text("250 of 2,000")
    page.locator("select[name=task]").blur()
    for _ in range(30):
        page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('.entry').querySelector('h3').textContent") == "0029.png"


def test_matrices_of_runs_are_shown_by_choice(page: Page) -> None:
    shown = page.locator("#confusions .matrix:not([hidden])")
    few = shown.count()
    assert few and page.locator("#confusions .matrix[data-run='2']").first.is_hidden(), "blind is a baseline"
    page.locator("#which input").nth(2).check()
    assert shown.count() == few * 3 // 2


def test_paper_shows_the_scores_without_controls(page: Page) -> None:
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden() and page.locator(".filters").is_hidden()
    assert page.locator("#scores").is_visible() and page.locator(".entry").first.is_visible()
    assert page.locator(".on-paper").is_visible(), "not all images are on paper"
    assert len(page.pdf()) > 10_000
