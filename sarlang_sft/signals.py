"""What SIGTERM and SIGINT do to a program outside of training."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

from sarlang_sft.errors import STOPPED_EXIT

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def leave_at_once(note: Callable[[], None]) -> None:
    """Until training begins and after it has ended, a signal ends the process with exit code 75: nothing is lost.

    Args:
        note: Called first.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        note()
        sys.exit(STOPPED_EXIT)

    for number in SIGNALS:
        signal.signal(number, leave)


def ignore_signals() -> None:
    """What is left of the program takes a moment: a signal would only spoil its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
