"""Calls that may hang or fail without the caller doing so."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread


class BoundedCalls:
    """Runs calls in threads that nobody waits for at the end of the process.

    Args:
        most_hanging: How many calls may hang for good. As many threads are started now: Python 3.12 refuses to start
            any while a process ends.
    """

    def __init__(self, most_hanging: int) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for _ in range(most_hanging + 1):
            Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._calls.get()()

    def run(self, call: Callable[[], object], seconds: float | None) -> str:
        """Why a call failed, in one line, or nothing; after so many seconds it is left to itself."""
        failures: list[str] = []
        done = Event()

        def guarded() -> None:
            try:
                call()
            except BaseException as error:  # SystemExit, too, must not end the thread
                failures.append(" ".join(f"{type(error).__name__}: {error}".split()))
            done.set()

        self._calls.put(guarded)
        if not done.wait(seconds):
            return f"no answer within {seconds:g} seconds"
        return failures[0] if failures else ""
