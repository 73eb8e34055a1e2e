"""Is a wording good? What reads badly or may mislead is found by its words, what is untrue by trying it out."""

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from random import Random
from typing import Any, NamedTuple

from sarlang_sft.language.building import say_everything
from sarlang_sft.language.checking import check_dialogue
from sarlang_sft.language.reading import make_reader
from sarlang_sft.language.things import name_things
from sarlang_sft.language.truth import look_at
from sarlang_sft.language.wording import PARTS, SETS, Wording, content_problems, make_wording, part_at, read_content
from sarlang_sft.records import Box

TRIALS = 300  # random images
SIDE = 300  # pixels of them
CAPTIONS_WANTED = 5
MAY_SHARE = (
    {"questions.positioning_one", "questions.positioning_many"},
    {"grounding.locate_one", "grounding.locate_many"},
    *({one, other} for one, other in combinations([key for key in SETS if key.startswith("prompts.")], 2)),
)
CLASSES = ("ship", "aircraft", "car", "tank", "bridge", "harbor")

# What is wrong with a template, by patterns; those of English are tried on wordings of its grammar.
_ANY_LANGUAGE = {
    r"^\s|\s$": "begins or ends with a space",
    r"\s\s": "has two spaces",
    r"[^\W\d_]$": "ends without a mark",
}
_ENGLISH = {
    r"^[a-z]": "begins with a small letter",
    r"\b[Aa]n? \{(?:class|a_class|classes)\}": "has an article in front of a class; use {a_class} alone",
    r"\b[Tt]he \{(?:a_class|the_group)\}": "has two articles",
    r"\{(?:group|the_group|groups|placed|kinds)\} (?:is|are|was|were|has|have|lies?|stands?)\b": (
        "has a verb in the form for one, or for many; give both as in {is|are}"
    ),
    r"\b(?:is|are|was|were) \{(?:group|groups|placed|kinds)\}": (
        "has a verb in the form for one, or for many; give both as in {is|are}"
    ),
    r"\b(?:[Ii]s|was|has) (?:the )?\{classes\}|\{classes\} (?:is|was|has|lies|stands)\b": "has {classes} as one",
    r"\b(?:[Aa]re|were|have|all|most|many) (?:the )?\{class\}|\{class\} (?:are|were|have)\b": "has {class} as many",
}


class Remark(NamedTuple):
    """Something about a wording: an error makes it useless, a warning may be meant."""

    error: bool
    text: str


def lint(content: Mapping[str, Any], classes: tuple[str, ...] = CLASSES, seed: int = 0) -> list[Remark]:
    """All that is wrong with a wording, or may be.

    Args:
        content: Of a wording, merged.
        classes: To try it with; at least two.

    Raises:
        InputError: Texts could not tell the classes apart.
    """
    errors = [Remark(True, problem) for problem in content_problems(content)]
    if errors:
        return errors
    wording = make_wording("", content)
    remarks = [
        Remark(False, text) for text in (*_style_remarks(content), *_set_remarks(wording), *_untranslated(content))
    ]
    return remarks + [Remark(True, text) for text in _trial_remarks(wording, classes, seed)]


def _style_remarks(content: Mapping[str, Any]) -> Iterator[str]:
    patterns = _ANY_LANGUAGE | (_ENGLISH if content["grammar"] == "english" else {})
    for key in SETS:
        room, name = key.split(".")
        for template in content[room][name]:
            for pattern, what in patterns.items():
                if re.search(pattern, template):
                    yield f"`{key}`: {template!r} {what}"


def _set_remarks(wording: Wording) -> Iterator[str]:
    for key, templates in wording.sets.items():
        for template in {one for one in templates if templates.count(one) > 1}:
            yield f"`{key}`: {'{}'.join(template.texts)!r} stands there twice"
    rooms = {"captions": ("general", "complex", "absolute_region"), "chips": ("general",)}
    for room, families in rooms.items():
        count = sum(len(wording.sets[f"{room}.{family}"]) for family in families)
        if count < CAPTIONS_WANTED:
            yield f"`{room}`: {count} templates for an image with one object, which makes fewer than five captions"
    for one, other in combinations(SETS, 2):
        if one.partition(".")[0] == other.partition(".")[0] and {one, other} not in MAY_SHARE:
            for template in {*wording.sets[one]} & {*wording.sets[other]}:
                yield f"`{one}` and `{other}`: {'{}'.join(template.texts)!r} stands in both"
    if not wording.content.get("reading", {}).get("refused"):
        yield "`reading.refused` is empty, without which rewrite_captions.py cannot judge rewrites"


def _untranslated(content: Mapping[str, Any]) -> Iterator[str]:
    """What a wording of another language has as `en` has it."""
    if content["grammar"] == "english":
        return
    english = read_content("en")
    for key in (*SETS, *PARTS, "regions", "places", "relations"):
        here = part_at(content, key)
        if here == part_at(english, key) and re.search(r"[A-Za-z]{2}", re.sub(r"\{.*?\}", "", str(here))):
            yield f"`{key}` is still that of en"


def _trial_remarks(wording: Wording, classes: tuple[str, ...], seed: int) -> Iterator[str]:
    """Texts of random images that the checker does not find true."""
    reader = make_reader(wording, name_things(classes, wording))
    told: set[str] = set()
    for number in range(TRIALS):
        rng = Random(f"{seed}/{number}")
        labels = classes[: rng.randint(1, len(classes))]
        boxes = [Box(rng.choice(labels), _random_points(rng)) for _ in range(rng.choice((1, 1, 2, 3, 5, 12)))]
        picture = look_at(reader.labels, boxes, SIDE, SIDE)
        for said in say_everything(boxes, SIDE, SIDE, reader, rng):
            problem = check_dialogue(reader, picture, said.subset, said.task, said.style, said.turns)
            kind = f"{said.subset} {said.task} {said.style} {problem}"
            if problem and kind not in told:
                told.add(kind)
                yield f"{said.task}: {said.turns[0].question!r} {said.turns[0].answer!r}: {problem}"


def _random_points(rng: Random) -> list[float]:
    x, y = rng.randrange(SIDE - 50), rng.randrange(SIDE - 50)
    return [float(x), float(y), float(rng.randint(5, 50)), float(rng.randint(5, 50))]
