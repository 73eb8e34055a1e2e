"""Time and memory of scoring a test split of SARLANG-1M's size: 125,255 answers and 13,682 captions.

    python benchmarks/scoring.py                                     # 10 % and all of it
    python benchmarks/scoring.py --out benchmarks/results/cpu_scoring.json

Each program runs as its user starts it, in a process of its own, so that the time holds its imports, reading the data
folder and the predictions, and writing the result. Questions, answers and captions are made up with as many different
words and as many questions per image as the release has; of the answers most are short, some are whole sentences.
Every image has five boxes, for the facts of captions.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import setting

from data_prep import measure
from sarlang_sft.questions import NUMBER_WORDS
from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.scenes import CLASSES

EVAL = Path(__file__).parent.parent / "eval"
IMAGES = {"vqa": 14_497, "captions": 4_005}
TEXTS = {"vqa": 125_255, "concise": 7_492, "complex": 6_190}
PLACES = ("top", "bottom", "left", "right", "center", "top left", "near center")
AREAS = ("Urban", "Forest/park", "Farming", "Commercial and residential", "Dense trees", "Industrial")
PLAIN = ("--metrics", "bleu", "rouge_l", "cider")
# The command line of each program, by the name of its figure.
PROGRAMS = {
    "vqa exact": ("score_vqa.py", "--protocol", "exact"),
    "vqa published": ("score_vqa.py", "--protocol", "published"),
    "captions standard": ("score_caption.py", "--protocol", "standard", *PLAIN),
    "captions official": ("score_caption.py", "--protocol", "official", *PLAIN),
    "captions + METEOR": ("score_caption.py", "--protocol", "standard", *PLAIN, "meteor"),
}


def question(rng: np.random.Generator) -> tuple[str, Turn]:
    """A task with a question and its answer, in the shares that the release has."""
    task = rng.choice(["identification", "classification", "counting", "referring", "positioning", "others"],
                      p=[0.45, 0.12, 0.11, 0.2, 0.1, 0.02])  # fmt: skip
    name = str(rng.choice(CLASSES))
    named = ", ".join(str(one) for one in rng.permutation(CLASSES)[: rng.integers(1, 4)])
    turns = {
        "identification": Turn(f"Is there a {name} in the image?", str(rng.choice(["Yes.", "No."]))),
        "classification": Turn("What categories are visible?", f"{named}."),
        "counting": Turn(f"How many {name}s are located in the image?", f"{rng.geometric(0.15)}."),
        "referring": Turn(f"What is the object in the area {rng.integers(0, 512, 4).tolist()}?", f"{name}."),
        "positioning": Turn(f"Where are most {name}s positioned within the image?", f"{rng.choice(PLACES)}."),
        "others": Turn("What is the predominant land cover?", f"{rng.choice(AREAS)}."),
    }
    return str(task), turns[task]


def caption(rng: np.random.Generator, style: str) -> str:
    """One sentence, or three."""
    sentences = [
        f"{rng.choice(AREAS)} scene number {rng.integers(2000)} with {rng.choice(NUMBER_WORDS)} "
        f"{rng.choice(CLASSES)}s at the {rng.choice(PLACES)} of the image "
        f"beside {rng.choice(NUMBER_WORDS)} {rng.choice(CLASSES)}s."
        for _ in range(1 if style == "concise" else 3)
    ]
    return " ".join(sentences)


def dialogues(rng: np.random.Generator, scale: float) -> Iterator[tuple[int, Dialogue]]:
    """The number of an image, and a dialogue about it."""
    images = {kind: max(round(count * scale), 1) for kind, count in IMAGES.items()}
    for number in range(round(TEXTS["vqa"] * scale)):
        task, turn = question(rng)
        yield number % images["vqa"], Dialogue(f"vqa:{number}", "vqa1", task, [turn])
    for style in ("concise", "complex"):
        for number in range(round(TEXTS[style] * scale)):
            turn = Turn("Describe the content of this image in one sentence.", caption(rng, style))
            yield (
                number % images["captions"],
                Dialogue(f"{style}:{number}", f"caption_{style}", "description", [turn], style),
            )


def answer(rng: np.random.Generator, task: str, turn: Turn, style: str | None) -> str:
    """Right about two times in three, and now and then a whole sentence."""
    if task == "description":
        return caption(rng, style)
    said = turn.answer if rng.random() < 0.65 else question(rng)[1].answer
    return f"The answer is {said.lower()}" if rng.random() < 0.1 else said


def write_inputs(folder: Path, scale: float) -> None:
    """A data folder `data` and `predictions.jsonl`."""
    rng = np.random.default_rng(0)
    records: dict[int, Record] = {}
    for image, dialogue in dialogues(rng, scale):
        if image not in records:
            resolution = 0.5 if image % 2 else None
            # Boxes for the facts of captions, which the release itself has not: its caption images have none.
            boxes = [Box(str(rng.choice(CLASSES)), [0.0, 0.0, 9.0, 9.0]) for _ in range(5)]
            records[image] = Record(
                [f"{image:07d}.png"], 512, 512, "SARDet-100K", "test", resolution_m=resolution, boxes=boxes
            )
        records[image].dialogues.append(dialogue)
    write_data_folder(folder / "data", to_table(records.values()), [], folder, {})
    with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
        for record in records.values():
            for one in record.dialogues:
                turn = one.turns[0]
                line = {"id": f"{one.id}#0", "image": record.images[0], "subset": one.subset, "task": one.task,
                        "question": turn.question, "label": turn.answer,
                        "predict": answer(rng, one.task, turn, one.style), "logprob": -0.5}  # fmt: skip
                file.write(json.dumps(line) + "\n")


def score(scale: float, folder: Path, names: list[str]) -> dict[str, object]:
    """The programs on a split of this scale."""
    write_inputs(folder, scale)
    words = ["--predictions", folder / "predictions.jsonl", "--data", folder / "data", "--out", folder / "scores.json"]
    found = {}
    for name in names:
        before = os.times()
        found[name] = measure(str(EVAL / PROGRAMS[name][0]), [*PROGRAMS[name][1:], *words])
        after = os.times()
        found[name]["cpu_seconds"] = sum(after[2:4]) - sum(before[2:4])  # which others on the machine hardly change
    counts = {kind: round(count * scale) for kind, count in TEXTS.items()}
    return {"scale": scale, "answers": counts["vqa"], "captions": counts["concise"] + counts["complex"], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.1, 1.0], help="parts of the full size")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="what to time")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    runs = []
    for scale in options.scales:
        with tempfile.TemporaryDirectory() as scratch:
            runs.append(score(scale, Path(scratch), options.programs))
    for run in runs:
        texts = f"{run['answers']:>8,} answers, {run['captions']:>7,} captions"
        for name in options.programs:
            took = f"{run[name]['seconds']:6.1f} s, {run[name]['cpu_seconds']:6.1f} s of CPU"
            print(f"{texts}: {name:20} {took} {run[name]['peak_bytes'] / 1e9:6.2f} GB")
    setting.write_result(
        options.out,
        {"hardware": setting.hardware().removesuffix(", float32"), "versions": setting.versions(), "runs": runs},
    )


if __name__ == "__main__":
    main()
