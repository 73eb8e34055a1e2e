"""What an ensemble leaves: its frontier as table and JSON, and the chosen weights as a model folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sarlang_sft.contrastive.ensemble_picture import draw_frontier
from sarlang_sft.contrastive.ensemble_points import Bench, Plan, Point
from sarlang_sft.contrastive.ensemble_sets import KINDS, TEMPLATES, MeasuredSet
from sarlang_sft.contrastive.ensembles import fill, mix, state_hash
from sarlang_sft.contrastive.models import save_model
from sarlang_sft.contrastive.results import Figure, write_figures
from sarlang_sft.whole_output import Own, whole_folder

CHOSEN = "chosen"
FRONTIER = Own("frontier.json", r"frontier\.(json|md|png)|" + CHOSEN)


def write_ensemble(
    out: Path, bench: Bench, plan: Plan, points: Sequence[Point], chosen: Point, tested: dict[str, dict[str, Figure]]
) -> str:
    """Write the folder `out`, and return the table.

    It holds `frontier.json`, `frontier.md`, `frontier.png` and `chosen/`, which `load_model` reads and in which
    `ensemble.json` says what it was made from.
    """
    hashes = {name: state_hash(state) for name, state in bench.ingredients.states.items()}
    sets = bench.sets
    more = {
        "rule": plan.choose,
        "chosen": chosen.name,
        "chosen_on_test": sets.peeked,
        "models": hashes,
        "templates": TEMPLATES,
        "sets": [
            _describe(bench, one, role)
            for role, members in (
                ("target", [sets.target]),
                ("out_of_domain", sets.out_of_domain),
                ("test", sets.test),
            )
            for one in members
        ],
        "points": [asdict(point) for point in points],
        "test": tested,
    }
    made_from = {"parts": chosen.parts, "models": hashes, "sha256": chosen.sha256, "rule": plan.choose}
    table = frontier_table(bench, plan, points, chosen, tested)
    with whole_folder(out, FRONTIER) as folder:
        write_figures(
            folder / "frontier.json",
            "ensemble",
            f"chosen by {plan.choose}",
            str(out / CHOSEN),
            bench.counted[sets.target.name],
            {path: reason for by_path in bench.unreadable.values() for path, reason in by_path.items()},
            {**chosen.figures, **tested.get(chosen.name, {})},
            more,
        )
        (folder / "frontier.md").write_text(table, encoding="utf-8")
        draw_frontier(sets, points, chosen, folder / "frontier.png")
        save_model(fill(bench.ingredients.model, mix(bench.ingredients.states, chosen.parts)), folder / CHOSEN)
        (folder / CHOSEN / "ensemble.json").write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    return table


def _describe(bench: Bench, one: MeasuredSet, role: str) -> dict[str, Any]:
    return {
        "name": one.name,
        "role": role,
        "kind": one.kind,
        "figure": KINDS[one.kind].says,
        "path": str(one.path),
        "split": one.split,
        "n": bench.counted[one.name],
        "candidates": len(one.candidates),
        "excluded": len(bench.unreadable[one.name]),
    }


def frontier_table(
    bench: Bench, plan: Plan, points: Sequence[Point], chosen: Point, tested: Mapping[str, Mapping[str, Figure]]
) -> str:
    """The frontier in Markdown: per cent with 95 % intervals, the chosen point in bold."""
    sets = bench.sets
    models = dict.fromkeys([*bench.ingredients.states, *plan.predictions_of])
    short = {name: f"M{number}" for number, name in enumerate(models, 1)}
    several = len(sets.out_of_domain) > 1
    head = ["point", "made of", f"target: {sets.target.name}"]
    head += ["out of domain: mean"] if several else []
    head += [one.name if several else f"out of domain: {one.name}" for one in sets.out_of_domain]
    lines = [_row(head), _row(["---"] * len(head))]
    for point in points:
        cells = [percent(point.target)] + ([percent(point.out_of_domain)] if several else [])
        cells += [percent(point.figures[one.name]) for one in sets.out_of_domain]
        parts = " + ".join(f"{part:.3g} {short[model]}" for model, part in point.parts.items() if part)
        cells = [point.title, parts, *cells]
        lines.append(_row([f"**{cell}**" for cell in cells] if point is chosen else cells))
    lines += ["", f"Bold: chosen by `{plan.choose}`, its weights are in `{CHOSEN}/`. Per cent with 95 % intervals."]
    if any(key.endswith("running_mean") for key in next(iter(bench.ingredients.states.values()))):
        lines.append("BatchNorm's running statistics are averages of those of the models; none were estimated anew.")
    if sets.peeked:
        lines.append(
            f"**Chosen on test data ({', '.join(sets.peeked)}): the chosen point's figures there are too good. Choose "
            "on validation splits, and give the test sets as `test`.**"
        )
    if tested:
        names = [one.name for one in sets.test]
        lines += ["", _row(["on test sets, after the choice", *names]), _row(["---"] * (len(names) + 1))]
        for point in points:
            if point.name in tested:
                cells = [point.title, *(percent(tested[point.name][one]) for one in names)]
                lines.append(_row([f"**{cell}**" for cell in cells] if point is chosen else cells))
    lines += ["", *(f"- {number}: `{name}`" for name, number in short.items())]
    for one in (*sets.choosing, *sets.test):
        excluded = f", {left} files excluded" if (left := len(bench.unreadable[one.name])) else ""
        lines.append(
            f"- {one.name}: {KINDS[one.kind].says} on `{one.path}`, {bench.counted[one.name]:,} images{excluded}"
        )
    return "\n".join(lines) + "\n"


def percent(figure: Figure) -> str:
    """A figure with its interval, in per cent."""
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
