"""The report: runs side by side as one web page that needs no other file, and as a Markdown table."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sarlang_sft.html_pages import render, visible
from sarlang_sft.reporting.captions import NAMES, Part, caption_parts
from sarlang_sft.reporting.charts import Chart, ticks
from sarlang_sft.reporting.curves import History, learning_curves
from sarlang_sft.reporting.figures import Table, caption_tables, near_misses
from sarlang_sft.reporting.gallery import Gallery
from sarlang_sft.reporting.given import Run
from sarlang_sft.reporting.measures import (
    Calibration,
    Confusion,
    Lengths,
    calibrate,
    calibration_chart,
    confusions,
    length_chart,
    measure_lengths,
)
from sarlang_sft.reporting.model_figures import ModelFigures, figure_matrices, figure_tables
from sarlang_sft.reporting.scores import (
    Comparison,
    Line,
    compare_runs,
    is_sarlang,
    missing_baselines,
    read_published,
    score_lines,
    styles_of,
)
from sarlang_sft.scoring.predictions import count_problems
from sarlang_sft.whole_output import whole_file

HERE = Path(__file__).parent
COLOURS = 6  # of lines; further runs take them again, told apart by their names
BREAKDOWNS = {
    "by_task": "application",
    "by_type": "type of question",
    "by_subset": "subset",
    "by_source": "source",
    "by_resolution": "metres per pixel",
}


@dataclass(frozen=True)
class Report:
    """Everything on the page; parts without any data are empty."""

    data: str
    split: str
    runs: Sequence[Run]
    lines: Sequence[Line]
    missing: dict[str, str]
    published: dict[str, Any]
    same_data: bool
    curves: Sequence[Chart]
    confusions: Sequence[Confusion]
    lengths: Sequence[tuple[Chart, Sequence[Lengths]]]
    calibrations: Sequence[tuple[Chart, Calibration]]
    scores: dict[str, dict[str, Any]]
    captions: dict[str, dict[str, Any]]
    gallery: Gallery
    comparisons: Sequence[Comparison]
    near_misses: Table | None
    caption_tables: Sequence[Table]
    figures: Sequence[ModelFigures]

    @property
    def problems(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Of the predictions files that have any: run -> reason -> count and examples."""
        return {run.name: count_problems(run.problems) for run in self.runs if run.problems}

    @property
    def caption_parts(self) -> list[Part]:
        """The rows of the captions' table."""
        return caption_parts(self.captions)

    @property
    def caption_metrics(self) -> dict[str, str]:
        """What the captions' table has columns for, by the metrics' names in the files."""
        names = dict.fromkeys(metric for part in self.caption_parts for metric in part.metrics)
        return {name: NAMES.get(name, name) for name in sorted(names, key=lambda name: [*NAMES, name].index(name))}

    @property
    def settings(self) -> dict[str, list[str]]:
        """What the runs were made with: option -> its value for every run."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings or {})
        return {
            name: ["" if run.settings is None else say(run.settings.get(name, "")) for run in self.runs]
            for name in names
        }


def make_report(
    data: Path,
    split: str,
    runs: Sequence[Run],
    histories: Sequence[History],
    scores: dict[str, dict[str, Any]],
    captions: dict[str, dict[str, Any]],
    gallery: Gallery,
    figures: Sequence[ModelFigures] = (),
) -> Report:
    """Measure everything that the page shows.

    Args:
        runs: At least one; all of this split.
        scores, captions: Files of eval/score_vqa.py and eval/score_caption.py, by their names.
        figures: Of contrastive models.
    """
    asked = [run for run in runs if run.answered]
    lines = score_lines(runs, data)
    styles = {name: style for name, style in styles_of(runs).items() if style is not None}
    rows = [*runs[0].questions, *runs[0].captions]
    return Report(
        data=str(data),
        split=split,
        runs=runs,
        lines=lines,
        missing=missing_baselines(runs, lines),
        published=read_published(),
        same_data=is_sarlang(rows),
        curves=learning_curves(histories, styles),
        confusions=confusions(asked) if asked else [],
        lengths=_lengths(runs),
        calibrations=_calibrations(runs),
        scores=scores,
        captions=captions,
        gallery=gallery,
        comparisons=compare_runs(runs),
        near_misses=near_misses(asked) if asked else None,
        caption_tables=caption_tables(captions),
        figures=figures,
    )


def _lengths(runs: Sequence[Run]) -> list[tuple[Chart, list[Lengths]]]:
    styles = styles_of(runs)
    parts = []
    for title, rows_of in (("Answers", lambda run: run.questions), ("Captions", lambda run: run.captions)):
        truths = [row.label for row in rows_of(runs[0])]
        given = {run.name: [row.predict for row in rows_of(run) if row.predict is not None] for run in runs}
        given = {name: texts for name, texts in given.items() if texts}
        if truths and given:
            drawn = {name: (styles[name], texts) for name, texts in given.items() if styles[name] is not None}
            measured = [measure_lengths(name, texts) for name, texts in {"truth": truths, **given}.items()]
            parts.append((length_chart(title, truths, drawn), measured))
    return parts


def _calibrations(runs: Sequence[Run]) -> list[tuple[Chart, Calibration]]:
    styles = styles_of(runs)
    found = [(run, calibrate(run)) for run in runs if styles[run.name] is not None]
    return [
        (calibration_chart(run.name, styles[run.name] or 0, calibration), calibration)
        for run, calibration in found
        if calibration is not None
    ]


def write_page(report: Report, path: Path) -> None:
    """Write the page; it appears complete or not at all.

    Raises:
        InputError: There is a folder of this name, or the file cannot be written.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {
        "report": report,
        "breakdowns": BREAKDOWNS,
        "colours": COLOURS,
        "script": Markup(script),
        "script_hash": digest,
        "content": Markup(embedded(report.gallery.content)),
    }
    page = _render_page("page.html.j2", values)
    with whole_file(path) as file:
        file.write(page.encode())


def _render_page(template: str, values: dict[str, Any]) -> str:
    filters = (visible, ticks, grouped, percent, points, chance, span, say, figure_tables, figure_matrices)
    return render(HERE / template, filters, values)


def embedded(content: dict[str, Any]) -> str:
    """JSON that can stand inside a `<script>`: no text can end it or begin a comment."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def write_markdown(report: Report, path: Path) -> None:
    """Write the scores as Markdown tables; the file appears complete or not at all."""
    filters = (cell, chance, grouped, percent, points, span, figure_tables)
    page = render(HERE / "report.md.j2", filters, {"report": report})
    with whole_file(path) as file:
        file.write(page.encode())


def write_figures_alone(files: Sequence[ModelFigures], out: Path) -> None:
    """Write report.html and report.md of contrastive models' figures, where there are no runs to show beside them."""
    page = _render_page("model_figures_page.html.j2", {"files": files, "colours": COLOURS})
    table = render(HERE / "model_figures_page.md.j2", (cell, figure_tables), {"files": files})
    for name, text in (("report.html", page), ("report.md", table)):
        with whole_file(out / name) as file:
            file.write(text.encode())


def cell(text: str) -> Markup:
    """A text in a Markdown table: on one line, without signs that Markdown or HTML obeys."""
    one_line = " ".join(visible(text).replace("↵", " ").split())
    for sign in "\\|`*_[]":
        one_line = one_line.replace(sign, "\\" + sign)
    return Markup(one_line.replace("&", "&amp;").replace("<", "&lt;"))


def grouped(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}"


def percent(share: float) -> str:
    """A share of 0..1 in percent."""
    return f"{100 * share:.1f} %"


def chance(p: float) -> str:
    """A probability as people read it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def span(score: dict[str, Any], factor: float = 100.0) -> str:
    """The interval of a score as text; empty where it has none."""
    return "" if score["low"] is None else f"{factor * score['low']:.1f} to {factor * score['high']:.1f}"


def say(value: Any) -> str:
    """A value of a settings file as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
