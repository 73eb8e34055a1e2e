"""Classes as texts speak of them: the name, its plural, its article, and what it is a kind of."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from sarlang_sft.errors import InputError
from sarlang_sft.language.english import plural, singular, with_article
from sarlang_sft.language.wording import Wording

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]{2})[_-]+(?=[^\W\d_]{2})")
_BREAKS_TEXTS = re.compile(r"[\[\]{}<>|;,:?!\s]+")


class Thing(NamedTuple):
    """A class of objects.

    Attributes:
        name: In the singular, as texts say it.
        many: In the plural.
        a: With its article.
        kind: What it is a kind of, if the wording says so; and that with its article.
        also: Other names that mean it.
    """

    name: str
    many: str
    a: str
    kind: str | None = None
    a_kind: str | None = None
    also: tuple[str, ...] = ()

    def forms(self) -> dict[str, str]:
        """By slot."""
        own = {"class": self.name, "classes": self.many, "a_class": self.a}
        return own | ({"kind": self.kind, "a_kind": self.a_kind} if self.kind is not None else {})


def name_of(label: str, wording: Wording) -> str:
    """A label as texts say it: `large-vehicle` as `large vehicle`, `ships` as `ship`, `T62` as it is."""
    plain = unicodedata.normalize("NFC", label)
    said = wording.forms_of(plain).get("say")
    if said is not None:
        return _BREAKS_TEXTS.sub(" ", said).strip(" .")
    name = _BREAKS_TEXTS.sub(" ", _BETWEEN_WORDS.sub(" ", plain)).strip(" .")
    return singular(name) if wording.grammar == "english" else name


def name_things(labels: Sequence[str], wording: Wording) -> dict[str, Thing]:
    """The thing that each label means; labels of one name, whatever its case, mean the same one.

    Args:
        labels: In the order in which lists of classes name them.

    Raises:
        InputError: A label leaves no name, or texts could not tell two classes apart.
    """
    things: dict[str, Thing] = {}
    by_name: dict[str, Thing] = {}
    for label in labels:
        name = name_of(label, wording)
        if not name:
            raise InputError(
                f"class {label!r}: leaves no name to say; give it one with `classes: {{...: {{say: ...}}}}`"
            )
        things[label] = by_name.setdefault(name.casefold(), thing_named(name, wording))
    _check_distinct(list(by_name.values()), wording)
    return things


def thing_named(name: str, wording: Wording) -> Thing:
    """A class, or what one is a kind of, by its name as texts say it."""
    forms = wording.forms_of(name)
    kind = forms.get("is_a")
    by_rule = wording.grammar == "english"
    return Thing(
        name=name,
        many=forms.get("many") or (plural(name) if by_rule else name),
        a=forms.get("a") or (with_article(name) if by_rule else name),
        kind=kind,
        a_kind=kind and (wording.forms_of(kind).get("a") or (with_article(kind) if by_rule else kind)),
        also=tuple(forms.get("also", ())),
    )


def _check_distinct(things: Sequence[Thing], wording: Wording) -> None:
    """Raise [`InputError`] where a text could mean one class or another, or a list of others."""
    owners: dict[str, Thing] = {}
    for thing in things:
        for form in {thing.name, thing.many, thing.a}:
            other = owners.setdefault(form.casefold(), thing)
            if other is not thing:
                raise InputError(
                    f"classes {other.name!r} and {thing.name!r}: {form!r} may mean either; give one of them other "
                    "forms under `classes` of a wording"
                )
    joints = [wording.parts[f"parts.{name}"].fill({}) for name in ("between", "last", "listed")]
    forms = [form for thing in things for form in {thing.name, thing.many, thing.a}]
    for said, joint in product(forms, joints):
        if joint in said and all(part.casefold() in owners for part in said.split(joint)):
            raise InputError(f"class {said!r}: reads like a list of other classes; `say` it otherwise in a wording")
