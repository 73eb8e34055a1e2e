"""What may stand around and between the classes, places and relations of a rewrite: the grammar that a wording lists.

A text of known words may still say something else (`a ship sees the radar`), so every stretch of a rewrite must be one
that `reading.around` has for its place, or that a template has there.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from sarlang_sft.language.wording import STRETCH_SLOT, STRETCHES, Template, Wording
from sarlang_sft.rewriting.folding import fold

Stretches = Mapping[str, re.Pattern[str]]
"""By the names of `STRETCHES`, what a folded stretch must be; empty if the wording has no `reading.around`."""

_TOKEN = re.compile(r"\w+|[^\w\s]")

# What a text in front of a slot of a template and one behind it lies at, where that is no group.
_BEGIN = {"place": "place", "relation": "relation"}
_END = {**_BEGIN, "placed": "place"}


def make_stretches(wording: Wording) -> Stretches:
    """What may stand around and between, by `reading.around` of the wording and its templates."""
    reading = wording.content.get("reading", {})
    around = reading.get("around", {})
    if not around:
        return {}
    slots: dict[str, str] = {}
    for name, texts in reading.get("phrases", {}).items():
        slots[name] = _any(_pattern(text, slots) for text in texts)
    found = {name: {_pattern(text, slots) for text in around.get(name, ())} for name in STRETCHES}
    for template in _templates(wording):
        for name, text in _written(template):
            found[name].add(_literal(text))
    return {name: re.compile(_any(patterns)) for name, patterns in found.items()}


def without_end(text: str) -> str:
    """A stretch without the mark that ends its sentence."""
    text = text.strip()
    return text if text[-1:].isalnum() else text[:-1].rstrip()


def words_of(wording: Wording) -> Iterator[str]:
    """All texts that stretches are made of."""
    reading = wording.content.get("reading", {})
    for texts in (*reading.get("phrases", {}).values(), *reading.get("around", {}).values()):
        yield from (STRETCH_SLOT.sub(" ", text) for text in texts)


def _pattern(text: str, slots: Mapping[str, str]) -> str:
    """An expression for a text with slots, each of which has one of its own."""
    parts = STRETCH_SLOT.split(text)  # a text and the name of a slot by turns
    return "".join(slots[part] if number % 2 else _literal(part) for number, part in enumerate(parts))


def _any(patterns: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(patterns))})"


def _literal(text: str) -> str:
    """Blanks make no difference but between words."""
    return "".join(re.escape(token) + (r"\b ?" if token.isalnum() else " ?") for token in _TOKEN.findall(fold(text)))


def _templates(wording: Wording) -> Iterator[Template]:
    yield wording.parts["parts.placed"]
    for name, templates in wording.sets.items():
        if name.startswith(("captions.", "chips.")) and name != "chips.category":
            yield from templates


def _written(template: Template) -> Iterator[tuple[str, str]]:
    """Stretches of a template, with their names; of `{is|are}` both."""
    for number in (0, 1):
        slots: list[str] = [""]
        texts = [template.texts[0]]
        for slot, text in zip(template.slots, template.texts[1:], strict=True):
            if "|" in slot:
                texts[-1] += slot.split("|")[number] + text
            else:
                slots.append(slot)
                texts.append(text)
        yield f"before_{_BEGIN.get(slots[1], 'group')}", texts[0]
        yield f"behind_{_END.get(slots[-1], 'group')}", without_end(texts[-1])
        for (one, other), text in zip(pairwise(slots[1:]), texts[1:-1], strict=True):
            name = _BETWEEN.get((_END.get(one, "group"), _BEGIN.get(other, "group")))
            if name is not None:
                yield name, text


_BETWEEN = {
    ("group", "place"): "group_place",
    ("place", "group"): "place_group",
    ("group", "relation"): "to_relation",
    ("place", "relation"): "to_relation",
}
