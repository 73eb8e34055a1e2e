"""A preview as a web page that needs no other file, and as lines for the terminal."""

import base64
import io
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from sarlang_sft.html_pages import HERE, render, visible
from sarlang_sft.pieces import IMAGE, SPECIAL, Piece, token_count, trained_count
from sarlang_sft.preview import Branch, Entry, Outline, Sheet
from sarlang_sft.whole_output import whole_file

HALF_BLOCK_COLUMNS = 48
ROOM_FOR_A_NAME = 0.1  # of a view's height
STRONG, FAINT, CYAN, RESET = "\x1b[1;4;35m", "\x1b[2m", "\x1b[36m", "\x1b[0m"  # STRONG: what carries loss
BEGIN_TRAINED, END_TRAINED = "⟦", "⟧"


def write_page(sheet: Sheet, path: Path) -> None:
    """Write the sheet as one HTML file; it appears complete or not at all.

    Raises:
        InputError: There is a folder of this name, or the file cannot be written.
    """
    filters = (visible, token_count, trained_count, data_uri, name_place, percent)
    page = render(HERE / "preview.html.j2", filters, {"sheet": sheet, "counts": sheet.counts()})
    with whole_file(path) as file:
        file.write(page.encode())


def data_uri(picture: Image.Image) -> str:
    """A picture inside the page, as PNG."""
    grey = picture.convert("L")
    same = np.array_equal(np.asarray(grey.convert("RGB")), np.asarray(picture))
    buffer = io.BytesIO()
    (grey if same else picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def name_place(outline: Outline, size: tuple[int, int]) -> str:
    """Style of a box's name: on top of the box, or inside where there is no room, from the side with more of it."""
    across, down = zip(*outline.corners, strict=True)
    left, right = max(min(across) / size[0], 0), max(1 - max(across) / size[0], 0)
    side, gap = ("left", left) if left <= right else ("right", right)
    top = max(min(down) / size[1], 0)
    lifted = ";transform:translateY(-100%)" if top > ROOM_FOR_A_NAME else ""
    return f"{side}:{gap:.2%};max-width:{1 - gap:.2%};top:{top:.2%}{lifted}"


def terminal_lines(sheet: Sheet, colours: bool) -> Iterator[str]:
    """The sheet as lines; without `colours` as plain text, with brackets around what is trained and no pictures."""
    counts = sheet.counts()
    for name, value in sheet.options.items():
        yield f"{name:20}{visible(value)}"
    yield (
        f"{'shown':20}{counts['images']:,} of {sheet.records:,} images, {counts['dialogues']:,} dialogues, "
        f"{counts['tokens']:,} tokens: {percent(counts['trained'], counts['tokens'])} trained, "
        f"{percent(counts['image'], counts['tokens'])} of images"
    )
    yield f"{'legend':20}{_spoken([Piece('trained', [0], 'text', True)], colours)} carries loss; ↵ is a line break"
    for number, entry in enumerate(sheet.entries, start=1):
        yield ""
        yield from _entry_lines(entry, f"[{number}/{len(sheet.entries)}]", colours)


def takes_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose user has not asked for none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def percent(part: int, whole: int) -> str:
    """A share, with one digit behind the point."""
    return f"{100 * part / max(whole, 1):.1f} %"


def _entry_lines(entry: Entry, number: str, colours: bool) -> Iterator[str]:
    yield f"{number} {visible(', '.join(entry.images)) or 'text without image'}"
    if entry.problem:
        yield f"  training stops here: {visible(entry.problem)}"
    for picture in entry.pictures:
        for view in picture.views:
            tiles = f" in {view.tiles[0]} x {view.tiles[1]} tiles" if view.tiles != (1, 1) else ""
            width, height = picture.size
            yield f"  {width} x {height} px stored, {view.size[0]} x {view.size[1]} px seen{tiles}"
            for outline in view.outlines:
                corners = " ".join(f"({x:.0f}, {y:.0f})" for x, y in outline.corners)
                yield f"  box {visible(outline.label)}: {corners}"
            if colours:
                yield from half_blocks(view.picture)
    for tree, sample in enumerate(entry.samples, start=1):
        if sample.trunk:
            which = f" of tree {tree}" if len(entry.samples) > 1 else ""
            yield f"  trunk{which}: {token_count(sample.trunk)} tokens"
            yield from _indented(_spoken(sample.trunk, colours))
        for place, branch in enumerate(sample.branches, start=1):
            yield f"  {_heading(branch, f'branch {place}' if sample.trunk else 'dialogue', colours)}"
            yield from _indented(_spoken(branch.pieces, colours))
    for name, reason in entry.left_out:
        yield f"  left out: {visible(name)}: {reason}"
    if entry.undrawn:
        yield f"  not shown: {entry.undrawn} more dialogues (turns_per_image)"


def _heading(branch: Branch, kind: str, colours: bool) -> str:
    counts = f"{token_count(branch.pieces)} tokens, {trained_count(branch.pieces)} trained"
    start = "" if branch.start is None else f", starts at position {branch.start}"
    text = visible(f"{kind}: {branch.task}, {branch.subset}, {branch.id}: {counts}{start}")
    return f"{FAINT}{text}{RESET}" if colours else text


def _spoken(pieces: list[Piece], colours: bool) -> str:
    parts = []
    for trained, group in groupby(pieces, key=lambda piece: piece.trained):
        text = "".join(_said(piece, colours and not trained) for piece in group)
        begin, end = (STRONG, RESET) if colours else (BEGIN_TRAINED, END_TRAINED)
        line_end = "\n" * text.endswith("\n")  # behind the mark: no mark stands in a line of its own
        parts.append(f"{begin}{text.removesuffix(line_end)}{end}{line_end}" if trained else text)
    return "".join(parts)


def _said(piece: Piece, colours: bool) -> str:
    text = f"[{len(piece.ids):,} image tokens]" if piece.kind == IMAGE else visible(piece.text)
    return f"{CYAN}{text}{RESET}" if colours and piece.kind in (IMAGE, SPECIAL) else text


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"    {line}"


def half_blocks(picture: Image.Image) -> Iterator[str]:
    """A picture as coloured half blocks: every character is two pixels, one above the other."""
    columns = min(picture.width, HALF_BLOCK_COLUMNS)
    rows = max(1, round(columns * picture.height / picture.width / 2))
    pixels = np.asarray(picture.resize((columns, 2 * rows), Image.Resampling.BOX))
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        line = "".join(
            f"\x1b[38;2;{top[0]};{top[1]};{top[2]};48;2;{bottom[0]};{bottom[1]};{bottom[2]}m▀"
            for top, bottom in zip(upper, lower, strict=True)
        )
        yield f"    {line}{RESET}"
