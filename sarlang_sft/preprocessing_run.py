"""The preprocessing of many images: in parallel, and to be continued after any interruption.

An output folder holds the PNGs and three files: `preprocessing.json` (root and chain, fixed by the first run),
`images.jsonl` (one line for each finished image) and `rejected.jsonl` (image and reason, of the last run).
"""

import fcntl
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from io import FileIO
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.preprocessing import Chain, preprocess
from sarlang_sft.radar_files import RadarImage, find_images
from sarlang_sft.whole_output import CannotWriteError, whole_file

PARAMETERS, FINISHED, REJECTED = "preprocessing.json", "images.jsonl", "rejected.jsonl"


def preprocess_folder(root: Path, out: Path, chain: Chain, workers: int | None = None) -> dict[str, Any]:
    """Preprocess every image under `root` that is not yet finished in `out`.

    An image is finished if all its outputs are there and its files have kept their size and time of change.

    Args:
        workers: Processes; as many as there are cores by default.

    Returns:
        `done` and `earlier` (numbers of images), `rejected` (numbers of images by reason), `ignored` (numbers of files
        of other kinds by suffix), `domains` (numbers of images done now by what their values were taken for).

    Raises:
        InputError: There is no image, `out` was begun with another root or chain or is in use, or cannot be written.
    """
    images, rejected, ignored = find_images(root)
    if not images and not rejected:
        raise InputError(f"--root {root}: no image in it (.png, .jpg, .bmp, .tif)")
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers}: at least 1")
    with _claimed(out, root, chain):
        finished = _read_finished(out)
        to_do = [image for image in images if not _is_finished(image, finished.get(image.name), root, out)]
        for image in to_do:
            _remove_outputs(finished.get(image.name, {}), out)
        files = {name: {source["file"] for source in line["sources"]} for name, line in finished.items()}
        bad = {name for name, own in files.items() if own & rejected.keys()}
        for name in bad:  # its picture is no longer what the root holds
            _remove_outputs(finished[name], out)
        kept = finished.keys() - bad - {image.name for image in to_do}  # also of images that have left the root
        with whole_file(out / FINISHED) as file:
            file.writelines(_line(line) for name, line in finished.items() if name in kept)
        domains: Counter[str] = Counter()
        with open(out / FINISHED, "ab", buffering=0) as log:
            for image, result in tqdm(_results(to_do, root, chain, out, workers), total=len(to_do), unit=" images"):
                if isinstance(result, str):
                    rejected[image.name] = result
                else:
                    domains[result["domain"]] += 1
                    _append(log, _line(result))
        with whole_file(out / REJECTED) as file:
            file.writelines(_line({"image": name, "reason": why}) for name, why in sorted(rejected.items()))
    done = sum(image.name not in rejected for image in to_do)
    if not done and len(to_do) == len(images):
        why, _ = Counter(rejected.values()).most_common(1)[0]
        raise InputError(f"--root {root}: none of its images can be used; most often: {why} (see {out / REJECTED})")
    counted = dict(Counter(rejected.values()).most_common())
    numbers = {"done": done, "earlier": len(images) - len(to_do)}
    return {**numbers, "rejected": counted, "ignored": dict(ignored), "domains": domains}


def _remove_outputs(line: dict[str, Any], out: Path) -> None:
    for stale in line.get("outputs", []):
        (out / stale).unlink(missing_ok=True)


def print_summary(summary: dict[str, Any]) -> None:
    """Counts, and what was rejected why."""
    rejected = sum(summary["rejected"].values())
    print(f"  done {summary['done']:,}, finished earlier {summary['earlier']:,}, rejected {rejected:,}")
    if summary["domains"]:
        taken = ", ".join(f"{domain} {count:,}" for domain, count in summary["domains"].most_common())
        print(f"  pixel values taken for: {taken}")
    for reason, count in summary["rejected"].items():
        print(f"  rejected: {reason} {count:,} (see {REJECTED})")
    if summary["ignored"]:
        print("  ignored, no images:", ", ".join(f"{kind} {count:,}" for kind, count in summary["ignored"].items()))


@contextmanager
def _claimed(out: Path, root: Path, chain: Chain) -> Iterator[None]:
    """Make `out` this run's own folder: of this root and chain, and of no other process until the context ends."""
    if out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--out {out}: lies in --root {root}; its pictures would be taken for images")
    if out.is_file():
        raise InputError(f"--out {out}: is a file; give the name of a folder")
    if out.exists() and any(out.iterdir()) and not ((out / PARAMETERS).is_file() or (out / ".lock").is_file()):
        raise InputError(f"--out {out}: exists and was not made by this program (no {PARAMETERS}); choose another")
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(out / ".lock", "w"))
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {out}: another run is writing to it; wait for it") from None
        except OSError as error:  # some network file systems have no locks
            print(f"{out}: cannot be locked ({error.strerror}); let no other run write to it")
        _check_parameters(out, {"root": str(root.resolve()), **asdict(chain)})
        yield


def _check_parameters(out: Path, wanted: dict[str, Any]) -> None:
    """Write the parameters if this is the first run, otherwise raise [`InputError`] unless they are the same."""
    path = out / PARAMETERS
    if not path.is_file():
        with whole_file(path) as file:
            file.write(json.dumps(wanted, indent=2).encode() + b"\n")
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"found {type(stored).__name__}")
    except ValueError as error:
        raise InputError(f"{path}: no valid JSON ({error}); choose another --out") from error
    for option, value in wanted.items():
        if stored.get(option) != value:
            raise InputError(
                f"--out {out}: was begun with {option} {stored.get(option)}, not {value}; use that, or choose another"
            )


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _append(log: FileIO, line: bytes) -> None:
    try:
        written = log.write(line)
    except OSError as error:
        raise CannotWriteError(f"{log.name}: cannot be written ({error.strerror}); make room and run again") from error
    if written < len(line):
        raise CannotWriteError(f"{log.name}: the disk is full; make room and run again")


def _read_finished(out: Path) -> dict[str, dict[str, Any]]:
    """The lines of finished images by name; one that a killed run or machine left torn counts as not there."""
    path = out / FINISHED
    finished = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.keys() >= {"image", "sources", "outputs"}:
            finished[found["image"]] = found
    return finished


def _is_finished(image: RadarImage, line: dict[str, Any] | None, root: Path, out: Path) -> bool:
    if line is None or line["sources"] != _sources(image, root):
        return False
    return all((out / output).is_file() for output in line["outputs"])


def _sources(image: RadarImage, root: Path) -> list[dict[str, Any]]:
    stats = [(file, (root / file).stat()) for file in image.files]
    return [{"file": file, "bytes": stat.st_size, "changed_ns": stat.st_mtime_ns} for file, stat in stats]


def _results(
    images: list[RadarImage], root: Path, chain: Chain, out: Path, workers: int | None
) -> Iterator[tuple[RadarImage, dict[str, Any] | str]]:
    """What [`_preprocess_one`] returns for every image, as they get done."""
    pool = ProcessPoolExecutor(workers or os.cpu_count(), initializer=_begin_worker)
    try:
        futures: dict[Future, RadarImage] = {
            pool.submit(_preprocess_one, root, image, chain, out): image for image in images
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died, perhaps out of memory; what is finished stays: run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _preprocess_one(root: Path, image: RadarImage, chain: Chain, out: Path) -> dict[str, Any] | str:
    """The line of a finished image, or the reason why it cannot be used."""
    try:
        sources = _sources(image, root)
        return {"image": image.name, "sources": sources, **preprocess(root, image, chain, out)}
    except CannotWriteError:
        raise
    except InputError as reason:
        return str(reason)
    except FileNotFoundError:
        return "file is gone"
