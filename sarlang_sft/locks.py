"""A file that one process holds until it ends, however it ends."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import BinaryIO


class HeldElsewhereError(Exception):
    """Another process holds the file; the message names it as it called itself."""


def take_lock(path: Path) -> BinaryIO:
    """Hold a file, which is made if it is missing, until the process ends or any handle of it is closed there.

    It is a lock of the process, which its child processes do not inherit: they may outlive it for a moment. On a file
    system without locks it only says so.

    Raises:
        HeldElsewhereError: Another process holds it.
        OSError: It cannot be opened.
    """
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise HeldElsewhereError(file.read().decode(errors="replace").strip() or "another process") from error
        print(f"{path}: cannot be locked ({error}); see to it that no two processes share it", flush=True)
    return file


def sign_lock(file: BinaryIO) -> None:
    """Write into a file that is held who holds it."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
