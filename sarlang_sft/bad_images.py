"""Images that cannot be read in the middle of a run: left out with what is said about them, written down, bounded."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sarlang_sft.collate import DialogueCollator
from sarlang_sft.errors import InputError, UnreadableImageError
from sarlang_sft.image_files import path_inside
from sarlang_sft.trees import Dialogue, TreeCollator
from sarlang_sft.whole_output import CannotWriteError

BAD_IMAGES = "bad_images.jsonl"  # in the output folder: `image, reason`
Rows = list[Any]  # dialogues, or lists of trees


def read_bad_images(out: Path) -> set[str]:
    """The image files that the run of this output folder met and could not read, on any rank, resumed or not."""
    file, known = out / BAD_IMAGES, set()
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            known.add(json.loads(line)["image"])
        except json.JSONDecodeError:  # a full disk broke it off; the image is noted again when it is met again
            continue
    return known


def forget_bad_images(out: Path) -> None:
    """Count anew, as a run does that resumes none."""
    (out / BAD_IMAGES).unlink(missing_ok=True)


def note_bad_image(out: Path, error: UnreadableImageError, most: int) -> None:
    """Write an image down and say so in one line, unless that is done already.

    Ranks and their loader workers do this at the same time, so a line is one write to the end of the file.

    Raises:
        InputError: The run has met more than `most` of them.
        CannotWriteError: The file cannot be written.
    """
    file, known = out / BAD_IMAGES, read_bad_images(out)
    new = str(error.path) not in known
    if new:
        known.add(str(error.path))
        line = json.dumps({"image": str(error.path), "reason": error.reason}) + "\n"
        try:
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            written = os.write(descriptor, line.encode())
            os.close(descriptor)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as problem:
            raise CannotWriteError(f"{file}: cannot be written ({problem}), and {error}") from problem
    if len(known) > most:
        raise InputError(
            f"{error}; it is number {len(known)} of the unreadable images of this run, all named in {file}, and "
            f"max_bad_images is {most}: mend them (data_prep/validate.py finds all), or raise max_bad_images to leave "
            "them out"
        )
    if new:
        print(f"left out: {error} (number {len(known)}, max_bad_images {most}; {file})", flush=True)


def dialogues_of(rows: Rows) -> Iterator[Dialogue]:
    """The dialogues of rows of either layout."""
    for part in rows:
        if isinstance(part, dict):
            yield part
        else:
            yield from dialogues_of(part)


def without(rows: Rows, file: Path) -> Rows:
    """Rows of either layout without the dialogues about this image, and without what that empties."""
    kept = []
    for part in rows:
        if not isinstance(part, dict):
            kept += [left for left in [without(part, file)] if left]
        elif file not in [path_inside(Path(part["image_root"]), image) for image in part["images"]]:
            kept.append(part)
    return kept


class ReadableCollator:
    """Collates what can be read; the first error but those of image files stops the run.

    Args:
        out: Output folder of the run, in which unreadable images are counted over ranks, workers and resumes.
        most: How many of them may be left out.
    """

    def __init__(self, collator: TreeCollator | DialogueCollator, out: Path, most: int) -> None:
        self.collator = collator
        self.backbone = collator.backbone
        self.processor = collator.processor
        self.image_ops = collator.image_ops
        self.out = out
        self.most = most

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """The collator's batch of the rows, or of what is left of them, and `images`, the list of their names.

        Nothing left gives a batch with a black picture and without labels, see `Encoder.blank`.

        Raises:
            InputError: More than `most` images of the run cannot be read, or the collator's own.
        """
        while True:
            try:
                batch = self.collator(rows)
            except UnreadableImageError as error:
                note_bad_image(self.out, error, self.most)
                rows = without(rows, error.path)
                continue
            names = [image for dialogue in dialogues_of(rows) for image in dialogue["images"]]
            return {**batch, "images": list(dict.fromkeys(names))}
