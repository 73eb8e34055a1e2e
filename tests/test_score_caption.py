"""Scores of captions: agreement with the authors' script, all references of an image and style, the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sarlang_sft.errors import InputError
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.scoring.caption_statistics import caption_statistics, is_loop
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.intervals import mean_with_interval
from sarlang_sft.scoring.java_metrics import ptb_tokenise
from sarlang_sft.scoring.ngrams import Caption, caption_metrics
from sarlang_sft.scoring.predictions import Row, join_predictions

SCRIPT = Path(__file__).parents[1] / "eval" / "score_caption.py"
METRICS = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
TEXTS = {
    "0.png": ("Ships lie in a harbor.", "Several ships at a pier.", "A long pier with several ships lies in the sea."),
    "1.png": ("A dense forest.", "Trees cover the whole area.", "A dense forest covers hills without any road."),
    "2.png": ("Planes on an airport.", "An airport with planes.", "An airport with two runways and parked planes."),
}


def caption_row(name: str, image: str, style: str, label: str, predict: str | None) -> Row:
    return Row(name, (image,), f"caption_{style}", "description", style, "SpaceNet6", 0.5, "Describe.", label, predict)


@pytest.fixture
def rows() -> list[Row]:
    """Three images with two concise captions and one complex, each style predicted as its first reference."""
    rows = []
    for image, (first, second, long) in TEXTS.items():
        rows.append(caption_row(f"{image}-0#0", image, "concise", first, first))
        rows.append(caption_row(f"{image}-1#0", image, "concise", second, first))
        rows.append(caption_row(f"{image}-2#0", image, "complex", long, long))
    return rows


@pytest.fixture
def data(tmp_path: Path, rows: list[Row]) -> Path:
    records = [
        Record(
            images=[image],
            width=256,
            height=256,
            source="SpaceNet6",
            split="test",
            dialogues=[
                Dialogue(row.id.removesuffix("#0"), row.subset, row.task, [Turn("Describe.", row.label)], row.style)
                for row in rows
                if row.images == (image,)
            ]
            + [Dialogue(f"vqa-{image}", "vqa1", "identification", [Turn("Is there a ship?", "yes")])],
        )
        for image in TEXTS
    ]
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path, {})
    return tmp_path / "data"


def write_predictions(path: Path, rows: list[Row]) -> Path:
    lines = [{"id": row.id, "label": row.label, "predict": row.predict} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_official_agrees_with_the_authors_script(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_data / "official_scores"
    pairs = [json.loads(line) for line in (folder / "caption_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = json.loads((folder / "caption_official.json").read_text(encoding="utf-8"))
    rows = [
        caption_row(f"{index}#0", f"{index}.png", "concise", pair["label"], pair["predict"])
        for index, pair in enumerate(pairs)
    ]
    result = score_captions(rows, "official")
    metrics = result["metrics"]
    assert [metrics[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected["bleu"], abs=1e-9)
    assert metrics["rouge_l"] == pytest.approx(expected["rouge_l"], abs=1e-9)
    assert metrics["cider"] == pytest.approx(expected["cider"], abs=1e-9)
    assert result["overall"]["low"] < result["overall"]["value"] < result["overall"]["high"]
    assert capsys.readouterr().out == ""


def test_official_minds_full_stops_and_standard_does_not(rows: list[Row]) -> None:
    without_stops = [replace(row, predict=row.predict.upper().rstrip(".")) for row in rows]
    assert score_captions(without_stops, "official")["metrics"]["bleu_4"] < 0.1
    assert score_captions(without_stops, "standard")["metrics"]["bleu_4"] == pytest.approx(1.0, abs=1e-6)


def test_standard_holds_one_prediction_against_all_references_of_its_image_and_style(rows: list[Row]) -> None:
    result = score_captions(rows, "standard")
    assert (result["n"], result["answered"], result["scored"], result["differing"]) == (9, 9, 6, 0)
    assert result["metrics"]["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    tokens = {image: [text.lower().rstrip(".") for text in texts] for image, texts in TEXTS.items()}
    concise = caption_metrics([Caption((image,), texts[0], texts[:2]) for image, texts in tokens.items()])
    complex_ = caption_metrics([Caption((image,), texts[2], texts[2:]) for image, texts in tokens.items()])
    assert result["by_subset"]["caption_concise"]["metrics"] == pytest.approx(concise)
    assert result["by_subset"]["caption_complex"]["metrics"] == pytest.approx(complex_)
    assert result["by_subset"]["caption_concise"]["n"] == 6
    assert result["by_subset"]["caption_concise"]["value"] == pytest.approx(concise["cider"])
    assert result["by_style"] == {style: result["by_subset"][f"caption_{style}"] for style in ("complex", "concise")}


def test_standard_takes_the_first_of_unequal_predictions_and_reports_them(rows: list[Row]) -> None:
    equal = score_captions(rows, "standard")
    rows[1] = replace(rows[1], predict="something else")
    unequal = score_captions(rows, "standard")
    assert unequal["differing"] == 1
    assert unequal["metrics"] == equal["metrics"]


@pytest.mark.parametrize("protocol", ["official", "standard"])
@pytest.mark.parametrize("predict", ["", " \n", ".", "😀", None])
def test_empty_predictions_score_nothing_and_break_nothing(
    rows: list[Row], protocol: str, predict: str | None
) -> None:
    full = score_captions(rows, protocol)
    rows[-1] = replace(rows[-1], predict=predict)
    result = score_captions(rows, protocol)
    assert result["answered"] == (8 if predict is None else 9)
    assert 0 < result["overall"]["value"] < full["overall"]["value"]
    emptied = [replace(row, predict=predict) for row in rows]
    assert score_captions(emptied, protocol)["metrics"] == pytest.approx(dict.fromkeys(METRICS, 0.0), abs=1e-6)


def test_tokeniser_keeps_one_line_per_text() -> None:
    texts = ["A ship, harbour.", "", "two\nlines\u2028here", "it's (big)", "\x85", "Château d'eau", ""]
    # pycocoevalcap drops brackets in capitals only, which -lowerCase never writes; published scores have them too.
    bracketed = "it 's -lrb- big -rrb-"
    assert ptb_tokenise(texts) == ["a ship harbour", "", "two lines here", bracketed, "", "château d'eau", ""]


def test_bootstrap_is_repeatable_and_draws_whole_images() -> None:
    scores = np.random.default_rng(0).normal(5.0, 1.0, 400)
    alone = mean_with_interval(scores, range(400))
    assert alone == mean_with_interval(scores, range(400))
    # The standard error of 400 independent values of deviation 1 is 0.05.
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    fourfold = mean_with_interval(np.repeat(scores, 4), np.repeat(np.arange(400), 4).tolist())
    assert fourfold["high"] - fourfold["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.15)


def test_nothing_to_score_is_an_error(data: Path, tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(InputError, match="no captions to score"):
        score_captions([], "official")
    with pytest.raises(InputError, match="no words"):
        score_captions([caption_row("a#0", "a.png", "concise", "", "a ship")], "standard")
    with pytest.raises(InputError, match="split train has no captions"):
        join_predictions(write_predictions(tmp_path / "p.jsonl", []), data, "train", captions=True)
    with pytest.raises(InputError, match="--protocol strict"):
        score_captions(rows, "strict")


def test_a_group_without_reference_words_scores_nothing_and_the_others_are_scored(rows: list[Row]) -> None:
    wordless = [replace(row, label=" ", source="DFC2023") if row.style == "complex" else row for row in rows]
    result = score_captions(wordless, "standard")
    assert result["by_source"]["DFC2023"]["metrics"]["cider"] == 0
    assert (
        result["by_source"]["SpaceNet6"]["value"] == score_captions(rows, "standard")["by_style"]["concise"]["value"]
    )


@pytest.mark.parametrize("protocol", ["official", "standard"])
def test_the_denominator_is_the_split_and_the_answered_stand_beside_it(rows: list[Row], protocol: str) -> None:
    full = score_captions(rows, protocol)
    assert full["of_answered"].items() >= full["overall"].items()
    missing = [replace(row, predict=None) if row.images == ("2.png",) else row for row in rows]
    result = score_captions(missing, protocol)
    assert (result["n"], result["answered"], result["of_answered"]["n"]) == (9, 6, 6)
    assert result["scored"] == full["scored"]
    kept = [row for row in rows if row.images != ("2.png",)]
    assert result["of_answered"]["metrics"] == pytest.approx(score_captions(kept, protocol)["metrics"])
    assert 0 < result["overall"]["value"] < full["overall"]["value"]


def run_script(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, options), "--metrics", "bleu", "rouge_l", "cider"]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line_writes_the_result_and_prints_it(data: Path, tmp_path: Path, rows: list[Row]) -> None:
    predictions, out = write_predictions(tmp_path / "p.jsonl", rows[1:]), tmp_path / "scores" / "caption.json"
    done = run_script("--predictions", predictions, "--data", data, "--split", "test", "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["protocol"], result["n"], result["answered"]) == ("standard", 9, 8)
    assert set(result["overall"]) == {"value", "low", "high"}
    assert set(result["metrics"]) == METRICS
    assert set(result["by_subset"]) == {"caption_concise", "caption_complex"}
    assert set(result["by_resolution"]) == {"unknown"}
    assert result["not_computed"].keys() == {"truncated", "facts"}
    for part in ("protocol:standard", "tokens:ptb", "metrics:bleu+rouge_l+cider", "pycocoevalcap:1.2", "n:9"):
        assert f"|{part}" in result["signature"]
    assert result["signature"] in done.stdout
    assert "1 times: has no prediction: 0.png-0#0" in done.stdout
    assert "testlen" not in done.stdout  # pycocoevalcap's own chatter
    assert str(out) in done.stdout


LONG = " ".join(f"A ship number {number} <b>lies</b> in the harbor." for number in range(200))


def test_command_line_counts_what_is_wrong_with_a_file_and_scores_the_split(
    data: Path, tmp_path: Path, rows: list[Row]
) -> None:
    strange = ["Ships\r\nlie\u2028in a harbor.\x85", LONG, "", "<p>Ships ||| at a pier</p>", "船 ١٢ \x00 \ud800", "ok"]
    lines = [
        json.dumps({"id": row.id, "label": row.label, "predict": predict})
        for row, predict in zip(rows, strange, strict=False)
    ]
    lines += [lines[0], json.dumps({"id": "nowhere#0", "predict": "A ship."}), "no JSON", '{"id": "2.png-0#0", "pre']
    path, out = tmp_path / "p.jsonl", tmp_path / "caption.json"
    path.write_text("\n".join(lines), encoding="utf-8")
    done = run_script("--predictions", path, "--data", data, "--protocol", "standard", "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {reason: found["count"] for reason, found in result["problems"].items()} == {
        "answers a question again": 1,
        "is not in the split": 1,
        "is no valid JSON": 1,
        "is cut off": 1,
        "has no prediction": 3,
        "is answered with nothing": 1,
    }
    assert (result["n"], result["answered"], result["scored"], result["of_answered"]["n"]) == (9, 6, 6, 6)
    assert 0 < result["overall"]["value"] < result["of_answered"]["value"]
    assert result["by_style"]["concise"]["metrics"]["rouge_l"] > 0
    statistics = result["statistics"]
    assert (statistics["captions"], statistics["missing"], statistics["empty"]) == (6, 2, 1)


def test_predictions_of_another_split_are_an_error(data: Path, tmp_path: Path, rows: list[Row]) -> None:
    moved = [replace(row, id=f"train-{row.id}") for row in rows]
    with pytest.raises(InputError, match="no prediction for any of the 9 captions in split test"):
        join_predictions(write_predictions(tmp_path / "p.jsonl", moved), data, "test", captions=True)


def test_style_statistics_see_loops_empty_captions_and_a_model_that_always_says_the_same(rows: list[Row]) -> None:
    same = [replace(row, predict="A ship, a ship, a ship, a ship and", images=(row.id,)) for row in rows]
    same[0] = replace(same[0], predict=" . ")
    same[1] = replace(same[1], predict=None)
    same[2] = replace(same[2], predict="The last one is another.")
    found = caption_statistics(same)
    assert (found["captions"], found["missing"], found["empty"], found["different"]) == (9, 1, 1, 2)
    assert found["most_frequent"] == {"text": "A ship, a ship, a ship, a ship and", "captions": 6, "share": 6 / 7}
    predictions, references = found["predictions"], found["references"]
    assert (predictions["loops"], references["loops"]) == (6 / 7, 0)
    assert (predictions["unfinished"], references["unfinished"]) == (6 / 7, 0)
    assert predictions["words"]["median"] == 9
    # Of 6 times 9 words and 5 others, eight are different: a, ship, and; the, last, one, is, another.
    assert predictions["distinct"]["1"] == pytest.approx(8 / 59)
    assert references["distinct"]["2"] > 0.5 > predictions["distinct"]["2"]


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("ship ship ship", True),
        ("ship ship", False),
        ("two ships at a pier two ships at a pier two ships at a pier", True),
        ("two ships at a pier and two ships at a pier and two ships at a road", False),
        ("", False),
    ],
)
def test_a_loop_is_three_times_the_same_in_direct_succession(text: str, loops: bool) -> None:
    assert is_loop(text.split()) == loops
