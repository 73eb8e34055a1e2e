r"""Average contrastive models into one that keeps what it knew: the frontier of target and out-of-domain figures.

Between the model before and the one after fine-tuning (WiSE-FT, arXiv 2109.01903):

    python recipes/ensemble.py --between runs/sarclip runs/sarclip_mstar --target mstar=zero_shot:MSTAR/val \
        --out_of_domain sarlang=retrieval:data/sarlang@val --out runs/sarclip_ensemble

All of it from a file: --config recipes/configs/sarclip_ensemble.yaml

Soups of several fine-tuned models (arXiv 2203.05482), and the mean of their predictions beside them:

    python recipes/ensemble.py --soup_of runs/a runs/b runs/c --average_predictions_of runs/a runs/b runs/c \
        --target mstar=zero_shot:MSTAR/val --out_of_domain sarlang=retrieval:data/sarlang@val --out runs/soup

Models are averaged in weights if they are of one architecture and see their images in one way. Their weights are held
in memory all at once, in float32. `ensembles.average` says what becomes of BatchNorm, counters and temperature.

A set is NAME=KIND:PATH. zero_shot: one folder of images per class, top-1. retrieval: a split of a data folder,
PATH@SPLIT (val without it), the mean of recall at 1, 5 and 10 in both directions.

Choose on validation splits: a point that was chosen on test data is too good there. Test sets belong in --test; the
ends and the chosen point alone are measured on them, after the choice.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.ensemble_points import (
    RULES,
    SOUPS,
    Bench,
    choose_point,
    measure_points,
    measure_test,
    plan_points,
    read_roles,
)
from sarlang_sft.contrastive.ensemble_report import CHOSEN, FRONTIER, write_ensemble
from sarlang_sft.contrastive.ensembles import load_ingredients
from sarlang_sft.contrastive.model_choice import check_device
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.whole_output import check_replaceable

SET = "NAME=KIND:PATH, KIND zero_shot or retrieval"
ALPHAS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@dataclass
class EnsembleArguments:
    target: str = field(metadata={"help": f"The set of the domain fine-tuned for, a validation split: {SET}."})
    out_of_domain: list[str] = field(metadata={"help": f"Sets of other domains, validation splits: {SET}."})
    out: str = field(metadata={"help": "Folder to write: frontier.json, .md, .png, and the model in chosen/."})
    between: list[str] = field(
        default_factory=list, metadata={"help": "Two models: before fine-tuning (alpha 0) and after (alpha 1)."}
    )
    alphas: list[float] = field(
        default_factory=lambda: list(ALPHAS), metadata={"help": "How much of the second model, each between 0 and 1."}
    )
    soup_of: list[str] = field(default_factory=list, metadata={"help": "Two or more models to average in soups."})
    soups: list[str] = field(
        default_factory=lambda: list(SOUPS),
        metadata={"help": "uniform: equal parts; greedy: adds a model only if the target figure does not fall."},
    )
    soup_weights: list[float] = field(
        default_factory=list, metadata={"help": "Also a soup in this ratio, a number for each model of soup_of."}
    )
    average_predictions_of: list[str] = field(
        default_factory=list,
        metadata={"help": "Also average the predictions of these models, of any architecture: as costly as all."},
    )
    choose: str = field(
        default="mean",
        metadata={
            "help": f"What is saved: the best by {', '.join(RULES)} (mean: of target and out-of-domain mean), an "
            "alpha, or the name of a soup. Decided on the sets above, so give validation splits."
        },
    )
    test: list[str] = field(
        default_factory=list, metadata={"help": "Sets for the ends and the chosen point alone, after the choice."}
    )
    resize_mode: str | None = field(
        default=None,
        metadata={"help": "longest, shortest or squash for all models that are averaged; default: their own."},
    )
    image_ops: list[str] | None = field(
        default=None, metadata={"help": "Image operations for all models that are averaged; default: their own."}
    )
    device: str = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cpu or cuda."}
    )


def main() -> None:
    (args,) = parse_arguments([EnsembleArguments], __doc__)
    out = Path(args.out)
    check_replaceable(out, FRONTIER)
    plan = plan_points(
        args.between,
        args.alphas,
        args.soup_of,
        args.soups,
        args.soup_weights,
        args.average_predictions_of,
        args.choose,
    )
    check_device(args.device)
    sets = read_roles(args.target, args.out_of_domain, args.test)
    bench = Bench(load_ingredients(plan.models, args.device, args.resize_mode, args.image_ops), sets)
    points = measure_points(bench, plan)
    chosen = choose_point(points, plan.choose)
    tested = measure_test(bench, points, chosen)
    print(write_ensemble(out, bench, plan, points, chosen, tested))
    print(f"Frontier: {out / 'frontier.png'}\nModel ({chosen.name}): {out / CHOSEN}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
