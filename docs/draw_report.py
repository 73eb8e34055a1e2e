"""Draw docs/images/report*.png: the report of the demo, in a browser, on a desk and on a phone.

make demo && pip install -r requirements-browser.txt && python docs/draw_report.py
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "outputs/demo/report.html"
OUT = ROOT / "docs/images"
DESK, PHONE = (1180, 1128), (400, 860)
SCALE, COLOURS, GAP = 1.5, 256, 24


def look(browser: Browser, size: tuple[int, int], part: str) -> Image.Image:
    """What one sees of the page at an address that ends with `part`."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, device_scale_factor=SCALE, color_scheme="light", offline=True
    )
    page = context.new_page()
    page.goto(PAGE.as_uri() + part)
    page.wait_for_function("[...document.querySelectorAll('.entry img')].slice(0, 2).every(one => one.complete)")
    picture = Image.open(io.BytesIO(page.screenshot()))
    context.close()
    return picture


def save(picture: Image.Image, name: str) -> None:
    """Write a picture in few colours; the octree keeps the rare ones, as of a word that is wrong."""
    picture.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        OUT / name, optimize=True
    )
    print(f"Picture: {OUT / name} ({(OUT / name).stat().st_size / 1000:.0f} kB)")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        save(look(browser, DESK, ""), "report.png")
        save(look(browser, DESK, "#show=changed"), "report_gallery.png")
        screens = [look(browser, PHONE, part) for part in ("", "#tasks", "#task=referring&show=changed")]
        browser.close()
    width, height = screens[0].size
    phones = Image.new("RGB", (len(screens) * width + (len(screens) - 1) * GAP, height), "#8b929a")
    for place, screen in enumerate(screens):
        phones.paste(screen, (place * (width + GAP), 0))
    save(phones, "report_phone.png")


if __name__ == "__main__":
    main()
