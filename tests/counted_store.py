"""A file system of fsspec that keeps a log of what is opened, and answers badly when it is told to."""

import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import fsspec
from fsspec.spec import AbstractFileSystem


class CountedStore(AbstractFileSystem):
    """Local files at `counted:///path`; forked processes share the log, and have the answers as they were then.

    Attributes:
        log: A line for every file that is opened.
        answers: By the name of a file what it answers, one after the other, the last one from then on: `gone`,
            `refused`, `cut`, `damaged`, `slow` or `well`.
    """

    protocol = "counted"
    log: Path
    answers: dict[str, list[str]]

    def _open(self, path: str, mode: str = "rb", **options: object) -> object:
        name = Path(path).name
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(name + "\n")
        answers = self.answers.get(name, ["well"])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "gone":
            raise FileNotFoundError(path)
        if answer == "refused":
            raise ConnectionResetError(f"https://key:secret@store.example/{name}?token=abc was refused")
        content = Path(path).read_bytes()
        if answer == "cut":
            return BytesIO(content[: len(content) // 2])
        if answer == "damaged":
            return BytesIO(
                content[:-2000] + bytes(2000)[::-1] if content[-2000:] != bytes(2000) else b"\1" + content[1:]
            )
        return _Slow(content) if answer == "slow" else BytesIO(content)

    @classmethod
    def start(cls, log: Path) -> None:
        """Forget everything."""
        cls.log, cls.answers = log, {}
        log.touch()

    @classmethod
    def opened(cls, ending: str = ".tar") -> Counter:
        """How often every file of this ending was opened."""
        return Counter(line for line in cls.log.read_text().splitlines() if line.endswith(ending))


class _Slow(BytesIO):
    """Half of the content, and then nothing for a minute."""

    def read(self, size: int = -1) -> bytes:
        if self.tell():
            time.sleep(60)
        return super().read(len(self.getvalue()) // 2)


fsspec.register_implementation("counted", CountedStore, clobber=True)
