import json
import math
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from PIL import Image
from report_runs import HOSTILE, LONG_WORD, NUL, RAMBLE, TURNED, questions, write_predictions

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.contrastive.results import write_figures
from sarlang_sft.errors import InputError
from sarlang_sft.records import Box, Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.reporting.curves import learning_curves, read_history
from sarlang_sft.reporting.figures import caption_tables, near_misses
from sarlang_sft.reporting.gallery import LONGEST_TEXT, answer, choose_images, clipped, drawn_boxes, make_gallery
from sarlang_sft.reporting.given import VQA_SCORES, Run, read_run, read_scores, split_names
from sarlang_sft.reporting.measures import calibrate, confusions
from sarlang_sft.reporting.page import embedded, make_report, write_markdown, write_page
from sarlang_sft.reporting.pictures import confusion_picture, contact_sheet
from sarlang_sft.reporting.scores import is_sarlang, missing_baselines, score_lines
from sarlang_sft.reporting.summary import summarise
from sarlang_sft.scoring.baselines import (
    class_pattern,
    majority_verdicts,
    question_form,
    random_chances,
    read_training_answers,
)
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.exact import exact_verdict
from sarlang_sft.scoring.predictions import CAPTION_TASK, Row
from sarlang_sft.tuning import TUNINGS

TREES = "Question: Are there any surrounding trees?. Answer the question concisely."


def row(label: str, predict: str | None, question: str = "What is the category of the target in the image?") -> Row:
    return Row(
        "x#0", ("SARimages/SIM_000001.png",), "folders", "classification", None, "s", None, question, label, predict
    )


def run_of(rows: list[Row], right: list[bool], name: str = "run", kind: str = "plain") -> Run:
    return Run(name, Path("p.jsonl"), kind, rows, [], right, {}, None)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three predictions files: always yes, always right but for hostile texts, and blind."""
    out, rows = tmp_path_factory.mktemp("runs"), questions(data)
    strange = [HOSTILE, NUL, TURNED, LONG_WORD, RAMBLE, ""]
    return {
        "before": write_predictions(out / "before.jsonl", rows, lambda place, row: "Yes."),
        "after": write_predictions(
            out / "after.jsonl", rows, lambda place, row: strange[place] if place < len(strange) else row.label
        ),
        "blind": write_predictions(
            out / "blind.jsonl",
            rows,
            lambda place, row: None if row.task == CAPTION_TASK else "No.",
            exchange_images=True,
        ),
    }


def test_question_forms_mask_classes_and_numbers() -> None:
    classes = class_pattern(["ship", "car", "oil tanker", "oil"])
    assert question_form("How many ships are there?", classes) == question_form("How many Cars are there?", classes)
    assert question_form("What is in [1.0, 2.0, 3.5, 4.0]?", classes) == "What is in [#, #, #, #]?"
    assert question_form("The cargo carries an oil tanker.", classes) == "The cargo carries an <class>."


def test_forms_also_mask_the_classes_of_the_data_s_own_boxes(pictures: Path, tmp_path: Path) -> None:
    def about(image: str, label: str, answer: str) -> Record:
        dialogue = Dialogue(image, "boxes", "counting", [Turn(f"How many {label}s are there?", answer)])
        box = Box(label, [1.0, 1.0, 5.0, 5.0])
        return Record([image], 20, 20, "here", "train", boxes=[box], dialogues=[dialogue])

    records = [about("a.png", "T72", "2."), about("b.png", "2S1", "2."), about("c.png", "D-7 (dozer)", "1.")]
    write_data_folder(tmp_path / "data", to_table(records), [], pictures, {})
    known = read_training_answers(tmp_path / "data")
    assert known.to("How many BTR60s are there?") == {}
    assert known.to("How many 2S1s are there?") == {"2.": 2, "1.": 1}


def test_majority_answers_come_from_training_alone(data: Path) -> None:
    known = read_training_answers(data)
    rows = [row("No.", None, TREES), row("x", None, "Never asked?")]
    assert majority_verdicts(known, rows) == [known.to(TREES).most_common(1)[0][0] == "No.", False]


def test_chance_is_the_share_of_the_distinct_training_answers_that_are_right(data: Path) -> None:
    known = read_training_answers(data)
    rows = [one for one in questions(data) if one.task != CAPTION_TASK]
    chances = random_chances(known, [*rows, row("x", None, "Never asked?")])
    for one, chance in zip(rows, chances, strict=False):
        answers = list(known.to(one.question))
        assert chance == pytest.approx(
            float(Fraction(sum(exact_verdict(one.label, a) for a in answers), len(answers)))
        )
    assert chances[-1] == 0
    yes_or_no = [chance for one, chance in zip(rows, chances, strict=False) if one.task == "identification"]
    assert set(yes_or_no) == {0.5}


def test_what_baselines_are_not_run_is_told_from_settings(data: Path, runs: dict[str, Path]) -> None:
    read = [read_run(name, path, data, "test") for name, path in runs.items()]
    assert [run.kind for run in read] == ["plain", "plain", "blind"]
    lines = score_lines(read, data)
    assert list(missing_baselines(read, lines)) == ["text-only"]
    assert list(missing_baselines(read[:1], lines)) == ["blind", "text-only"]


def test_a_data_folder_without_training_questions_has_neither_majority_nor_chance(
    data: Path, runs: dict[str, Path], sample: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for name in ("manifest.json", "test.parquet"):
        shutil.copy(data / name, tmp_path / "data")
    output = run_script("eval/report.py", "--data", tmp_path / "data", "--out", tmp_path, "--image_root", sample,
                        "--images", "1", "--runs", f"after={runs['after']}")  # fmt: skip
    assert "majority" not in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["majority_accuracy"] is None and summary["after_accuracy"] > 0
    for page in ("report.html", "report.md"):
        assert "the data folder has no training questions" in (tmp_path / page).read_text()


def test_a_run_of_captions_alone_is_not_scored_on_questions(
    data: Path, runs: dict[str, Path], sample: Path, tmp_path: Path
) -> None:
    def caption(place: int, row: Row) -> str | None:
        return "A ship." if row.task == CAPTION_TASK else None

    told = read_run("told", write_predictions(tmp_path / "told.jsonl", questions(data), caption), data, "test")
    read = [told, *(read_run(name, runs[name], data, "test") for name in ("before", "after", "blind"))]
    report = make_report(data, "test", read, [], {}, {}, make_gallery(read, sample, 1))
    assert [line.name for line in report.lines] == ["before", "after", "blind", "majority", "random"]
    assert [line.style for line in report.lines][:2] == [1, 2], "colours are those of the other charts"
    assert [(one.first, one.second) for one in report.comparisons] == [("before", "after")]
    assert all(list(one.matrices) == ["before", "after", "blind"] for one in report.confusions)
    captions = report.gallery.content["tasks"].index(CAPTION_TASK)
    for entry in report.gallery.content["entries"]:
        asked = [given is not None for given in entry["answers"]]
        assert asked == ([True, True, True, False] if entry["task"] == captions else [False, True, True, True])
    write_page(report, tmp_path / "report.html")
    assert "told was asked for captions alone" in (tmp_path / "report.html").read_text()
    accuracies = summarise(report, [], None)
    assert accuracies["told_accuracy"] is None and accuracies["after_accuracy"] > 0
    only = make_report(data, "test", read[:1], [], {}, {}, make_gallery(read[:1], sample, 1))
    assert not only.lines and only.near_misses is None and not only.confusions
    write_page(only, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (["after"], "give a name and a path"),
        (["=x.jsonl"], "give a name and a path"),
        (["a=x", "a=y"], "given twice"),
        (["n" * 30 + "=x"], "longer than 24"),
    ],
)
def test_names_of_runs_that_cannot_be_used_are_refused(items: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_names("--runs", items)


def test_runs_that_answer_nothing_or_are_named_like_baselines_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "elsewhere#0", "predict": "x"}\n')
    with pytest.raises(InputError, match="no prediction for any"):
        read_run("a", tmp_path / "p.jsonl", data, "test")
    for name in ("random", "n"):
        with pytest.raises(InputError, match="name of another column"):
            read_run(name, tmp_path / "p.jsonl", data, "test")


def test_images_are_chosen_evenly_over_applications_and_by_the_split_alone() -> None:
    rows = [
        replace(row("x", None), images=(f"{number}.png",), task="counting" if number < 90 else "others")
        for number in range(100)
    ]
    chosen = choose_images(rows, 10)
    numbers = [int(images[0].removesuffix(".png")) for images in chosen]
    assert numbers == sorted(numbers) and len(set(numbers)) == 10
    assert sum(number >= 90 for number in numbers) == 5, "both applications take turns"
    counting = [number for number in numbers if number < 90]
    assert max(counting) - min(counting) > 45, "spread over the split"
    assert choose_images([replace(one, predict="other") for one in rows], 10) == chosen
    assert len(choose_images(rows, 0)) == len(choose_images(rows, 1000)) == 100
    with pytest.raises(InputError, match="--images -1"):
        choose_images(rows, -1)


def test_boxes_of_question_and_truth_are_drawn_and_impossible_ones_are_not() -> None:
    boxes = (Box("ship", [1.0, 2.0, 3.0, 4.0]), Box("car", [0.0, 0.0, 4.0, 0.0, 4.0, 2.0, 0.0, 2.0]))
    asked = replace(row("<box:1>", None, "What is in [10, 20.5, 5, 5]? Or <box:0>, <box:7>?"), boxes=boxes)
    assert drawn_boxes(asked) == [
        [(10, 20.5), (15, 20.5), (15, 25.5), (10, 25.5)],
        [(1, 2), (4, 2), (4, 6), (1, 6)],
        [(0, 0), (4, 0), (4, 2), (0, 2)],
    ]
    answered = replace(asked, predict="x", predicted=((1.0, 1.0, 2.0, 2.0), ()))
    assert answer(answered, None)["boxes"] == [[(1, 1), (3, 1), (3, 3), (1, 3)]], "unusable boxes are not drawn"
    numbers = "9" * 5000
    strange = f"[1, 2, -3, 4] [1, 2, 3] [{numbers}, 1, {numbers}, 1] <box:{numbers}>"
    assert drawn_boxes(replace(row("x", None, strange), boxes=boxes)) == []


def test_texts_are_cut_and_signs_that_steer_are_written_out() -> None:
    assert clipped(LONG_WORD) == ["w" * LONGEST_TEXT, 10_000]
    assert clipped("a\x00\u202eb\nc\ud800") == ["a\\x00\\u202eb\nc\\ud800", 7]


def test_every_image_is_held_once_and_unreadable_ones_are_said(
    data: Path, runs: dict[str, Path], sample: Path
) -> None:
    run = read_run("after", runs["after"], data, "test")
    gallery = make_gallery([run], sample, 0)
    held = [one["src"] for image in gallery.content["images"] for one in image["pictures"]]
    assert len(held) == len(set(held)) == gallery.images == gallery.shown and not gallery.unreadable
    assert len(gallery.content["entries"]) == gallery.questions == len(run.questions) + len(run.captions)
    missing = make_gallery([run], sample / "Text", 2)
    assert len(missing.unreadable) == 2
    assert all("unreadable image" in image["pictures"][0]["problem"] for image in missing.content["images"])


def test_the_diagonal_of_every_matrix_is_what_the_scorer_finds_right(data: Path, runs: dict[str, Path]) -> None:
    read = [read_run(name, path, data, "test") for name, path in runs.items()]
    found = {one.title: one for one in confusions(read)}
    assert {"Classes: region referring", "Counts", "Positions", "Yes and no"} <= found.keys()
    counts = found["Yes and no"]
    asked = [place for place, one in enumerate(read[0].questions) if one.task == "identification"]
    for run in read:
        matrix = counts.matrices[run.name]
        diagonal = sum(line[place] for place, line in enumerate(matrix.counts))
        assert diagonal == sum(run.right[place] for place in asked)
        assert sum(map(sum, matrix.counts)) == len(asked)


def test_matrices_cap_counts_and_name_what_is_left_out() -> None:
    labels = ["1.", "10.", "12.", "3."]
    rows = [replace(row(label, "37."), task="counting") for label in labels]
    (counts,) = confusions([run_of(rows, [False] * 4)])
    assert counts.matrices["run"].labels == ["1", "3", "10+"]
    assert counts.matrices["run"].counts[2] == [0, 0, 0, 2], "12 is not 37, though both are ten and more"
    assert counts.matrices["run"].columns[-1] == "other"
    rows = [row("ship, car.", "x"), row("ship.", None), row("car.", "ship")]
    (classes,) = confusions([run_of(rows, [False] * 3)])
    assert (classes.several, classes.rarer) == (1, 0)
    assert classes.matrices["run"].columns == ["ship", "car", "no answer"]


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = [replace(row("a", "a"), logprob=math.log(0.95))] * 10
    unsure = [replace(row("a", "b"), logprob=math.log(0.25))] * 10
    unknown = [row("a", "a"), replace(row("a", "a"), logprob=0.5)]
    found = calibrate(run_of([*sure, *unsure, *unknown], [True] * 10 + [False] * 10 + [True] * 2))
    assert found.ece == pytest.approx(0.5 * 0.05 + 0.5 * 0.25)
    assert [(one.place, one.n, one.right) for one in found.bins] == [(2, 10, 0.0), (9, 10, 1.0)]
    assert found.without == 2
    assert calibrate(run_of(unknown, [True, True])) is None


def test_histories_join_the_trainer_s_log_and_evaluations(tmp_path: Path) -> None:
    log = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": float("nan")}, {"step": 15, "loss": 1.0, "note": "x"}]
    for name, entries in (("checkpoint-9", log[:1]), ("checkpoint-15", log)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    (tmp_path / "evaluations.jsonl").write_text('{"step": 10, "eval_loss": 1.5, "eval_accuracy": 0.4}\n{"step": 1')
    history = read_history("lora", tmp_path)
    assert history.metrics["loss"] == [(5, 2.0), (15, 1.0)] and history.seconds is None
    charts = learning_curves([history], {"after": 0})
    assert [chart.title for chart in charts] == ["Loss", "Accuracy on the val sample"]
    assert {series.style for chart in charts for series in chart.series} == {1}, "no run's colour"
    with pytest.raises(InputError, match="give a run's folder"):
        read_history("lora", tmp_path / "nowhere")


def test_facts_and_statistics_of_captions_become_tables() -> None:
    told = replace(row("Two ships and a car.", "Three ships."), task=CAPTION_TASK, style="concise")
    boxes = tuple(Box(name, [1.0, 1.0, 5.0, 5.0]) for name in ("ship", "ship", "car"))
    scores = score_captions([replace(told, boxes=boxes), replace(told, predict=None)], "official")
    facts, classes, texts = caption_tables({"a": scores})
    assert dict(facts.rows)["classes named that are there"][0].startswith("100.0 %")
    assert dict(facts.rows)["wrong numbers of classes that are there"] == ["1"]
    assert dict(classes.rows)["car"] == ["1", "0", "0", "1", "0", "0"], "there once, and missed"
    assert texts.columns == ["references", "a"] and dict(texts.rows)["words, mean"] == ["5.0", "2.0"]
    silent = score_captions([replace(told, predict=None)], "official")
    (texts,) = caption_tables({"a": silent})
    assert dict(texts.rows)["words, mean"] == ["5.0", "–"] and dict(texts.rows)["most frequent"] == ["", "–"]


def test_near_misses_are_told_of_every_run() -> None:
    rows = [replace(row("3.", "4."), task="counting"), replace(row("3.", None), task="counting")]
    table = near_misses([run_of(rows, [False, False], "one"), run_of(rows[1:] * 2, [False, False], "two")])
    assert table.columns == ["one", "two"]
    assert table.rows == [
        ("counts: mean absolute error", ["1.00", "–"]),
        ("counts: at most one off", ["100.0 %", "–"]),
        ("counts: answers that give a number", ["1 of 2", "0 of 2"]),
    ]
    assert near_misses([run_of([row("odd", "even")], [False])]) is None


def test_scores_of_other_questions_and_of_another_kind_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"protocol": "exact"}')
    with pytest.raises(InputError, match=r"has no by_resolution, .* make it with eval/score_vqa.py"):
        read_scores("--scores", {"a": tmp_path / "s.json"}, VQA_SCORES, data, "test")
    (tmp_path / "s.json").write_text(json.dumps({**dict.fromkeys(VQA_SCORES), "made_from": {"questions": "other"}}))
    with pytest.raises(InputError, match="scores other questions"):
        read_scores("--scores", {"a": tmp_path / "s.json"}, VQA_SCORES, data, "test")


def test_confusion_picture_counts_the_diagonal(tmp_path: Path) -> None:
    rows = [row("T72.", "T72"), row("T72.", "BRDM_2."), row("BRDM_2.", "BRDM_2."), row("BRDM_2.", "a ship")]
    assert confusion_picture(rows, tmp_path / "c.png", "Top-1") == 0.5
    assert Image.open(tmp_path / "c.png").size[0] > 300


def test_contact_sheets_show_missing_answers_formulas_and_unreadable_images(sample: Path, tmp_path: Path) -> None:
    rows = [row("T72.", "$T72$ \x00"), replace(row("T72.", None), images=("nothing.png",)), row("T72.", None)]
    contact_sheet([run_of(rows, [False] * 3)], sample, tmp_path / "s.png", samples=3)
    assert Image.open(tmp_path / "s.png").size[0] > 1000


def test_a_report_from_the_command_line(data: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "merged").mkdir()
    (tmp_path / "lora/train_results.json").write_text('{"train_runtime": 12.5}')
    (tmp_path / "lora/evaluations.jsonl").write_text('{"step": 10, "eval_loss": 1.5}\n')
    (tmp_path / "merged/merge_report.json").write_text('{"max_abs_diff": 1e-06}')
    predictions = ["--predictions", runs["after"], "--data", data, "--out"]
    run_script("eval/score_vqa.py", *predictions, tmp_path / "vqa.json", "--protocol", "published")
    run_script("eval/score_caption.py", *predictions, tmp_path / "captions.json", "--protocol", "official")
    given = ["--data", data, "--out", tmp_path / "out", "--runs", *(f"{name}={path}" for name, path in runs.items())]
    given += ["--scores", f"after={tmp_path / 'vqa.json'}", "--captions", f"after={tmp_path / 'captions.json'}"]
    given += ["--histories", f"lora={tmp_path / 'lora'}", "--merged", tmp_path / "merged"]
    output = run_script("eval/report.py", *given)
    assert "positioning" in output and "report.html" in output
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    accuracies = [f"{name}_accuracy" for name in ("majority", "before", "after", "blind")]
    assert list(summary) == [*accuracies, "merge_max_abs_diff", "train_seconds", "scores"]
    assert list(summary["scores"]) == ["accuracy_by_task", "vqa", "caption"]
    assert summary["after_accuracy"] > summary["majority_accuracy"] > 0 < summary["before_accuracy"]
    assert summary["merge_max_abs_diff"] == 1e-6 and summary["train_seconds"] == 12.5
    assert summary["scores"]["vqa"]["protocol"] == "published"
    assert summary["scores"]["accuracy_by_task"]["all"]["after"] == summary["after_accuracy"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "report.md", "samples.png", "summary.json"
    }  # fmt: skip
    told = run_script("eval/report.py", *given, "--split", "train", code=2)
    assert told.strip().splitlines()[-1].startswith("error: ") and "--split test" in told


def test_the_page_needs_no_other_file_and_shows_what_is_wrong(
    data: Path, runs: dict[str, Path], sample: Path, tmp_path: Path
) -> None:
    lines = runs["after"].read_text().splitlines()
    strange = [lines[0], '{"id": "<b>#0", "predict": "x"}', *lines[:-3], lines[-1][:20]]
    (tmp_path / "p.jsonl").write_text("\n".join(strange))
    read = [read_run("<i>|*", tmp_path / "p.jsonl", data, "test"), read_run("blind", runs["blind"], data, "test")]
    report = make_report(data, "test", read, [], {}, {}, make_gallery(read, sample, 2))
    write_page(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    links = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'>) ]+)""", page.split('id="content"')[0])
    assert links and all(link.startswith("#") for link in links)
    assert page.count("<script") == 2 and "</script><script>alert" not in page
    assert "default-src 'none'" in page and "unsafe-inline'; script-src 'sha256-" in page
    for problem in ("answers a question again", "is cut off", "is not in the split", "has no prediction"):
        assert problem in page.split("<section id=")[0], "above the scores"
    assert "not run: eval/generate.py --without_images" in page
    assert "published, GPT-judged, other protocol" in page and "This data is another" in page
    write_markdown(report, tmp_path / "report.md")
    table = (tmp_path / "report.md").read_text()
    assert r"&lt;i>\|\*" in table and "<i>" not in table
    columns = {line.count("|") - line.count(r"\|") for line in table.splitlines() if line.startswith("| ")}
    assert columns == {7, 4}, "accuracy, and the published figures"


@pytest.mark.parametrize("name", ["before", "blind"])
def test_a_single_run_makes_a_page_even_if_it_is_a_baseline(
    name: str, data: Path, runs: dict[str, Path], sample: Path, tmp_path: Path
) -> None:
    read = [read_run(name, runs[name], data, "test")]
    report = make_report(data, "test", read, [], {}, {}, make_gallery(read, sample, 1))
    assert not report.comparisons and [line.name for line in report.lines] == [name, "majority", "random"]
    write_page(report, tmp_path / "report.html")
    write_markdown(report, tmp_path / "report.md")
    contact_sheet(read, sample, tmp_path / "samples.png")
    assert "Compared, question by question" not in (tmp_path / "report.html").read_text()


def test_published_figures_stand_beside_only_where_all_of_the_data_is_sarlang(pictures: Path, tmp_path: Path) -> None:
    rows = [replace(row("a", "a"), source="SpaceNet6"), replace(row("a", "a"), source="SARDet-100K")]
    assert is_sarlang(rows) and not is_sarlang([*rows, row("a", "a")])
    asked = Dialogue("q", "vqa1", "counting", [Turn("How many ships are there?", "2.")])
    strange = Dialogue("s", "vqa1", "all", [Turn("Is there a car?", "No.")])
    record = Record(["a.png"], 20, 20, "SARDet-100K", "test", dialogues=[asked, strange])
    write_data_folder(tmp_path / "data", to_table([record]), [], pictures, {})
    path = write_predictions(tmp_path / "p.jsonl", questions(tmp_path / "data"), lambda place, row: "2.")
    read = [read_run(name, path, tmp_path / "data", "test") for name in ("a", "b")]
    report = make_report(tmp_path / "data", "test", read, [], {}, {}, make_gallery(read, pictures, 0))
    write_page(report, tmp_path / "report.html")
    scores = (tmp_path / "report.html").read_text().split('id="scores"')[1].split("</table>")[0]
    beside = scores.split('<tbody class="group published">')[1]
    assert "published, GPT-judged, other protocol" in beside and "arXiv 2504.03254" in beside
    for name in ("InternVL2.5-4B", "SAR experts", "lay people"):
        assert name in beside and name not in scores.split('<tbody class="group published">')[0]


def test_no_text_can_leave_the_data_of_the_page() -> None:
    content = embedded({"text": "</script><!-- <script> \u2028 \ud800"})
    assert "<" not in content and content.isascii() and json.loads(content)["text"].startswith("</script>")


def test_a_split_of_captions_alone_makes_a_report(pictures: Path, tmp_path: Path) -> None:
    dialogue = Dialogue("c:0", "caption_concise", CAPTION_TASK, [Turn("Describe.", "A ship.")], "concise")
    record = Record(["a.png"], 20, 20, "here", "test", dialogues=[dialogue])
    write_data_folder(tmp_path / "data", to_table([record]), [], pictures, {})
    path = write_predictions(tmp_path / "p.jsonl", questions(tmp_path / "data"), lambda place, row: "A car.")
    run_script("eval/report.py", "--data", tmp_path / "data", "--out", tmp_path, "--runs", f"only={path}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["scores"]["accuracy_by_task"] is None and "only" in (tmp_path / "report.md").read_text()


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


def model_figures(path: Path, task: str, value: float, **more: object) -> Path:
    """A file as the evaluations of contrastive models write it."""
    figures = {"top1": {"value": value, "low": value - 0.1, "high": value + 0.1}, "mean_per_class": {"value": value}}
    unreadable = more.pop("unreadable", {})
    write_figures(path, task, "9 templates, sar", "runs/<b>", 40, unreadable, figures, more)
    return path


def test_figures_of_contrastive_models_make_a_page_of_their_own(run: Callable[..., str], tmp_path: Path) -> None:
    classes = {"classes": ["T72", "<i>BMP2"], "confusion": [[15, 5], [0, 20]]}
    broken = {tmp_path / "x.png": "cut off"}
    files = [
        f"sarclip={model_figures(tmp_path / 'a.json', 'zero_shot', 0.875, **classes)}",
        f"sarclip={model_figures(tmp_path / 'b.json', 'linear_probe', 0.75)}",
        f"clip={model_figures(tmp_path / 'c.json', 'zero_shot', 0.5, unreadable=broken)}",
    ]
    output = run("eval/report.py", "--out", tmp_path / "out", "--figures", *files)
    assert "report.html" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "summary.json"}
    page = (tmp_path / "out/report.html").read_text()
    assert "Zero-shot recognition: 9 templates, sar" in page and "87.5 % (77.5 to 97.5)" in page
    assert "<script" not in page and "<i>BMP2" not in page and "&lt;i&gt;BMP2" in page and "runs/<b>" not in page
    assert 'class="right" style="--share:75%">15</td>' in page
    lines = (tmp_path / "out/report.md").read_text().splitlines()
    assert "| Zero-shot recognition: 9 templates, sar | sarclip | clip |" in lines
    assert "| top-1 | 87.5 % (77.5 to 97.5) | 50.0 % (40.0 to 60.0) |" in lines
    assert "| mean over classes | 75.0 % |" in lines and "| excluded as unreadable | 0 | 1 |" in lines
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [(one["name"], one["task"], one["figures"]["top1"]["value"]) for one in summary["figures"]] == [
        ("sarclip", "zero_shot", 0.875), ("sarclip", "linear_probe", 0.75), ("clip", "zero_shot", 0.5)
    ]  # fmt: skip


def test_figures_that_are_none_or_given_twice_are_refused(run: Callable[..., str], tmp_path: Path) -> None:
    file, out = model_figures(tmp_path / "a.json", "zero_shot", 0.5), ("--out", tmp_path / "out")
    assert "has 'Zero-shot recognition" in run("eval/report.py", *out, "--figures", f"a={file}", f"a={file}", code=2)
    (tmp_path / "b.json").write_text('{"task": "zero_shot", "figures": {"top1": 3}}')
    told = run("eval/report.py", *out, "--figures", f"a={tmp_path / 'b.json'}", code=2)
    assert "holds no figures of a contrastive model; make it with eval/zero_shot.py" in told
    assert "give --runs with their --data, or --figures" in run("eval/report.py", *out, code=2)
    assert "give both" in run("eval/report.py", *out, "--figures", f"a={file}", "--data", tmp_path, code=2)
    assert "stand beside --runs" in run("eval/report.py", *out, "--figures", f"a={file}", "--scores", "a=b", code=2)


def test_figures_of_contrastive_models_stand_beside_runs(
    run: Callable[..., str], data: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    file = model_figures(tmp_path / "a.json", "zero_shot", 0.5, classes=["a", "b"], confusion=[[1, 2], [3, 4]])
    given = ["--data", data, "--runs", f"after={runs['after']}", "--images", 1, "--figures", f"sarclip={file}"]
    run("eval/report.py", *given, "--out", tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert '<a href="#figures">' in page and "Zero-shot recognition: 9 templates, sar" in page
    assert "Zero-shot recognition" in (tmp_path / "out/report.md").read_text()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["after_accuracy"] > 0 and summary["figures"][0]["name"] == "sarclip"
