"""The same function over many items, in several processes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from sarlang_sft.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: list[Item], workers: int | None, at_once: int, what: str, remedy: str
) -> Iterator[Result]:
    """The results in the order of the items, with progress.

    Args:
        workers: Processes; None: as many as there are cores. 1 stays in this process.
        at_once: Items that are handed to a process together.
        what: Names the items in the progress bar.
        remedy: What to do if a process is killed.

    Raises:
        InputError: A process was killed from outside, as systems do when memory runs out.
    """
    bar = {"desc": what, "unit": f" {what}", "total": len(items)}
    if workers == 1:
        yield from tqdm(map(function, items), **bar)
        return
    try:
        with ProcessPoolExecutor(workers) as pool:
            yield from tqdm(pool.map(function, items, chunksize=at_once), **bar)
    except BrokenProcessPool as error:
        raise InputError(f"a worker process was killed, probably since memory ran out; {remedy}") from error
