"""Is a caption true of the boxes? Whatever it says of classes, numbers, parts of the image and relations must hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sarlang_sft.language.reading import Reader, Reading, read_part, sentence_readings, split_list
from sarlang_sft.language.things import Thing
from sarlang_sft.language.truth import Picture
from sarlang_sft.language.wording import CAPTION_FAMILIES
from sarlang_sft.records import Turn

Check = Callable[[Reader, Picture, Reading], str | None]
"""Why a caption is not true by a reading of it, or None."""


class Counted(NamedTuple):
    """`1 ship`, `14 tanks`: a class, its number where it is said, and whether the words are those for one."""

    thing: Thing
    number: int | None
    one: bool


def check_caption(reader: Reader, picture: Picture, family: str | None, turns: Sequence[Turn]) -> str | None:
    """Why a caption of a family is not true of the boxes, or cannot be read; None if it is true."""
    if family not in CAPTION_FAMILIES or len(turns) != 1:
        return f"no caption of a family: {family}, {len(turns)} turns"
    prompts = reader.phrases[f"prompts.{family}"]
    if not any(prompt.pattern.fullmatch(turns[0].question) for prompt in prompts):
        return "question not understood"
    found = [*sentence_readings(reader, reader.phrases[f"captions.{family}"], turns[0].answer)]
    if not found:
        return "caption not understood"
    problems = (_CHECKS[family](reader, picture, reading) for reading in found)
    return next((problem for problem in problems if problem), None)


def _counted(reader: Reader, text: str, one: str, many: str) -> list[Counted]:
    """All that a counted class can mean."""
    return [
        Counted(thing, int(reading.values["n"]) if "n" in reading.values else None, name == one)
        for name, reading in read_part(reader, (one, many), text)
        for thing in reading.things or ()
    ]


def _fits(counted: Counted, number: int) -> bool:
    """Whether words speak of so many objects; a form for one without its number is one."""
    return (number == 1) == counted.one and number > 0 and counted.number in (None, number)


def _list_of(slot: str, one: str, many: str) -> Check:
    """A list of all classes, each named once, in the number that the boxes have of it."""

    def check(reader: Reader, picture: Picture, reading: Reading) -> str | None:
        if picture.unsure:
            return "names all classes where not all are known for sure"
        said: list[Thing] = []
        for item in split_list(reader, slot, reading.values[slot]):
            meant = _counted(reader, item, one, many)
            fitting = [counted.thing for counted in meant if _fits(counted, len(picture.numbers_of(counted.thing)))]
            if not fitting:
                return f"says {item!r}, which the boxes do not"
            said += fitting[:1]
        whole = len({*said}) == len(said) and {*said} == {*picture.numbers}
        return None if whole else "names a class twice, or not all"

    return check


def _groups_there(reader: Reader, picture: Picture, text: str, place: str) -> Iterator[tuple[Counted, list[int]]]:
    """What a group in a part of the image can mean, with the boxes of its class there."""
    cell = reader.places[place]
    for counted in _counted(reader, text, "one", "many"):
        if counted.thing in picture.unsure:
            continue
        yield counted, [number for number in picture.numbers_of(counted.thing) if picture.ninth(number) == cell]


def _absolute(reader: Reader, picture: Picture, reading: Reading) -> str | None:
    values = reading.values
    if "placed" not in values:
        return _placed(reader, picture, values["group"], values["place"], reading.one)
    items = split_list(reader, "placed", values["placed"])
    if not items or len({*items}) < len(items):
        return "names a group twice, or none"
    for item in items:
        said = [one.values for _, one in read_part(reader, ("placed",), item)]
        problem = next(
            filter(None, (_placed(reader, picture, one["group"], one["place"], None) for one in said)), None
        )
        if problem:
            return problem
    return None


def _placed(reader: Reader, picture: Picture, group: str, place: str, one: bool | None) -> str | None:
    meant = [*_groups_there(reader, picture, group, place)]
    if not any(_fits(counted, len(there)) and one in (None, len(there) == 1) for counted, there in meant):
        return f"says {group!r} in the part {place!r}, which the boxes do not"
    return None


def _relative(reader: Reader, picture: Picture, reading: Reading) -> str | None:
    values = reading.values
    problem = _placed(reader, picture, values["group"], values["place"], reading.one)
    if problem:
        return problem
    relation = reader.relations[values["relation"]]
    for counted, there in _groups_there(reader, picture, values["group"], values["place"]):
        for other in _counted(reader, values["the_group"], "the_one", "the_many"):
            numbers = picture.numbers_of(other.thing)
            different = other.thing != counted.thing and other.thing not in picture.unsure
            fitting = different and _fits(counted, len(there)) and _fits(other, len(numbers))
            if fitting and picture.beyond(there, numbers, relation):
                return None
    return f"says {relation} {values['the_group']!r}, which the boxes do not"


_CHECKS: dict[str, Check] = {
    "general": _list_of("kinds", "kind_one", "kind_many"),
    "complex": _list_of("groups", "one", "many"),
    "absolute_region": _absolute,
    "relative_region": _relative,
}
