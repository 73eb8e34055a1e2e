"""The one error that users cause and can mend, and how a program ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

BAD_INPUT = 2


class InputError(ValueError):
    """Bad input or configuration. The message names the file, row or option, says what is wrong and how to mend it."""


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """End the program with exit code 2 and one clear line, instead of a traceback, on an [`InputError`]."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
