"""A folder of results that appears complete or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sarlang_sft.errors import InputError


@contextmanager
def whole_folder(out: Path, option: str, marker: str | None = None) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends without an error.

    Args:
        option: Names `out` in messages, such as `--out`.
        marker: A file that tells an earlier result, which is replaced; without one, `out` must be new or empty.

    Raises:
        InputError: `out` is a file, or holds anything else.
    """
    if out.is_file():
        raise InputError(f"{option} {out}: is a file; give the name of a folder")
    if out.exists() and any(out.iterdir()) and not (marker and (out / marker).is_file()):
        raise InputError(
            f"{option} {out}: exists and is not empty{f' (no {marker})' if marker else ''}; choose another"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    around = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        building = around / "new"
        building.mkdir()
        yield building
        if out.exists():
            out.rename(around / "old")
        building.rename(out)
    finally:
        shutil.rmtree(around, ignore_errors=True)
