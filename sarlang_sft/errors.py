"""The one error that users cause and can mend, how it is worded, and what programs end with."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BAD_INPUT = 2  # exit code
STOPPED_EXIT = 75  # EX_TEMPFAIL: start the same command again


class InputError(ValueError):
    """Bad input or configuration. The message names the file, row or option, says what is wrong and how to mend it."""


class UnreadableImageError(InputError):
    """An image file that is missing, cut off, or no picture: `path`, and the decoder's `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # as `args`, by which exceptions are sent to other processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: unreadable image: {self.reason}"


def nearest(name: Any, known: Iterable[str], otherwise: str) -> str:
    """The end of a message about a name that is not known."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean `{close[0]}`?" if close else otherwise


def own_message(error: InputError) -> str:
    """The message without the traceback that PyTorch puts around it when a loader worker raised the error."""
    message = str(error)
    if not message.startswith("Caught "):
        return message
    kind = type(error)
    return message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].strip()


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """End the program with exit code 2 and one clear line, instead of a traceback, on an [`InputError`]."""
    try:
        yield
    except InputError as error:
        print(f"error: {own_message(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
