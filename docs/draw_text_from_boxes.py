"""Draw docs/images/text_from_boxes.png: dialogues built from the boxes of simulated scenes, drawn over them.

    python docs/draw_text_from_boxes.py

The boxes are those of the simulator; everything that is said of a scene comes from build_from_boxes.py's library.
"""

import re
import textwrap
from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from sarlang_sft.annotations.model import LabelledImage
from sarlang_sft.language.building import TextArguments, build_texts
from sarlang_sft.language.wording import read_wording
from sarlang_sft.records import Record, to_records
from sarlang_sft.scenes import CLASSES, Scene, make_scene, render_sar

OUT = Path(__file__).parent / "images" / "text_from_boxes.png"
SCENES, SHOWN = 200, (2, 3)  # scenes built, so that yes and no are balanced; rows and columns of the picture
WIDTH = 62  # characters of a line
COLOURS = dict(zip(CLASSES, plt.colormaps["Set2"].colors, strict=False))
PROMPT = re.compile(r"^Question: (.*)\. Answer the question concisely\.$")
# How many dialogues of each task are shown of a scene.
TASKS = {
    "identification": 2, "counting": 1, "positioning": 1, "referring": 2, "classification": 1, "grounding": 2,
    "cross_identification": 1, "description": 5,
}  # fmt: skip


def build() -> list[tuple[Scene, np.ndarray, Record]]:
    """Scenes with their pictures and records."""
    scenes, pictures, images = [], [], []
    for number in range(SCENES):
        rng = np.random.default_rng([7, number])
        scene = make_scene(rng)
        scenes.append(scene)
        pictures.append(render_sar(scene, rng))
        name = f"{number:04d}.png"
        images.append(LabelledImage(name, scene.size, scene.size, "train", scene.boxes, frozenset(), None))
    table = build_texts(images, CLASSES, "simulator", read_wording(), TextArguments(), workers=1).records
    return list(zip(scenes, pictures, to_records(table), strict=True))


def lines_of(record: Record) -> list[str]:
    """What is said of a scene, a line each, captions last."""
    lines = []
    order = {task: number for number, task in enumerate(TASKS)}
    for task, dialogues in groupby(sorted(record.dialogues, key=lambda one: order[one.task]), lambda one: one.task):
        lines.append(task.replace("_", " ").upper())
        for dialogue in list(dialogues)[: TASKS[task]]:
            for turn in dialogue.turns:
                question = PROMPT.sub(r"\1", turn.question)
                text = f"{dialogue.style}: {turn.answer}" if dialogue.style else f"{question}  >  {turn.answer}"
                lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
    return lines


def draw(picture: np.ndarray, record: Record, left: Axes, right: Axes) -> None:
    """The scene with its numbered boxes, and what is said of it beside it."""
    left.imshow(picture, cmap="gray", interpolation="nearest")
    left.set_axis_off()
    left.set_anchor("N")
    for number, box in enumerate(record.boxes):
        x, y, width, height = box.points
        colour = COLOURS[box.label]
        left.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.5))
        left.text(x, y - 1.5, f"{number} {box.label}", color=colour, fontsize=7, weight="bold")
    right.set_axis_off()
    right.text(0, 1, "\n".join(lines_of(record)), va="top", family="monospace", fontsize=6, transform=right.transAxes)


def main() -> None:
    scenes = [one for one in build() if len({box.label for box in one[2].boxes}) > 1 and len(one[2].boxes) < 7]
    rows, columns = SHOWN
    ratios = {"width_ratios": [1, 1.25] * columns}
    figure, axes = plt.subplots(rows, 2 * columns, figsize=(17, 7.4), gridspec_kw=ratios, layout="constrained")
    for (_, picture, record), (left, right) in zip(scenes, axes.reshape(-1, 2), strict=False):
        draw(picture, record, left, right)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110)
    print(f"Picture: {OUT}")


if __name__ == "__main__":
    main()
