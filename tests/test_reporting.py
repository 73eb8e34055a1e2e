import json
import runpy
from dataclasses import replace
from pathlib import Path

from conftest import ROOT, run_script
from PIL import Image

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.reporting import confusion_picture, contact_sheet, majority_answers, majority_verdicts, question_form
from sarlang_sft.scoring.predictions import Row
from sarlang_sft.tuning import TUNINGS


def row(label: str, predict: str | None, question: str = "What is the category of the target in the image?") -> Row:
    return Row(
        "x#0", ("SARimages/SIM_000001.png",), "folders", "classification", None, "s", None, question, label, predict
    )


def test_question_forms_mask_classes_and_numbers() -> None:
    assert question_form("How many ships are located in the image?") == question_form(
        "How many cars are located in the image?"
    )
    assert question_form("What is in the area [1.0, 2.0, 3.5, 4.0]?") == "What is in the area [#, #, #, #]?"
    assert question_form("The cargo carries a car.") == "The cargo carries a <class>."


def test_majority_answers_come_from_training_alone(data: Path) -> None:
    answers = majority_answers(data)
    form = question_form("Question: Are there any surrounding trees?. Answer the question concisely.")
    assert answers[form] == "No."
    rows = [row("No.", None, "Question: Are there any surrounding trees?. Answer the question concisely.")]
    assert majority_verdicts(data, [*rows, row("x", None, "Never asked?")]) == [True, False]


def test_confusion_picture_counts_the_diagonal(tmp_path: Path) -> None:
    rows = [row("T72.", "T72"), row("T72.", "BRDM_2."), row("BRDM_2.", "BRDM_2."), row("BRDM_2.", "a ship")]
    assert confusion_picture(rows, tmp_path / "c.png", "Top-1") == 0.5
    assert Image.open(tmp_path / "c.png").size[0] > 300


def test_contact_sheet_and_report_of_a_run(sample: Path, data: Path, tiny: Path, tmp_path: Path) -> None:
    generate = ["eval/generate.py", "--model", tiny, "--data", data, "--max_new_tokens", 6, "--out", tmp_path]
    run_script(*generate, "--name", "predictions_before")
    for name in ("after", "blind"):
        text = (tmp_path / "predictions_before.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in text]
        if name == "after":
            rows = [{**item, "predict": item["label"]} for item in rows]
        (tmp_path / f"predictions_{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    (tmp_path / "lora").mkdir()
    (tmp_path / "merged").mkdir()
    (tmp_path / "lora/train_results.json").write_text('{"train_runtime": 12.5}')
    (tmp_path / "merged/merge_report.json").write_text('{"max_abs_diff": 1e-06}')
    predictions = ["--predictions", tmp_path / "predictions_after.jsonl", "--data", data, "--out"]
    run_script("eval/score_vqa.py", *predictions, tmp_path / "scores_vqa.json")
    run_script("eval/score_caption.py", *predictions, tmp_path / "scores_caption.json")
    output = run_script("eval/report.py", "--run", tmp_path, "--data", data)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (
        summary["after_accuracy"]
        == 1.0
        > summary["majority_accuracy"]
        > summary["before_accuracy"]
        == summary["blind_accuracy"]
    )
    assert summary["merge_max_abs_diff"] == 1e-6 and summary["train_seconds"] == 12.5
    assert summary["scores"]["vqa"]["overall"]["value"] == 1.0
    assert "positioning" in output and Image.open(tmp_path / "samples.png").size[0] > 1000


def test_contact_sheet_shows_missing_answers(sample: Path, tmp_path: Path) -> None:
    rows = [row("T72.", "T72")] * 3
    contact_sheet([replace(item, predict=None) for item in rows], rows, sample, tmp_path / "s.png", samples=3)
    assert (tmp_path / "s.png").is_file()


def test_the_page_of_what_ran_where_has_every_family_and_way() -> None:
    """`make support` writes the table from the results of tests/test_matrix.py."""
    page = (ROOT / "docs/support.md").read_text()
    table = page.split("<!-- matrix: written by docs/write_support.py -->")[1].split("<!-- end of matrix -->")[0]
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.split("\n") if line]
    assert head == ["tuning", *BACKBONES, "run on"] and [row[0] for row in rows] == list(TUNINGS)
    assert all(cell == "passed" for row in rows for cell in row[1:-1])
    assert {row[-1] for row in rows} == {"CPU tiny; H200 full size: not run"}


def test_the_page_tells_what_failed_and_what_was_not_run(tmp_path: Path) -> None:
    names = runpy.run_path(str(ROOT / "docs/write_support.py"))
    case = '<testcase name="test_family_and_way[{}-lora]">{}</testcase>'
    cases = [case.format(family, "") for family in BACKBONES]
    (tmp_path / "good.xml").write_text(f"<testsuite>{''.join(cases)}</testsuite>")
    cases[0] = case.format(next(iter(BACKBONES)), "<failure/>")
    (tmp_path / "bad.xml").write_text(f"<testsuite>{''.join(cases)}</testsuite>")
    for name, first, run_on in (
        ("good", "passed", "CPU tiny; H200 full size: not run"),
        ("bad", "failed", "CPU tiny: not all; H200 full size: not run"),
    ):
        table = names["table"]({"CPU tiny": names["read_results"](tmp_path / f"{name}.xml")})
        lora, tower = table.split("\n")[2:4]
        assert lora.startswith(f"| `lora` | {first} | passed |") and lora.endswith(f"| {run_on} |")
        assert tower.startswith("| `lora_tower` | not run |")
