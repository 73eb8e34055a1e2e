"""Images by the names that files of others give them."""

import os
from pathlib import Path, PurePosixPath

from sarlang_sft.errors import InputError
from sarlang_sft.formats.rows import BadRow
from sarlang_sft.image_files import header_size, path_inside
from sarlang_sft.sarlang import index_images


class ImageFolder:
    """The images below a root, by the names that files give them; every name is looked up once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._places: dict[str, str | BadRow] = {}
        self._sizes: dict[str, tuple[int, int] | str] = {}
        self._index: dict[str, list[str]] | None = None

    def locate(self, name: str) -> str:
        """The path, relative to the root, of the image that a file calls `name`.

        It is the image at that path if there is one, else the one of the same stem whose folders agree furthest from
        the end: files carry their authors' own roots and suffixes.

        Raises:
            BadRow: There is none, or there are several.
        """
        if name not in self._places:
            try:
                self._places[name] = self._find(name)
            except BadRow as error:
                self._places[name] = error
        if isinstance(self._places[name], BadRow):
            raise self._places[name]
        return self._places[name]

    def size(self, relative: str) -> tuple[int, int]:
        """(width, height) in pixels from the header; raises BadRow with the reason if the image cannot be used."""
        if relative not in self._sizes:
            self._sizes[relative] = header_size(self.root, relative)
        if isinstance(self._sizes[relative], str):
            raise BadRow(self._sizes[relative])
        return self._sizes[relative]

    def _find(self, name: str) -> str:
        inside = name.removeprefix(f"{self.root}/").lstrip("/")
        parts = PurePosixPath(inside.replace("\\", "/")).parts
        if ".." in parts:
            raise BadRow("path leaves the image root")
        if os.path.isfile(self.root / inside):
            try:
                path_inside(self.root, inside)
            except InputError as error:
                raise BadRow("path leaves the image root") from error
            return inside
        if self._index is None:
            self._index = index_images(self.root)
        candidates = self._index.get(os.path.splitext(parts[-1])[0].lower(), []) if parts else []
        if not candidates:
            raise BadRow("image not found")
        shared = [_shared_folders(parts, PurePosixPath(candidate).parts) for candidate in candidates]
        nearest = [path for path, count in zip(candidates, shared, strict=True) if count == max(shared)]
        if len(nearest) > 1:
            raise BadRow("several images of this name")
        return nearest[0]


def _shared_folders(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many folders two paths share, counted from the file upwards and in any case."""
    pairs = zip(one[-2::-1], other[-2::-1], strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a.lower() != b.lower()), min(len(one), len(other)) - 1)
