"""The one error that users cause and can mend, and how a program ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BAD_INPUT = 2


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
