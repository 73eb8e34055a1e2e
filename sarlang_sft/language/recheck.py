"""The texts of a data folder held against its boxes again."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sarlang_sft.errors import InputError
from sarlang_sft.language.captions import CAPTIONS
from sarlang_sft.language.checking import check_dialogue
from sarlang_sft.language.dialogues import GROUNDING, VQA
from sarlang_sft.language.reading import make_reader
from sarlang_sft.language.things import name_things
from sarlang_sft.language.truth import look_at
from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import SPLITS, read_manifest, read_records

FROM_BOXES = (VQA, CAPTIONS, GROUNDING)  # subsets
WORDING = "wording.yaml"


class Disagreement(NamedTuple):
    """A dialogue that is not true of the boxes, or cannot be read."""

    id: str
    task: str
    text: str
    reason: str


def recheck(data: Path) -> tuple[Counter[tuple[str, str]], list[Disagreement]]:
    """Derive every answer of a folder of build_from_boxes.py from its boxes.

    Returns:
        How many dialogues of each subset and task are true, and those that are not.

    Raises:
        InputError: It is no such folder.
    """
    classes = read_manifest(data).get("classes")
    if not isinstance(classes, list) or not (data / WORDING).is_file():
        raise InputError(
            f"--data {data}: was not built by build_from_boxes.py (its manifest has no classes, or {WORDING} is "
            "missing); texts of class folders have no boxes to be checked by"
        )
    wording = read_wording(str(data / WORDING))
    reader = make_reader(wording, name_things(classes, wording))
    true: Counter[tuple[str, str]] = Counter()
    false: list[Disagreement] = []
    for split in SPLITS:
        for record in tqdm(read_records(data, split), desc=split, unit=" images"):
            unknown = {box.label for box in record.boxes} - {*classes}
            if unknown:
                raise InputError(f"--data {data}: {record.images[0]} has a box of no class of the set: {unknown}")
            picture = look_at(reader.labels, record.boxes, record.width, record.height)
            for one in record.dialogues:
                if one.subset not in FROM_BOXES:
                    continue
                problem = check_dialogue(reader, picture, one.subset, one.task, one.style, one.turns)
                if problem is None:
                    true[one.subset, one.task] += 1
                else:
                    text = " / ".join(f"{turn.question} {turn.answer}" for turn in one.turns)
                    false.append(Disagreement(one.id, one.task, text, problem))
    return true, false


def print_recheck(true: Counter[tuple[str, str]], false: list[Disagreement], shown: int) -> None:
    """Counts by subset and task, and the first disagreements."""
    for (subset, task), count in sorted(true.items()):
        print(f"  {subset:16} {task:20} {count:>9,} true")
    print(f"  {true.total():,} of {true.total() + len(false):,} dialogues agree with their boxes")
    for one in false[:shown]:
        print(f"  {one.id} ({one.task}): {one.text}: {one.reason}")
