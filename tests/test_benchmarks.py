"""The benchmarks run, write what they promise, and compare like with like."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, run_script

THROUGHPUT, GENERATION = ROOT / "benchmarks/throughput.py", ROOT / "benchmarks/generation.py"


@pytest.fixture(scope="module")
def tokenizer(real_data: Path) -> list[object]:
    return ["--real_processor", real_data / "qwen2_5_vl_7b"]


@pytest.mark.slow
def test_three_paths_learn_the_same_from_the_same_steps(tokenizer: list[object], tmp_path: Path) -> None:
    out = tmp_path / "throughput.json"
    words = ["--turns", 3, "--steps", 1, "--batch", 3, "--images", 8, "--out", out]
    output = run_script(THROUGHPUT, *words, *tokenizer)
    result = json.loads(out.read_text())
    assert set(result) == {"hardware", "versions", "tokenizer", "runs"} and "CPU" in result["hardware"]
    stock, flat, trees = result["runs"]
    assert [run["name"] for run in (stock, flat, trees)] == ["trl_stock", "flat", "trees"]
    for key in ("turns_per_image", "qa_per_s", "tokens_per_s", "flop_per_qa", "peak_memory_bytes", "data_wait"):
        assert all(run[key] > 0 for run in (stock, flat, trees)), key
    assert all(run["mfu"] is None for run in (stock, flat, trees)), "a CPU has no published peak"
    assert trees["losses"] == pytest.approx(stock["losses"], abs=2e-4)
    assert flat["losses"] == pytest.approx(stock["losses"], abs=2e-4)
    assert stock["flop_per_qa"] / trees["flop_per_qa"] > 2 and "x counted" in output


@pytest.mark.slow
def test_generation_ways_give_the_same_answers(tmp_path: Path) -> None:
    out = tmp_path / "generation.json"
    run_script(GENERATION, "--turns", 3, "--images", 1, "--shape", "llava_cpu", "--out", out)
    runs = json.loads(out.read_text())["runs"]
    assert [run["name"] for run in runs] == ["one_by_one", "batched", "shared_trunk"]
    assert all(run["same_answers"] == 1 and run["questions_per_s"] > 0 for run in runs)


@pytest.mark.slow
def test_conversion_is_measured_at_several_sizes(tmp_path: Path) -> None:
    out = tmp_path / "data_prep.json"
    output = run_script(ROOT / "benchmarks/data_prep.py", "--scales", 0.001, 0.002, "--out", out)
    small, large = json.loads(out.read_text())["runs"]
    assert 1.9 < large["rows"] / small["rows"] < 2.1 and "SARDet-100K" in output and "duplicate_image" in output
    programs = [run[program] for run in (small, large) for program in ("convert", "validate")]
    assert all(program[key] > 0 for program in programs for key in ("seconds", "peak_bytes"))


@pytest.mark.slow
def test_building_texts_is_measured_at_several_sizes(tmp_path: Path) -> None:
    out = tmp_path / "text_from_boxes.json"
    run_script(ROOT / "benchmarks/text_from_boxes.py", "--images", 200, 400, "--out", out)
    small, large = json.loads(out.read_text())["runs"]
    assert large["boxes"] == 2 * small["boxes"] == 1000 and 1.8 < large["dialogues"] / small["dialogues"] < 2.2
    assert all(run[key] > 0 for run in (small, large) for key in ("seconds", "peak_bytes"))


@pytest.mark.slow
def test_ways_to_tune_are_measured_beside_plain_lora(tmp_path: Path) -> None:
    out = tmp_path / "ways.json"
    words = ["--ways", "lora", "qlora", "--steps", 1, "--images", 8, "--out", out]
    output = run_script(ROOT / "benchmarks/ways.py", *words)
    lora, qlora = json.loads(out.read_text())["runs"]
    assert [lora["way"], qlora["way"]] == ["lora", "qlora"] and lora["trainable"] == qlora["trainable"] == 454_656
    assert all(run[key] > 0 for run in (lora, qlora) for key in ("qa_per_s", "memory_bytes", "loss"))
    assert qlora["loss"] == pytest.approx(lora["loss"], rel=0.05) and qlora["loss"] != lora["loss"]
    assert "of LoRA" in output


def test_refined_lee_is_measured_beside_boxcar_and_no_filter(tmp_path: Path) -> None:
    out = tmp_path / "despeckle.json"
    run_script(ROOT / "benchmarks/despeckle.py", "--out", out)
    result = json.loads(out.read_text())
    assert set(result) == {"hardware", "versions", "simulated", "time"} and "CPU" in result["hardware"]
    for looks in (1, 4):
        rows = {row["filter"]: row for row in result["simulated"] if row["looks"] == looks}
        lee, boxcar, none = rows["refined_lee"], rows["boxcar"], rows["none"]
        assert lee["rmse_db_near_edges"] < min(boxcar["rmse_db_near_edges"], none["rmse_db_near_edges"])
        assert boxcar["rmse_db_flat"] < lee["rmse_db_flat"] < none["rmse_db_flat"]
        assert boxcar["edge_slope_kept"] < lee["edge_slope_kept"] and lee["looks_estimated"] == pytest.approx(
            looks, rel=0.15
        )
    assert all(row["plain_loop_over_ours"] > 0 for row in result["time"])


@pytest.mark.slow
def test_a_merge_is_measured_beside_a_copy_and_peft(tmp_path: Path) -> None:
    out = tmp_path / "merge.json"
    words = ["--size_gb", 0.1, "--shape", "qwen_cpu", "--work", tmp_path, "--out", out]
    output = run_script(ROOT / "benchmarks/merge.py", *words)
    result = json.loads(out.read_text())
    assert 0.05e9 < result["size_bytes"] < 0.2e9 and result["copy_seconds"] > 0 and "merged in" in output
    assert 0 < result["peak_bytes"] < result["allowed_bytes"] == int(2e9) + 2 * result["largest_tensor_bytes"]
    beside = result["beside_peft"]
    assert beside["untouched_equal"] and beside["furthest_in_steps_of_bfloat16"] <= 1
    assert beside["values_unequal"] < 1e-3 * beside["values_compared"]
    assert [path.name for path in tmp_path.iterdir()] == ["merge.json"], "everything else is removed"


@pytest.mark.slow
def test_ranking_for_retrieval_is_measured_at_several_sizes(tmp_path: Path) -> None:
    out = tmp_path / "retrieval.json"
    output = run_script(ROOT / "benchmarks/retrieval.py", "--sizes", "300x16", "500x16", "--out", out)
    small, large = json.loads(out.read_text())["runs"]
    assert (small["pairs"], large["pairs"], large["width"]) == (300, 500, 16) and "500 pairs of width 16" in output
    assert all(run[key] > 0 for run in (small, large) for key in ("seconds", "peak_bytes", "mean_recall"))
