"""Files on an object store or any other file system that fsspec knows: URLs without secrets, downloads that are whole.

What a store answers is checked against the length and the SHA-256 that the manifest states, and asked for again, after
growing pauses, when it fails, breaks off or differs.
"""

import hashlib
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fsspec.core import url_to_fs

from sarlang_sft.errors import InputError

ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds; each pause is twice as long as the one before
CHUNK = 8 * 2**20  # bytes that are asked for at once
LARGEST_MANIFEST = 64 * 2**20  # bytes
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_USER = re.compile(r"(?<=://)[^/\s'\"]*@")
_QUERY = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"]*")


class StoreError(InputError):
    """A file of a store cannot be had as it should be."""


class Stored(NamedTuple):
    """A file as the manifest states it: its name, its length in `bytes`, and the `sha256` of them in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def is_url(path: str) -> bool:
    """Whether a path names something on a store rather than a local folder."""
    return "://" in path


def redact(text: str) -> str:
    """A text whose URLs are without user names, passwords and query strings."""
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))


def check_url(url: str) -> None:
    """Raise [`InputError`] if a URL carries what must not land in logs and checkpoints, or names two stores."""
    scheme, _, rest = url.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if "?" in rest or (at and (":" in user or scheme in ("http", "https"))):
        raise InputError(
            f"data {redact(url)}: a password or token in the address would land in logs; leave it to the store's own "
            "configuration (such as AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if "::" in url:
        raise InputError(f"data {url}: give one address, without `::`; what is fetched is cached anyway")


def read_manifest_bytes(url: str) -> bytes:
    """The bytes of a manifest, whose length is not known beforehand.

    Raises:
        FileNotFoundError: The store has no such file.
        StoreError: It cannot be read.
    """
    for pause in _pauses():
        try:
            content = b""
            for chunk in _chunks(url):
                content += chunk
                if len(content) > LARGEST_MANIFEST:
                    raise InputError(f"data {url}: is no manifest, it is longer than {LARGEST_MANIFEST >> 20} MB")
            return content
        except (FileNotFoundError, InputError):
            raise
        except Exception as error:  # stores fail with errors of every kind
            problem = redact(f"{type(error).__name__}: {error}")
        time.sleep(pause)
    raise StoreError(f"{url}: cannot be read, asked {ATTEMPTS} times ({problem})")


def download(url: str, target: Path, stored: Stored) -> None:
    """Bring a file of a store to `target`, which appears whole or not at all. One process may do so at a time.

    Raises:
        StoreError: The store does not have it as stated, however often it is asked.
        OSError: It cannot be written here.
    """
    part = target.with_name(f".{target.name}.part")
    for pause in _pauses():
        problem = _download_once(url, part, stored)
        if problem is None:
            os.replace(part, target)
            return
        time.sleep(pause)
    part.unlink(missing_ok=True)
    raise StoreError(f"{url}: {problem}, asked {ATTEMPTS} times")


def _download_once(url: str, part: Path, stored: Stored) -> str | None:
    """What went wrong, if anything."""
    digest, length = hashlib.sha256(), 0
    chunks = _chunks(url)
    with open(part, "r+b" if part.exists() else "wb") as file:  # it may be as long as it will be, to keep its room
        while True:
            try:
                chunk = next(chunks, b"")
            except InputError:
                raise
            except Exception as error:  # stores fail with errors of every kind
                return redact(f"cannot be read ({type(error).__name__}: {error})")
            if not chunk:
                break
            length += len(chunk)
            if length > stored.bytes:
                break
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())  # or a node that is lost could keep a file of the right length that holds zeros
    if length != stored.bytes:
        return f"has {'more than ' * (length > stored.bytes)}{min(length, stored.bytes):,} bytes, not {stored.bytes:,}"
    if digest.hexdigest() != stored.sha256:
        return "its checksum differs from the manifest's"
    return None


def _chunks(url: str) -> Iterator[bytes]:
    try:
        store, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(url.partition("://")[0])
        raise InputError(f"data {url}: {error}; " + (f"pip install {package}" if package else "see fsspec")) from error
    with store.open(path, "rb", block_size=CHUNK) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _pauses() -> Iterator[float]:
    """Seconds to wait behind every attempt that fails; ranks do not ask again all at the same moment."""
    for attempt in range(ATTEMPTS - 1):
        yield FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25)
    yield 0.0
