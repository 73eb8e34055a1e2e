r"""Runs side by side: one web page that opens from disk without a network, the same as Markdown, and a summary.

    python eval/report.py --data outputs/demo/data --out outputs/demo \
        --runs before=outputs/demo/predictions_before.jsonl after=outputs/demo/predictions_after.jsonl \
            blind=outputs/demo/predictions_blind.jsonl text_only=outputs/demo/predictions_text.jsonl \
        --histories lora=outputs/demo/lora --scores after=outputs/demo/scores_vqa.json \
        --captions after=outputs/demo/scores_caption.json --merged outputs/demo/merged

Writes report.html, report.md, samples.png and summary.json. Of the files given, the summary holds the first of
--histories, --scores and --captions each; what was not given is null.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import image_root_of
from sarlang_sft.reporting.curves import read_history
from sarlang_sft.reporting.gallery import make_gallery
from sarlang_sft.reporting.given import CAPTION_SCORES, VQA_SCORES, read_merge, read_run, read_scores, split_names
from sarlang_sft.reporting.page import make_report, write_markdown, write_page
from sarlang_sft.reporting.pictures import contact_sheet
from sarlang_sft.reporting.summary import summarise
from sarlang_sft.reporting.tables import accuracy_by_task, accuracy_table


@dataclass
class ReportArguments:
    """What to show, and where."""

    data: str = field(metadata={"help": "The data folder that was answered."})
    runs: list[str] = field(
        metadata={"help": "NAME=predictions.jsonl of eval/generate.py for every run, in the order of the columns."}
    )
    out: str = field(metadata={"help": "Folder for report.html, report.md, samples.png and summary.json."})
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


def main() -> None:
    (args,) = parse_arguments([ReportArguments], __doc__)
    data, out = Path(args.data), Path(args.out)
    image_root = image_root_of(data, args.image_root)
    runs = [read_run(name, path, data, args.split) for name, path in split_names("--runs", args.runs).items()]
    histories = [read_history(name, path) for name, path in split_names("--histories", args.histories).items()]
    scores = read_scores("--scores", split_names("--scores", args.scores), VQA_SCORES, data, args.split)
    captions = read_scores("--captions", split_names("--captions", args.captions), CAPTION_SCORES, data, args.split)
    gallery = make_gallery(runs, image_root, args.images)
    report = make_report(data, args.split, runs, histories, scores, captions, gallery)
    summary = summarise(report, histories, read_merge(args.merged))
    write_page(report, out / "report.html")
    write_markdown(report, out / "report.md")
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    contact_sheet(runs, image_root, out / "samples.png")

    if report.lines:
        accuracies = accuracy_by_task(runs[0].questions, {line.name: line.shares for line in report.lines})
        print(f"Accuracy on the {args.split} split (protocol exact)\n{accuracy_table(accuracies)}")
    print(f"Page: {out / 'report.html'}\nTables: {out / 'report.md'}\nPictures: {out / 'samples.png'}")
    print(f"Summary: {out / 'summary.json'}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
