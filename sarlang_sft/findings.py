"""What can be wrong with a data folder: the table of findings, their file, and their summary on the screen."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sarlang_sft.whole_output import whole_file

FOUND_ERRORS = 1  # exit code; 2 is bad input


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: `error`: training or evaluation would stop, leave texts out, or give wrong scores. `warning`:
            probably not what you mean. `note`: good to know.
        meaning: What it says about the data.
        remedy: How to mend it.
    """

    severity: str
    meaning: str
    remedy: str


def _error(meaning: str, remedy: str) -> Kind:
    return Kind("error", meaning, remedy)


def _warning(meaning: str, remedy: str) -> Kind:
    return Kind("warning", meaning, remedy)


def _note(meaning: str, remedy: str) -> Kind:
    return Kind("note", meaning, remedy)


KINDS = {
    # images
    "missing_image": _error("no such file below the image root", "fetch it, or give the right `--image_root`"),
    "outside_root": _error("`..`, an absolute path or a link leaves the image root; never opened", "copy it inside"),
    "unreadable_image": _error("empty, cut off, or no image: it does not decode in full", "fetch the file again"),
    "huge_image": _error("decodes to more than `--max_image_mb`; only its header was read", "tile it"),
    "wrong_size": _error("width and height are not those recorded", "convert again: boxes and lengths rest on them"),
    "elongated_image": _error("longer than the backbone takes (without one: 200 to 1)", "tile it or leave it out"),
    "tiny_image": _warning("a side shorter than one image token (without a backbone: 16 pixels)", "crop wider chips"),
    "strongly_resized": _warning(
        "a side is stretched or shrunk more than four times for the backbone", "tile or crop"
    ),
    "blank_image": _warning("all pixels are equal", "leave it out"),
    "missing_values": _warning("NaN or infinite pixels", "crop the border away, or fill it on purpose"),
    "complex_pixels": _warning("complex numbers, which have no one brightness", "store amplitude or power"),
    "deep_pixels": _note(
        "more than 8 bit: ours are stretched (1st-99th percentile), other tools clip", "nothing, or store 8 bit"
    ),
    "converted_image": _note(
        "palette, alpha, CMYK, 1 bit, 16-bit colour or more than 3 bands: read as 8-bit RGB or in part",
        "store grey or RGB",
    ),
    "duplicate_image": _warning("the same decoded pixels as another file of the split", "keep one of them"),
    "shared_image": _error("in two splits, by path or by decoded pixels: scores would lie", "take it out of one"),
    # records
    "duplicate_record": _warning("two records of a split are about the same images", "put their dialogues into one"),
    "wrong_split": _error("the column `split` is not the file's name", "convert again"),
    "no_dialogues": _warning("an image without any text", "leave it out"),
    "unusable_box": _error(
        "not 4 or 8 finite numbers, without area, or wholly outside the image", "correct or drop it"
    ),
    "box_outside": _warning("reaches more than a pixel beyond the image; cut off where a text names it", "correct it"),
    # dialogues
    "no_such_box": _error("a text names a box that its record does not have", "correct the number, counted from 0"),
    "duplicate_id": _error("two dialogues have one id: answers could not be told apart", "number them anew"),
    "unknown_task": _error("no application of the data model", "choose one of `records.TASKS`"),
    "empty_text": _error("a dialogue without turns, or an empty question or answer", "leave it out"),
    "long_text": _warning("more than `--max_characters` (2000)", "shorten it; look for texts run together"),
    "undecodable_text": _error("no valid UTF-8, such as a lone surrogate", "mend the encoding and convert again"),
    "special_token": _error("holds a control token of a backbone, such as `<image>`", "take it out of the text"),
    "control_characters": _warning("control, invisible or replacement characters", "take them out; save as UTF-8"),
    "answer_in_question": _warning("the question gives its answer away", "reword the question"),
    "contradiction": _warning("one question on one image has different answers", "keep the right one"),
    "duplicate_dialogue": _warning("the same turns on one image twice: they count twice", "keep one of them"),
    # manifest
    "manifest_counts": _error("manifest.json disagrees with the files", "convert again; parts may be lost"),
}


class Finding(NamedTuple):
    """One finding about an image or a dialogue of a split; what it is not about is None."""

    finding: str
    detail: str
    split: str | None = None
    source: str | None = None
    image: str | None = None
    dialogue: str | None = None


@dataclass
class Summary:
    """How often every kind was found, by (split, source), and the first of each; `path` holds them all."""

    path: Path
    counts: dict[str, Counter] = field(default_factory=dict)
    examples: dict[str, Finding] = field(default_factory=dict)

    def of_severity(self, severity: str) -> int:
        """How many findings have this severity."""
        return sum(counts.total() for name, counts in self.counts.items() if KINDS[name].severity == severity)

    def exit_code(self, strict: bool) -> int:
        """0, or 1 if there are errors; with `strict` warnings count as well."""
        return FOUND_ERRORS if self.of_severity("error") or (strict and self.of_severity("warning")) else 0


def write_findings(findings: Iterable[Finding], path: Path) -> Summary:
    """Write one JSON line per finding (`finding severity split source image dialogue detail`), in their order.

    None is kept in memory; the file appears complete or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    summary = Summary(path)
    with whole_file(path) as file:
        for found in findings:
            summary.counts.setdefault(found.finding, Counter())[found.split, found.source] += 1
            summary.examples.setdefault(found.finding, found)
            line = {
                "finding": found.finding,
                "severity": KINDS[found.finding].severity,
                "split": found.split,
                "source": found.source,
                "image": found.image,
                "dialogue": found.dialogue,
                "detail": found.detail,
            }
            file.write(json.dumps(line).encode() + b"\n")
    return summary


def print_summary(summary: Summary, strict: bool) -> None:
    """Every kind found, errors first, with counts by split and source, an example and the remedy; then a verdict."""
    for severity in ("error", "warning", "note"):
        for name, kind in KINDS.items():
            if kind.severity != severity or name not in summary.counts:
                continue
            counts, example = summary.counts[name], summary.examples[name]
            places = sorted(counts, key=lambda place: (str(place[0]), str(place[1])))
            listed = [f"{' '.join(filter(None, place))} {counts[place]:,}".strip() for place in places]
            print(f"{severity:8} {name:19} {counts.total():>9,}  {', '.join(listed)}")
            where = ", ".join(filter(None, (example.image, example.dialogue)))
            print(f"{'':9}{kind.meaning}")
            print(f"{'':9}such as {printable(f'{where}: ' if where else '')}{printable(example.detail)}")
            print(f"{'':9}to mend it: {kind.remedy}")
    numbers = ", ".join(f"{summary.of_severity(one):,} {one}s" for one in ("error", "warning", "note"))
    verdict = "mend this before you train" if summary.exit_code(strict) else "fit to train on"
    print(f"Verdict: {verdict} ({numbers}; all in {summary.path})")


def printable(text: str) -> str:
    """A text of others for the screen: no control sequences, at most 200 characters."""
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text[:201])
    return shown if len(text) <= 200 else f"{shown[:200]}..."
