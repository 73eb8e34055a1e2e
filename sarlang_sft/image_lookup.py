"""Images by the names that texts give them: their authors' own paths and suffixes, never followed out of the root."""

import os
import re
from functools import cached_property
from pathlib import Path, PurePosixPath

from sarlang_sft.errors import InputError
from sarlang_sft.image_files import IMAGE_SUFFIXES, header_size, path_inside
from sarlang_sft.records import SPLITS

NOT_FOUND = "image not found"


class NoImageError(ValueError):
    """Why there is no image, or none that can be used."""


class ImageFolder:
    """The images below a root, by the names that texts give them; every name is looked up once."""

    def __init__(self, root: Path) -> None:
        """Raises [`InputError`] if there is no such folder."""
        if not root.is_dir():
            raise InputError(f"--image_root {root}: no such folder")
        self.root = root.resolve()
        self._places: dict[tuple[str, tuple[str, ...]], str] = {}
        self._reasons: dict[tuple[str, tuple[str, ...]], str] = {}
        self._sizes: dict[str, tuple[int, int] | str] = {}

    @cached_property
    def index(self) -> dict[str, list[str]]:
        """[`index_images`] of the root."""
        return index_images(self.root)

    def locate(self, name: str, folders: tuple[str, ...] = ()) -> str:
        """The path, relative to the root, of the image that a text calls `name`.

        It is the image at that path if there is one, else the one of the same stem whose folders agree furthest from
        the file upwards.

        Args:
            folders: Names of folders of the text's split, the likeliest first; they decide where the text's own leave
                several images.

        Raises:
            NoImageError: There is none, or there are several.
        """
        key = name, folders
        if key not in self._places and key not in self._reasons:
            try:
                self._places[key] = self._find(name, folders)
            except NoImageError as error:
                self._reasons[key] = str(error)  # an error kept and raised again would grow with every raise
        if key in self._reasons:
            raise NoImageError(self._reasons[key])
        return self._places[key]

    def size(self, relative: str) -> tuple[int, int]:
        """(width, height) in pixels from the header; raises NoImageError with the reason if it cannot be used."""
        if relative not in self._sizes:
            self._sizes[relative] = header_size(self.root, relative)
        size = self._sizes[relative]
        if isinstance(size, str):
            raise NoImageError(size)
        return size

    def _find(self, name: str, folders: tuple[str, ...]) -> str:
        inside = name.removeprefix(f"{self.root}/").replace("\\", "/").lstrip("/")
        parts = PurePosixPath(inside).parts
        if ".." not in parts and os.path.isfile(self.root / inside):
            try:
                path_inside(self.root, inside)
            except InputError as error:
                raise NoImageError("path leaves the image root") from error
            return inside
        candidates = self.index.get(stem_of(inside), [])
        shared = [_shared_folders(parts, PurePosixPath(candidate).parts) for candidate in candidates]
        nearest = [path for path, count in zip(candidates, shared, strict=True) if count == max(shared)]
        if folders and not max(shared, default=0):  # an image of another split would be another image
            nearest = [path for path in nearest if not _folders(path) & ({*SPLITS} - {*folders})]
        if not nearest:
            raise NoImageError("path leaves the image root" if ".." in parts else NOT_FOUND)
        for folder in folders:
            nearest = [path for path in nearest if folder in _folders(path)] or nearest
        if len(nearest) > 1:
            raise NoImageError("several images of this name")
        return nearest[0]


def stem_of(image: str) -> str:
    """What identifies an image in texts: its file name in lower case, without folders and image suffix."""
    name = re.split(r"[\\/]", image)[-1].lower()
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix}" in IMAGE_SUFFIXES else name


def _folders(path: str) -> set[str]:
    return {part.lower() for part in PurePosixPath(path).parts[:-1]}


def _shared_folders(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many folders two paths share, counted from the file upwards and in any case."""
    pairs = zip(one[-2::-1], other[-2::-1], strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a.lower() != b.lower()), min(len(one), len(other)) - 1)


def index_images(image_root: Path) -> dict[str, list[str]]:
    """Relative paths of the images below `image_root` by their stem in lower case, one per folder.

    Texts name images by the authors' own paths and suffixes, so the stem counts. In one folder the order of
    `IMAGE_SUFFIXES` decides; files in folders named `...original` count where there is nothing else, optical twins in
    folders named `RGB...` never. Links to folders are not followed, which is said.
    """
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for folder, subfolders, names in os.walk(image_root):
        subfolders[:] = sorted(name for name in subfolders if not name.lower().startswith("rgb"))
        for link in (name for name in subfolders if os.path.islink(os.path.join(folder, name))):
            print(f"{os.path.join(folder, link)!r}: a link to a folder, not followed; put the folder itself there")
        inner = os.path.relpath(folder, image_root)
        for name in names:
            suffix = os.path.splitext(name)[1]
            if suffix.lower() in IMAGE_SUFFIXES:
                relative = name if inner == "." else f"{inner}/{name}"
                rank = (IMAGE_SUFFIXES.index(suffix.lower()), relative)
                places = found.setdefault(stem_of(name), {})
                places[folder] = min(rank, places.get(folder, rank))
    index = {}
    for stem, places in found.items():
        paths = [relative for _, relative in places.values()]
        index[stem] = [path for path in paths if "original" not in os.path.dirname(path).lower()] or paths
    return index
