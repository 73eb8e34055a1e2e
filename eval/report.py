"""Sum up a run: accuracy before and after tuning beside honest baselines, a summary and a contact sheet.

    python eval/report.py --run outputs/demo --data outputs/demo/data

Reads predictions_before.jsonl, predictions_after.jsonl, predictions_blind.jsonl, scores_vqa.json, scores_caption.json,
lora/train_results.json and merged/merge_report.json in the run folder; writes summary.json and samples.png there.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import image_root_of
from sarlang_sft.reporting import accuracy_by_task, accuracy_table, contact_sheet, majority_verdicts, verdicts
from sarlang_sft.scoring.predictions import join_predictions, read_json


@dataclass
class ReportArguments:
    run: str = field(
        metadata={"help": "Folder with the predictions, the adapter (lora/) and the merged model (merged/)."}
    )
    data: str = field(metadata={"help": "The data folder that was answered."})
    split: str = field(default="test", metadata={"help": "The split that was answered."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the data folder's."}
    )


def main() -> None:
    (args,) = parse_arguments([ReportArguments], __doc__)
    run, data = Path(args.run), Path(args.data)
    rows = {
        name: join_predictions(run / f"predictions_{name}.jsonl", data, args.split, captions=False).rows
        for name in ("before", "after", "blind")
    }
    columns = {"majority": majority_verdicts(data, rows["after"])} | {name: verdicts(rows[name]) for name in rows}
    accuracies = accuracy_by_task(rows["after"], columns)
    captions = read_json(run / "scores_caption.json")
    summary = {f"{name}_accuracy": accuracies["all"][name] for name in columns} | {
        "merge_max_abs_diff": read_json(run / "merged" / "merge_report.json")["max_abs_diff"],
        "train_seconds": read_json(run / "lora" / "train_results.json")["train_runtime"],
        "scores": {"accuracy_by_task": accuracies, "vqa": read_json(run / "scores_vqa.json"), "caption": captions},
    }
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    contact_sheet(rows["before"], rows["after"], image_root_of(data, args.image_root), run / "samples.png")

    print(f"Accuracy on the {args.split} split (protocol exact); blind: the tuned model with images exchanged")
    print(accuracy_table(accuracies))
    print(f"captions after tuning: CIDEr {captions['overall']['value']:.2f} ({captions['protocol']})")
    print(f"merged model: logits differ by at most {summary['merge_max_abs_diff']:.1e} from the adapted one")
    print(f"Summary: {run / 'summary.json'}\nPictures: {run / 'samples.png'}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
