"""Replies of chat servers, kept on disk: what was answered once is not asked, or paid for, again."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sarlang_sft.chat_protocol import Reply
from sarlang_sft.errors import InputError


class ReplyCache:
    """JSON lines `{"key", "reply"}`, only ever appended to, one write each: several processes may share a file.

    A line that a kill cut off, or that is no such object, is passed over; its request is asked again.

    Args:
        path: Read now; made with the first reply.

    Raises:
        InputError: It cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot keep replies ({error}); give the name of another file") from error
        if content and not content.endswith(b"\n"):
            os.write(self._file, b"\n")
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                self._replies[entry["key"]] = Reply(**entry["reply"])
            except (ValueError, LookupError, TypeError):
                continue

    def find(self, model: str, body: dict[str, Any]) -> Reply | None:
        """The reply to a request.

        Args:
            model: See `ChatServer.stands_for`: names are given anew to other models.
            body: All that is sent, the model's name included.
        """
        return self._replies.get(_key(model, body))

    def add(self, model: str, body: dict[str, Any], reply: Reply) -> None:
        """Keep a reply; raises [`InputError`] if it cannot be written."""
        key = _key(model, body)
        line = (json.dumps({"key": key, "reply": asdict(reply)}) + "\n").encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error})") from error
        if written < len(line):
            raise InputError(f"{self.path}: cannot be written (the disk is full)")
        self._replies[key] = reply


def _key(model: str, body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([model, body], sort_keys=True).encode()).hexdigest()
