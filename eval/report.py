r"""Runs side by side: one web page that opens from disk without a network, the same as Markdown, and a summary.

    python eval/report.py --data outputs/demo/data --out outputs/demo \
        --runs before=outputs/demo/predictions_before.jsonl after=outputs/demo/predictions_after.jsonl \
            blind=outputs/demo/predictions_blind.jsonl text_only=outputs/demo/predictions_text.jsonl \
        --histories lora=outputs/demo/lora --scores after=outputs/demo/scores_vqa.json \
        --captions after=outputs/demo/scores_caption.json --merged outputs/demo/merged

Figures of contrastive models, beside runs or by themselves; a model's name may stand before several files:

    python eval/report.py --out outputs/models \
        --figures sarclip=runs/sarclip/mstar.json sarclip=runs/sarclip/probe.json clip=runs/clip/mstar.json

Writes report.html, report.md, summary.json and, of runs, samples.png. Of the files given, the summary holds all of
--figures and the first of --histories, --scores and --captions each; what was not given is null.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import image_root_of
from sarlang_sft.reporting.curves import read_history
from sarlang_sft.reporting.gallery import make_gallery
from sarlang_sft.reporting.given import (
    CAPTION_SCORES,
    VQA_SCORES,
    named_paths,
    read_merge,
    read_run,
    read_scores,
    split_names,
)
from sarlang_sft.reporting.model_figures import ModelFigures, read_figures
from sarlang_sft.reporting.page import make_report, write_figures_alone, write_markdown, write_page
from sarlang_sft.reporting.pictures import contact_sheet
from sarlang_sft.reporting.summary import summarise, summarise_figures, write_summary
from sarlang_sft.reporting.tables import accuracy_by_task, accuracy_table


@dataclass
class ReportArguments:
    """What to show, and where."""

    out: str = field(metadata={"help": "Folder for report.html, report.md, samples.png and summary.json."})
    data: str | None = field(default=None, metadata={"help": "The data folder that was answered."})
    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=predictions.jsonl of eval/generate.py for every run, in the order of the columns."},
    )
    figures: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=FILE of an evaluation of contrastive models, such as eval/zero_shot.py."},
    )
    split: str = field(default="test", metadata={"help": "The split that was answered: train, val or test."})
    scores: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=FILE of eval/score_vqa.py: other protocols, shown with their signatures."},
    )
    captions: list[str] = field(
        default_factory=list, metadata={"help": "NAME=FILE of eval/score_caption.py, shown with everything they hold."}
    )
    histories: list[str] = field(
        default_factory=list, metadata={"help": "NAME=FOLDER of a training, for its learning curves."}
    )
    merged: str | None = field(
        default=None, metadata={"help": "Folder of the merged model; its check goes into summary.json."}
    )
    images: int = field(
        default=200, metadata={"help": "Images in the gallery, spread evenly over applications; 0: all."}
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the data folder's."}
    )

    def __post_init__(self) -> None:
        if not self.runs and not self.figures:
            raise ValueError("give --runs with their --data, or --figures of contrastive models")
        if bool(self.runs) != (self.data is not None):
            raise ValueError("--runs and --data: give both, or for --figures alone neither")
        if not self.runs and (self.scores or self.captions or self.histories or self.merged):
            raise ValueError("--scores, --captions, --histories and --merged stand beside --runs; give these, too")


def main() -> None:
    (args,) = parse_arguments([ReportArguments], __doc__)
    figures = read_figures(named_paths("--figures", args.figures))
    if args.runs:
        report_runs(args, figures)
    else:
        out = Path(args.out)
        write_figures_alone(figures, out)
        write_summary(summarise_figures(figures), out)
        print(f"Page: {out / 'report.html'}\nTables: {out / 'report.md'}\nSummary: {out / 'summary.json'}")


def report_runs(args: ReportArguments, figures: list[ModelFigures]) -> None:
    data, out = Path(args.data), Path(args.out)
    image_root = image_root_of(data, args.image_root)
    runs = [read_run(name, path, data, args.split) for name, path in split_names("--runs", args.runs).items()]
    histories = [read_history(name, path) for name, path in split_names("--histories", args.histories).items()]
    scores = read_scores("--scores", split_names("--scores", args.scores), VQA_SCORES, data, args.split)
    captions = read_scores("--captions", split_names("--captions", args.captions), CAPTION_SCORES, data, args.split)
    gallery = make_gallery(runs, image_root, args.images)
    report = make_report(data, args.split, runs, histories, scores, captions, gallery, figures)
    summary = summarise(report, histories, read_merge(args.merged))
    write_page(report, out / "report.html")
    write_markdown(report, out / "report.md")
    write_summary(summary, out)
    contact_sheet(runs, image_root, out / "samples.png")

    if report.lines:
        accuracies = accuracy_by_task(runs[0].questions, {line.name: line.shares for line in report.lines})
        print(f"Accuracy on the {args.split} split (protocol exact)\n{accuracy_table(accuracies)}")
    print(f"Page: {out / 'report.html'}\nTables: {out / 'report.md'}\nPictures: {out / 'samples.png'}")
    print(f"Summary: {out / 'summary.json'}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
