"""The points of an ensemble's frontier: what is measured, on which sets, and which point is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot
from pathlib import Path

from sarlang_sft.contrastive.ensemble_sets import (
    MeasuredSet,
    Scores,
    figure_of,
    mean_of_scores,
    read_sets,
    score_sets,
)
from sarlang_sft.contrastive.ensembles import (
    GREEDY,
    UNIFORM,
    WEIGHTED,
    Ingredients,
    Parts,
    fill,
    greedy,
    interpolations,
    mix,
    state_hash,
    uniform,
    weighted,
)
from sarlang_sft.contrastive.models import HUB, load_model
from sarlang_sft.contrastive.results import Figure
from sarlang_sft.errors import InputError

ALPHA, SOUP, PREDICTIONS = "alpha", "soup", "predictions"
SOUPS = (UNIFORM, GREEDY)
TITLES = {ALPHA: "alpha {}", SOUP: "{} soup", PREDICTIONS: "mean of predictions"}
RULES = ("mean", "target", "out_of_domain")


@dataclass(frozen=True)
class Plan:
    """What shall be measured.

    Attributes:
        fixed: Parts of the models by point, for those known beforehand.
        kinds: `ALPHA` or `SOUP` of every point that has weights.
        greedy_of: The models of a greedy soup; none if there shall be none.
        predictions_of: The models whose predictions are averaged; they may be of different architectures.
        choose: One of `RULES`, or the name of a point.
    """

    fixed: dict[str, Parts]
    kinds: dict[str, str]
    greedy_of: list[str]
    predictions_of: list[str]
    choose: str

    @property
    def models(self) -> list[str]:
        """All whose weights are averaged."""
        return list(dict.fromkeys([*(name for parts in self.fixed.values() for name in parts), *self.greedy_of]))


@dataclass(frozen=True)
class Sets:
    """What an ensemble is measured on; names are unique over all of them.

    Attributes:
        target: The domain fine-tuned for.
        out_of_domain: Others, which shall not be lost.
        test: For the ends and the chosen point alone, after it is chosen.
    """

    target: MeasuredSet
    out_of_domain: list[MeasuredSet]
    test: list[MeasuredSet]

    @property
    def choosing(self) -> list[MeasuredSet]:
        """Those that the choice looks at."""
        return [self.target, *self.out_of_domain]

    @property
    def peeked(self) -> list[str]:
        """Names of test splits that the choice looks at; figures of the chosen point on them flatter it."""
        return [one.name for one in self.choosing if one.split == "test"]


@dataclass(frozen=True)
class Point:
    """One ensemble, measured.

    Attributes:
        name: The alpha, or the kind of soup.
        kind: `ALPHA`, `SOUP` or `PREDICTIONS`.
        parts: How much of each model.
        sha256: Of the averaged weights, see `ensembles.state_hash`; None where there are only averaged predictions.
        figures: By set.
        target: That of the target set.
        out_of_domain: The mean of the others.
    """

    name: str
    kind: str
    parts: Parts
    sha256: str | None
    figures: dict[str, Figure]
    target: Figure
    out_of_domain: Figure

    @property
    def title(self) -> str:
        """What it is called in table and picture."""
        return TITLES[self.kind].format(self.name)


@dataclass
class Bench:
    """Models and sets, and what is measured already: equal weights are evaluated once.

    Attributes:
        figures: By SHA-256 of the weights, then by set.
        unreadable: By set, the reason by image.
        counted: Images by set, without the unreadable ones.
    """

    ingredients: Ingredients
    sets: Sets
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    unreadable: dict[str, dict[Path, str]] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)


def plan_points(
    between: Sequence[str],
    alphas: Sequence[float],
    soup_of: Sequence[str],
    soups: Sequence[str],
    soup_weights: Sequence[float],
    predictions_of: Sequence[str],
    choose: str,
) -> Plan:
    """Everything that can be refused before a model is loaded.

    Args:
        between: The model before and the one after fine-tuning, or none.
        alphas: How much of the second.
        soup_of: Models of the soups, or none.
        soups: Of `SOUPS`; one with `soup_weights` is made beside them.
        choose: One of `RULES`, an alpha, or the name of a soup.

    Raises:
        InputError: The options do not fit together.
    """
    if len(between) not in (0, 2):
        raise InputError(f"between: needs two models, the one before and the one after; {len(between)} are given")
    for option, names in (("soup_of", soup_of), ("average_predictions_of", predictions_of)):
        if len(names) == 1 or len({*names}) < len(names):
            raise InputError(f"{option} {names[0]}: needs two or more different models")
    for name in (*between, *soup_of, *predictions_of):
        if not Path(name).is_dir() and not name.startswith(HUB):
            raise InputError(
                f"model {name}: no such folder; give one that recipes/sarclip.py has written, or hf-hub:OWNER/NAME"
            )
    if wrong := [soup for soup in soups if soup not in SOUPS]:
        raise InputError(f"soups {wrong[0]}: must be of {', '.join(SOUPS)}; a weighted one needs only soup_weights")
    if soup_weights and not soup_of:
        raise InputError("soup_weights: need the models in soup_of")
    points = interpolations(*between, alphas) if between else {}
    fixed: dict[str, Parts] = {f"{alpha:g}": parts for alpha, parts in points.items()}
    kinds = dict.fromkeys(fixed, ALPHA)
    if soup_of and UNIFORM in soups:
        fixed[UNIFORM] = uniform(soup_of)
    if soup_weights:
        fixed[WEIGHTED] = weighted(soup_of, soup_weights)
    greedy_of = list(soup_of) if GREEDY in soups else []
    kinds |= {name: SOUP for name in [*fixed, *([GREEDY] if greedy_of else [])] if name not in kinds}
    if not kinds:
        raise InputError("between or soup_of: name the models to average")
    return Plan(fixed, kinds, greedy_of, list(predictions_of), check_choice(choose, list(kinds)))


def check_choice(choose: str, names: Sequence[str]) -> str:
    """The rule, or the name of the point that is meant; raises [`InputError`] if there is no such point."""
    try:
        name = f"{float(choose):g}"
    except ValueError:
        name = choose
    if name not in (*RULES, *names):
        raise InputError(f"choose {choose}: must be one of {', '.join((*RULES, *names))}")
    return name


def read_roles(target: str, out_of_domain: Sequence[str], test: Sequence[str]) -> Sets:
    """The sets in their roles, each as `ensemble_sets.read_set` takes it.

    Raises:
        InputError: There is none out of domain, two share a name, or one cannot be read.
    """
    if not out_of_domain:
        raise InputError("out_of_domain: needs at least one set, or there is no frontier")
    first, *others = read_sets([target, *out_of_domain, *test])
    return Sets(first, others[: len(out_of_domain)], others[len(out_of_domain) :])


def measure_points(bench: Bench, plan: Plan) -> list[Point]:
    """All points of a plan, in the order alphas, soups, predictions."""
    predictions = [measure_predictions(bench, plan.predictions_of)] if plan.predictions_of else []
    points = [measure(bench, name, plan.kinds[name], parts) for name, parts in plan.fixed.items()]
    if plan.greedy_of:
        target = bench.sets.target.name
        parts = greedy(plan.greedy_of, lambda parts: measure(bench, GREEDY, SOUP, parts).figures[target]["value"])
        points.append(measure(bench, GREEDY, SOUP, parts))
    return points + predictions


def measure(bench: Bench, name: str, kind: str, parts: Parts) -> Point:
    """One average of weights on the sets that the choice looks at."""
    state = mix(bench.ingredients.states, parts)
    digest = state_hash(state)
    if digest not in bench.figures:
        fill(bench.ingredients.model, state)
        scored = score_sets(bench.ingredients.model, bench.sets.choosing)
        bench.figures[digest] = _figures(bench, bench.sets.choosing, scored)
    return _point(bench, name, kind, parts, digest, bench.figures[digest])


def measure_predictions(bench: Bench, names: Sequence[str]) -> Point:
    """The mean of what models predict, class probabilities or similarities; costs as much as all of them."""
    device = str(bench.ingredients.model.device)
    gathered: dict[str, list[Scores]] = {one.name: [] for one in bench.sets.choosing}
    for name in names:
        state = bench.ingredients.states.get(name)
        model = fill(bench.ingredients.model, state) if state else load_model(name, device=device)
        scored = score_sets(model, bench.sets.choosing)
        for one, scores in scored.items():
            gathered[one].append(scores)
        if state:
            bench.figures[state_hash(state)] = _figures(bench, bench.sets.choosing, scored)
    means = {one: mean_of_scores(several) for one, several in gathered.items()}
    figures = _figures(bench, bench.sets.choosing, means)
    return _point(bench, PREDICTIONS, PREDICTIONS, uniform(names), None, figures)


def measure_test(bench: Bench, points: Sequence[Point], chosen: Point) -> dict[str, dict[str, Figure]]:
    """Figures on the test sets by point, then by set: of the first and last alpha, and of the chosen point."""
    alphas = [point for point in points if point.kind == ALPHA]
    tested = {}
    for point in [*alphas[:1], *alphas[-1:], chosen] if bench.sets.test else []:
        if point.name not in tested:
            fill(bench.ingredients.model, mix(bench.ingredients.states, point.parts))
            scored = score_sets(bench.ingredients.model, bench.sets.test)
            tested[point.name] = _figures(bench, bench.sets.test, scored)
    return tested


def choose_point(points: Sequence[Point], rule: str) -> Point:
    """The point with weights that the rule likes best, the first of equals; or the one of that name."""
    scores = {
        "mean": lambda point: point.target["value"] + point.out_of_domain["value"],
        "target": lambda point: point.target["value"],
        "out_of_domain": lambda point: point.out_of_domain["value"],
    }
    score = scores.get(rule, lambda point: point.name == rule)
    return max((point for point in points if point.sha256), key=score)


def mean_figure(figures: Sequence[Figure]) -> Figure:
    """The mean over sets; they count as independent, so the distances to the bounds are added as squares."""
    n = len(figures)
    value = sum(one["value"] for one in figures) / n
    below = hypot(*(one["value"] - one["low"] for one in figures)) / n
    above = hypot(*(one["high"] - one["value"] for one in figures)) / n
    return {"value": value, "low": value - below, "high": value + above}


def _figures(bench: Bench, sets: Sequence[MeasuredSet], scored: dict[str, Scores]) -> dict[str, Figure]:
    for one in sets:
        bench.unreadable.setdefault(one.name, {}).update(one.left_out | scored[one.name].unreadable)
        bench.counted[one.name] = len(scored[one.name].rows)
    return {one.name: figure_of(one, scored[one.name]) for one in sets}


def _point(bench: Bench, name: str, kind: str, parts: Parts, digest: str | None, figures: dict[str, Figure]) -> Point:
    mean = mean_figure([figures[one.name] for one in bench.sets.out_of_domain])
    return Point(name, kind, parts, digest, figures, figures[bench.sets.target.name], mean)
