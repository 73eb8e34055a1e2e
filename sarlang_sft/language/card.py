"""A card of what was built from boxes: counts beside SARLANG-1M's, answers, balance, and what was left out."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sarlang_sft.language.dialogues import VQA
from sarlang_sft.records import flatten_dialogues
from sarlang_sft.sarlang_counts import PUBLISHED

ANSWERS_SHOWN = 6
PUBLISHED_TASKS = {
    published.where["task"]: published.number
    for published in PUBLISHED
    if {*published.where} == {"task"} and published.of == "dialogues"
}
PUBLISHED_CAPTIONS = sum(published.number for published in PUBLISHED if published.name.startswith("captions, "))


def write_card(records: pa.Table, facts: Mapping[str, Any], source: str) -> str:
    """The card as Markdown.

    Args:
        records: Of `records.SCHEMA`.
        facts: What the manifest says beside its counts: `wording`, `classes`, `text_arguments`, `annotations`.
    """
    flat = flatten_dialogues(records, ["split"])
    first = pc.list_element(flat["turns"], 0)
    flat = flat.append_column("answer", pc.struct_field(first, "answer"))
    flat = flat.append_column("question", pc.struct_field(first, "question"))
    parts = [
        f"# {source}: texts from boxes",
        "",
        f"{len(records):,} images, {len(flat):,} dialogues, built from boxes by templates; no model wrote them.",
        f"Wording `{facts['wording']['name']}` ({facts['wording']['hash']}), "
        + ", ".join(f"{name} {value}" for name, value in facts["text_arguments"].items())
        + ".",
        f"Classes: {', '.join(facts['classes'])}.",
        "Every answer was derived from the boxes a second time, by a checker of its own.",
        "",
        "## Counts",
        "",
        *_count_table(flat),
        "",
        "## Answers",
        "",
        "The most frequent answers of each task; the first is what a model gets right that always says it.",
        "",
        *_answer_table(flat),
        "",
        "## Annotations",
        "",
        *_annotation_table(facts["annotations"]),
    ]
    return "\n".join(parts) + "\n"


def _row(*cells: object) -> str:
    return (
        "| "
        + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in cells)
        + " |"
    )


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*("---" for _ in cells))]


def _count_table(flat: pa.Table) -> list[str]:
    """By subset and task, and SARLANG-1M's number where it has such questions."""
    counts = Counter(zip(flat["subset"].to_pylist(), flat["task"].to_pylist(), flat["style"].to_pylist(), strict=True))
    lines = _head("subset", "task", "here", "SARLANG-1M, published")
    for (subset, task, style), count in sorted(counts.items(), key=lambda item: (item[0][:2], item[0][2] or "")):
        published = PUBLISHED_TASKS[task] if subset == VQA else ""
        lines.append(_row(subset, f"{task}, {style}" if style else task, count, published))
    captions = sum(count for (_, task, _), count in counts.items() if task == "description")
    lines.append(_row("", "all captions", captions, PUBLISHED_CAPTIONS))
    return lines


def _answer_table(flat: pa.Table) -> list[str]:
    lines = _head("subset", "task", "different", "most frequent")
    answered = flat.filter(pc.and_(pc.not_equal(flat["task"], "description"), pc.not_equal(flat["task"], "grounding")))
    grouped = answered.group_by(["subset", "task", "answer"]).aggregate([([], "count_all")]).to_pylist()
    by_task: dict[tuple[str, str], Counter[str]] = {}
    for row in grouped:
        by_task.setdefault((row["subset"], row["task"]), Counter())[row["answer"]] = row["count_all"]
    for (subset, task), answers in sorted(by_task.items()):
        total = sum(answers.values())
        ranked = sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:ANSWERS_SHOWN]
        shown = ", ".join(f"{answer} {count / total:.1%}" for answer, count in ranked)
        lines.append(_row(subset, task, len(answers), shown))
    return lines


def _annotation_table(annotations: Mapping[str, Any]) -> list[str]:
    """Images and boxes that were read, used, mended and left out, with the reasons."""
    lines = _head("", "read", "used", "left out", "mended, merged or noted")
    for what in ("images", "boxes"):
        of = annotations[what]
        lines.append(_row(what, of["read"], of["used"], _listed(of["left_out"]), _listed(of["changed"])))
    notes: list[str] = [
        *annotations["notes"],
        f"images without boxes: {annotations['without_boxes']:,}",
        f"images with a class that is not known in full: {annotations['unsure']:,}",
        f"images of which nothing is said, and which are no records: {annotations['without_texts']:,}",
    ]
    return [*lines, "", *(f"- {note}" for note in notes)]


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none"
