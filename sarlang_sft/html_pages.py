"""Web pages that need no other file: rendered from templates, with every text escaped and every sign visible."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent


def render(template: Path, filters: Sequence[Callable[..., Any]], values: dict[str, Any]) -> str:
    """A page from a template of the package, which may include those beside it and those of this folder.

    Args:
        filters: Known in the template by their names.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(template.name).render(values)


def visible(text: str) -> str:
    """A text in which line breaks and everything that does not print can be seen: no terminal obeys it."""
    return "".join(
        "↵\n" if sign == "\n" else sign if sign.isprintable() else sign.encode("unicode_escape").decode()
        for sign in text
    )
