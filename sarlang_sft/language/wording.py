"""The words of texts built from boxes: a YAML file of template sets, read, merged with what it extends, and checked.

`en.yaml` beside this file is the reference: whatever it holds, another file may hold in other words or another
language. Nothing here knows English but the grammar that a file may ask for by name.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sarlang_sft.errors import InputError, nearest
from sarlang_sft.sarlang import SPECIAL_TOKEN
from sarlang_sft.yaml_files import read_mapping

BUILT_IN = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
DEFAULT = "en"
GRAMMARS = ("english", "listed")
REGIONS = ("top", "bottom", "left", "right", "center")
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
RELATIONS = ("above", "below", "left", "right")
FORMS = ("many", "a", "is_a", "also", "say")
READING = ("leads", "counters", "joints", "namings", "orders", "plain", "known", "refused")  # lists of texts
ORDER_SLOTS = {"subject": "G", "object": "G", "relation": "R", "place_of_subject": "P", "place_of_object": "P"}
"""Of `reading.orders`, with the letters of what stands there: a group, a relation, a place."""
STRETCHES = (
    *("before_group", "before_place", "before_relation", "behind_group", "behind_place", "behind_relation"),
    *("group_place", "place_group", "next_pair", "to_relation", "to_subject"),
)
"""Of `reading.around`: what stands around and between the groups, places and relations of a rewrite."""
STRETCH_SLOT = re.compile(r"\{(\w+)\}")
_SLOT = re.compile(r"\{([^{}]*)\}")
_OWN_TOKEN = re.compile(rf"{SPECIAL_TOKEN.pattern}|<box:")

_CLASS = frozenset({"class", "a_class", "classes"})


class Slots(NamedTuple):
    """What a template of a set may hold, and of which it must hold one each."""

    allowed: frozenset[str]
    needed: tuple[frozenset[str], ...]


def _slots(*needed: str, also: str = "") -> Slots:
    """`a|b` in `needed`: one of the two."""
    groups = tuple(frozenset(words.split("|")) for words in needed)
    return Slots(frozenset().union(*groups, also.split()), groups)


CAPTION_FAMILIES = ("general", "complex", "absolute_region", "relative_region")
SETS: dict[str, Slots] = {
    "questions.identification": _slots("|".join(sorted(_CLASS))),
    "questions.counting": _slots("class|classes"),
    "questions.positioning_one": _slots("|".join(sorted(_CLASS))),
    "questions.positioning_many": _slots("class|classes"),
    "questions.referring": _slots("area"),
    "questions.classification": _slots(),
    "grounding.locate_one": _slots("|".join(sorted(_CLASS))),
    "grounding.locate_many": _slots("class|classes", also="n"),
    "grounding.locate_there": _slots("|".join(sorted(_CLASS)), "place"),
    "grounding.count_first": _slots("class|classes"),
    "grounding.locate_them": _slots(),
    "grounding.name_box": _slots("box"),
    "grounding.verify_box": _slots("box", "class|a_class"),
    **{f"prompts.{family}": _slots() for family in CAPTION_FAMILIES},
    "prompts.kind": _slots(),
    "captions.general": _slots("kinds"),
    "captions.complex": _slots("groups"),
    "captions.absolute_region": _slots("placed|group", also="place is|are"),
    "captions.relative_region": _slots("group", "place", "relation", "the_group", also="is|are"),
    "chips.category": _slots(),
    "chips.general": _slots("class|a_class", also="kind a_kind"),
    "chips.complex": _slots("class|a_class", "kind|a_kind"),
}
PARTS: dict[str, Slots] = {
    "question_prompt": _slots("question"),
    "answers.yes": _slots(),
    "answers.no": _slots(),
    "answers.count": _slots("n"),
    "answers.class": _slots("class|a_class"),
    "answers.classes": _slots("listed"),
    "answers.region": _slots("region"),
    "answers.boxes": _slots("boxes"),
    "parts.one": _slots("class|a_class", also="n"),
    "parts.many": _slots("n", "class|classes"),
    "parts.the_one": _slots("class|a_class", also="n"),
    "parts.the_many": _slots("n", "class|classes"),
    "parts.kind_one": _slots("class|a_class"),
    "parts.kind_many": _slots("class|classes"),
    "parts.placed": _slots("group", "place"),
    "parts.between": _slots(),
    "parts.last": _slots(),
    "parts.listed": _slots(),
    "parts.boxes": _slots(),
}
CHOICE = "is|are"
"""Stands in `SETS` for any slot with a bar: `{is|are}`, chosen by the number of the group."""


class Template(NamedTuple):
    """A text with slots: `texts` has one more than `slots`, which stand between them."""

    texts: tuple[str, ...]
    slots: tuple[str, ...]

    def fill(self, values: Mapping[str, str], one: bool = False) -> str:
        """The text; a slot `{is|are}` is its first word if `one`, else its second."""
        found = [self.texts[0]]
        for slot, text in zip(self.slots, self.texts[1:], strict=True):
            first, bar, second = slot.partition("|")
            found += (values[slot] if not bar else first if one else second), text
        return "".join(found)


@dataclass(frozen=True)
class Wording:
    """What a file of words holds, made ready to fill.

    Attributes:
        name: The file's stem, for messages and manifests.
        content: As merged, to be written beside what was built with it.
        sets: Templates by their names of `SETS`.
        parts: Templates by their names of `PARTS`.
        regions: Words by `REGIONS`.
        places: Spellings by `CELLS`, the written one first.
        relations: Spellings by `RELATIONS`, the written one first.
        classes: Forms of classes by their names, see `FORMS`.
    """

    name: str
    content: Mapping[str, Any]
    grammar: str
    sets: Mapping[str, tuple[Template, ...]]
    parts: Mapping[str, Template]
    regions: Mapping[str, str]
    places: Mapping[str, tuple[str, ...]]
    relations: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, Mapping[str, Any]]

    @property
    def hash(self) -> str:
        """Of all that it holds: eight hexadecimal digits."""
        return hashlib.sha256(self.dump().encode()).hexdigest()[:8]

    def forms_of(self, name: str) -> Mapping[str, Any]:
        """What `classes` says of a class, however its name is spelt: `T-62` is `T62`; empty if it says nothing."""
        if name in self.classes:
            return self.classes[name]
        key = _class_key(name)
        return next((forms for known, forms in self.classes.items() if _class_key(known) == key), {})

    def ask(self, question: str) -> str:
        """A question as it is put to a model."""
        return self.parts["question_prompt"].fill({"question": question})

    def listing(self, items: list[str]) -> str:
        """Items in a sentence: `a, b and c`."""
        if len(items) == 1:
            return items[0]
        return f"{self.parts['parts.between'].fill({}).join(items[:-1])}{self.parts['parts.last'].fill({})}{items[-1]}"

    def dump(self) -> str:
        """The merged content as YAML, which reads back as this wording."""
        return yaml.safe_dump(dict(self.content), allow_unicode=True, sort_keys=False, width=119)


def read_wording(name: str = DEFAULT) -> Wording:
    """A wording by the name of a built-in one (`en`, `sarlang`) or the path of a file.

    Raises:
        InputError: There is no such file, or something in it cannot be used; lint_wording.py tells all of it.
    """
    content = read_content(name)
    problem = next(content_problems(content), None)
    if problem is not None:
        raise InputError(f"--wording {name}: {problem}")
    return make_wording(Path(name).stem, content)


def make_wording(name: str, content: Mapping[str, Any]) -> Wording:
    """A wording from merged content without problems."""
    return Wording(
        name=name,
        content=content,
        grammar=content["grammar"],
        sets={key: tuple(map(parse_template, part_at(content, key))) for key in SETS},
        parts={key: parse_template(part_at(content, key)) for key in PARTS},
        regions=content["regions"],
        places={key: tuple(words) for key, words in content["places"].items()},
        relations={key: tuple(words) for key, words in content["relations"].items()},
        classes=content["classes"],
    )


def _class_key(name: str) -> str:
    return re.sub(r"[\W_]+", "", str(name).casefold())


def parse_template(text: str) -> Template:
    """A template from its text."""
    pieces = _SLOT.split(text)
    return Template(tuple(pieces[::2]), tuple(pieces[1::2]))


def read_content(name: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file holds, merged with what it extends; raises [`InputError`] if one of them cannot be read."""
    path = BUILT_IN.get(name, Path(name))
    if seen and not path.is_absolute():
        path = seen[-1].parent / path
    if path in seen:
        raise InputError(f"--wording {seen[0]}: extends itself through {name}")
    try:
        content = read_mapping(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(BUILT_IN)
        raise InputError(f"--wording {name}: cannot be read ({error}); built in are {known}") from error
    base = content.pop("extends", None)
    if base is None:
        return _merged({}, content, name)
    if not isinstance(base, str):
        raise InputError(f"--wording {name}: `extends` must name one wording")
    return _merged(read_content(base, (*seen, path)), content, name)


def _merged(base: Mapping[str, Any], added: Mapping[str, Any], where: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in added.items():
        key = "yes" if key is True else "no" if key is False else str(key)  # as YAML reads them without quotes
        if key.endswith("+"):
            key = key.removesuffix("+")
            known = merged.get(key, [])
            if not isinstance(value, list) or not isinstance(known, list):
                raise InputError(f"--wording {where}: `{key}+` adds to a list, and must be one")
            merged[key] = [*known, *value]
        elif isinstance(value, dict):
            merged[key] = _merged(merged[key] if isinstance(merged.get(key), dict) else {}, value, f"{where}: {key}")
        else:
            merged[key] = value
    return merged


def part_at(content: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted name; None if nothing does."""
    found: Any = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def content_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Why the merged content of a file cannot be used, if so."""
    yield from _unknown_keys(content)
    if content.get("grammar") not in GRAMMARS:
        yield f"`grammar` must be one of {', '.join(GRAMMARS)}"
    for key, slots in SETS.items():
        templates = part_at(content, key)
        if not isinstance(templates, list) or not templates or not all(map(_is_text, templates)):
            yield f"`{key}` must be a list of templates, with quotes around those that begin with a brace"
            continue
        for template in templates:
            yield from _slot_problems(key, template, slots)
    for key, slots in PARTS.items():
        part = part_at(content, key)
        if not _is_text(part):
            yield f"`{key}` must be a text"
            continue
        yield from _slot_problems(key, part, slots)
    for key, names, many in (("regions", REGIONS, False), ("places", CELLS, True), ("relations", RELATIONS, True)):
        yield from _spelling_problems(key, content.get(key), names, many)
    yield from _class_problems(content.get("classes"))
    answers = content.get("answers")
    if isinstance(answers, Mapping) and answers.get("yes") == answers.get("no"):
        yield "`answers.yes` and `answers.no` are the same"
    yield from _reading_problems(content.get("reading", {}))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip() or value)


def _unknown_keys(content: Mapping[str, Any]) -> Iterator[str]:
    known = {"grammar", "regions", "places", "relations", "classes", *SETS, *PARTS, "reading"}
    rooms = {key.partition(".")[0] for key in known if "." in key}
    for key, value in content.items():
        if key not in rooms:
            if key not in known:
                yield f"`{key}` is no part of a wording; {nearest(key, known | rooms, 'en.yaml has all of them')}"
            continue
        if not isinstance(value, Mapping):
            yield f"`{key}` must hold `name: value` lines"
            continue
        for name in value:
            if f"{key}.{name}" not in known:
                hint = nearest(f"{key}.{name}", known, "en.yaml has all of them")
                yield f"`{key}.{name}` is no part of a wording; {hint}"


def _slot_problems(key: str, template: str, slots: Slots) -> Iterator[str]:
    found = _SLOT.findall(template)
    kinds = {CHOICE if "|" in slot else slot for slot in found}
    for slot in found:
        if (CHOICE if "|" in slot else slot) not in slots.allowed:
            may = ", ".join(f"{{{name}}}" for name in sorted(slots.allowed)) or "none"
            yield f"`{key}`: {template!r} has the slot {{{slot}}}; it may have {may}"
        elif slot.count("|") > 1:
            yield f"`{key}`: {template!r}: {{{slot}}} must be two words, for one and for many"
    for group in slots.needed:
        if not group & kinds:
            yield f"`{key}`: {template!r} lacks {' or '.join(f'{{{name}}}' for name in sorted(group))}"
    if "{" in (rest := _SLOT.sub("", template)) or "}" in rest:
        yield f"`{key}`: {template!r} has a brace that is not closed"
    if _OWN_TOKEN.search(template):
        yield f"`{key}`: {template!r} holds a token that chat templates write, or a box by number"
    if key == "captions.absolute_region" and ("group" in kinds) != ("place" in kinds):
        yield f"`{key}`: {template!r} needs {{placed}}, or {{group}} and {{place}}"
    if len({*found}) < len(found):
        yield f"`{key}`: {template!r} has a slot twice"


def _spelling_problems(key: str, content: Any, names: tuple[str, ...], many: bool) -> Iterator[str]:
    if not isinstance(content, Mapping) or {*content} != {*names}:
        yield f"`{key}` must hold {', '.join(names)}, and nothing else"
        return
    owners: dict[str, str] = {}
    for name, words in content.items():
        spellings = words if many and isinstance(words, list) else [words]
        if not spellings or not all(map(_is_text, spellings)):
            yield f"`{key}.{name}` must be {'a list of texts' if many else 'a text'}"
            continue
        for spelling in spellings:
            if owners.setdefault(spelling.casefold(), name) != name:
                yield f"`{key}`: {spelling!r} stands for {owners[spelling.casefold()]} and for {name}"


def _class_problems(classes: Any) -> Iterator[str]:
    if not isinstance(classes, Mapping):
        yield "`classes` must hold `name: {form: text}` lines"
        return
    for name, forms in classes.items():
        if not isinstance(forms, Mapping):
            yield f"`classes.{name}` must hold forms, as in {{many: ships, is_a: vessel}}"
            continue
        for form, value in forms.items():
            if form not in FORMS:
                hint = nearest(form, FORMS, f"forms are {', '.join(FORMS)}")
                yield f"`classes.{name}.{form}` is no form; {hint}"
            elif form == "also" and not (isinstance(value, list) and all(map(_is_text, value))):
                yield f"`classes.{name}.also` must be a list of texts"
            elif form != "also" and not _is_text(value):
                yield f"`classes.{name}.{form}` must be a text"


def _reading_problems(reading: Any) -> Iterator[str]:
    if not isinstance(reading, Mapping):
        yield "`reading` must hold `name: value` lines"
        return
    for name, value in reading.items():
        if name in ("phrases", "around"):
            yield from _stretch_problems(name, value, reading.get("phrases", {}))
        elif name == "numbers":
            if not isinstance(value, Mapping) or not all(map(_is_count, value.values())):
                yield "`reading.numbers` must hold `text: number` lines, as in `two: 2`"
        elif name not in READING:
            hint = nearest(name, ("numbers", "phrases", "around", *READING), "en.yaml has all of them")
            yield f"`reading.{name}` is no part of a wording; {hint}"
        elif not _are_texts(value):
            yield f"`reading.{name}` must be a list of texts, with quotes around yes, no, on and off"
        elif name == "orders":
            yield from _order_problems(value)


def _stretch_problems(name: str, lists: Any, phrases: Any) -> Iterator[str]:
    """A phrase may name only phrases above it, so that none is made of itself."""
    if not isinstance(lists, Mapping) or not all(map(_are_texts, lists.values())):
        yield f"`reading.{name}` must hold `name: list of texts` lines"
        return
    above: set[str] = {str(key) for key in phrases} if name == "around" and isinstance(phrases, Mapping) else set()
    for key, texts in lists.items():
        if name == "around" and key not in STRETCHES:
            hint = nearest(key, STRETCHES, "en.yaml has all of them")
            yield f"`reading.around.{key}` is no part of a wording; {hint}"
        for text in texts:
            for slot in STRETCH_SLOT.findall(text):
                if slot not in above:
                    yield f"`reading.{name}.{key}`: {text!r}: no list of `reading.phrases` above is named {slot!r}"
        above |= {str(key)} if name == "phrases" else set()


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _order_problems(orders: list[str]) -> Iterator[str]:
    for order in orders:
        letters = sorted(ORDER_SLOTS.get(slot, slot) for slot in {*order.split()})
        if letters != ["G", "G", "P", "R"] or len(order.split()) != len(letters):
            yield f"`reading.orders`: {order!r} must name subject, object, relation and one of two places, once"
