import importlib.util
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import ROOT, run_here
from datasets import load_dataset

from sarlang_sft.eval_questions import read_questions
from sarlang_sft.records import TASKS

FOLDER = ROOT / "eval/lmms_eval"
TASK_FILES = {
    "vqa": ("sarlang_vqa1", "sarlang_vqa2"),
    "caption": ("sarlang_caption_concise", "sarlang_caption_complex"),
}


class Loader(yaml.SafeLoader):
    """Reads `!function utils.name` as that text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def read_task(name: str) -> dict[str, Any]:
    """A task's file with those that it includes."""
    task = yaml.load((FOLDER / name).read_text(), Loader)
    return {**(read_task(task.pop("include")) if "include" in task else {}), **task}


@pytest.fixture(scope="module")
def utils(data: Path) -> ModuleType:
    """The tasks' functions, as lmms-eval imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SARLANG_DATA", str(data))
        spec = importlib.util.spec_from_file_location("utils", FOLDER / "utils.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def named(utils: ModuleType, text: str) -> Any:
    """What a task's file names as `utils.name`."""
    return vars(utils)[text.removeprefix("utils.")]


def docs_of(utils: ModuleType, task: dict[str, Any]) -> list[dict[str, Any]]:
    files = named(utils, task["dataset_kwargs"]["data_files"])
    return named(utils, task["process_docs"])(load_dataset(task["dataset_path"], data_files=files)["test"]).to_list()


def eval_scores(kind: str, data: Path, rows: list[dict], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What eval/score_*.py gives for these answers."""
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--predictions", folder / "predictions.jsonl", "--data", data, "--out", folder / "scores.json"]
    protocol = {"vqa": "exact", "caption": "official"}[kind]
    run_here(monkeypatch, f"eval/score_{kind}.py", *words, "--protocol", protocol)
    return json.loads((folder / "scores.json").read_text())


def answers_to(docs: list[dict[str, Any]]) -> list[str]:
    """Right, loud, wrong and empty ones in turn."""
    labels = [doc["label"] for doc in docs]
    others = [labels[-1], *labels[:-1]]
    ways = [[label, f" {label.upper()} ", other, ""] for label, other in zip(labels, others, strict=True)]
    return [way[number % 4] for number, way in enumerate(ways)]


def test_the_tasks_are_whole_and_name_what_there_is(utils: ModuleType, data: Path, sample: Path) -> None:
    group = yaml.safe_load((FOLDER / "sarlang.yaml").read_text())
    assert group == {"group": "sarlang", "task": [name for names in TASK_FILES.values() for name in names]}
    for kind, names in TASK_FILES.items():
        for name in names:
            task = read_task(f"{name}.yaml")
            assert task["task"] == name
            assert all(callable(named(utils, one["aggregation"])) for one in task["metric_list"])
            docs = docs_of(utils, task)
            assert docs and {doc["subset"] for doc in docs} == {name.removeprefix("sarlang_")}
            results = [named(utils, task["process_results"])(doc, ["x"]) for doc in docs]
            metrics = {one["metric"] for one in task["metric_list"]}
            assert {metric for result in results for metric in result} <= metrics
            if kind == "vqa":
                applications = set(TASKS) - {"description", "grounding", "cross_identification"}
                assert metrics == {"accuracy", *(f"accuracy_{one}" for one in applications)}
            [picture] = named(utils, task["doc_to_visual"])(docs[0])
            assert picture.mode == "RGB" and (sample / docs[0]["images"][0]).is_file()
            asked = named(utils, task["doc_to_text"])(docs[0], lmms_eval_specific_kwargs=None)
            assert asked == docs[0]["question"] and task["doc_to_target"] == "label"


@pytest.mark.parametrize("kind", ["vqa", "caption"])
def test_the_tasks_give_the_scores_of_our_scorers(
    kind: str, utils: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, given = [], {}
    for name in TASK_FILES[kind]:
        task = read_task(f"{name}.yaml")
        docs = docs_of(utils, task)
        answered: dict[str, list] = {}
        for doc, text in zip(docs, answers_to(docs), strict=True):
            rows.append({"id": doc["id"], "label": doc["label"], "predict": text})
            for metric, result in named(utils, task["process_results"])(doc, [text]).items():
                answered.setdefault(metric, []).append(result)
        combine = {
            one["metric"]: vars(utils)[one["aggregation"].removeprefix("utils.")] for one in task["metric_list"]
        }
        given[name] = {metric: (combine[metric](results), len(results)) for metric, results in answered.items()}
    scores = eval_scores(kind, data, rows, tmp_path, monkeypatch)
    for name, metrics in given.items():
        of_subset = scores["by_subset"][name.removeprefix("sarlang_")]
        if kind == "caption":
            assert {metric: value for metric, (value, _) in metrics.items()} == pytest.approx(
                {metric: of_subset["metrics"][metric] for metric in metrics}
            )
        else:
            assert metrics["accuracy"] == (pytest.approx(of_subset["value"]), of_subset["n"])
            assert 0.4 < of_subset["value"] < 0.9
    if kind == "vqa":
        for task, entry in scores["by_task"].items():
            parts = [metrics[f"accuracy_{task}"] for metrics in given.values() if f"accuracy_{task}" in metrics]
            assert sum(value * count for value, count in parts) == pytest.approx(entry["value"] * entry["n"])


@pytest.mark.slow
def test_the_real_lmms_eval_gives_the_scores_of_our_scorers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stand-in for a model answers every question with one text."""
    python = os.environ.get("LMMS_EVAL_PYTHON")
    if not python:
        pytest.skip("LMMS_EVAL_PYTHON is not set: it names the Python of an environment with lmms-eval")
    words = ["-m", "lmms_eval", "--model", "dummy", "--model_args", "response=Yes", "--batch_size", "1"]
    words += ["--tasks", "sarlang", "--include_path", str(FOLDER), "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "SARLANG_DATA": str(data), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(tmp_path / "cache")}
    finished = subprocess.run([python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    written = list((tmp_path / "out").rglob("*results.json"))
    assert len(written) == 1, finished.stderr[-3000:]  # it leaves with 0 after an error, too
    results = json.loads(written[0].read_text())["results"]
    rows = [
        {"id": question.id, "label": question.label, "predict": "Yes"}
        for question in read_questions(data, "test", [], [], None)
    ]
    for kind, names in TASK_FILES.items():
        scores = eval_scores(kind, data, rows, tmp_path, monkeypatch)
        for name in names:
            of_subset = scores["by_subset"][name.removeprefix("sarlang_")]
            metric, value = (
                ("accuracy", of_subset["value"]) if kind == "vqa" else ("cider", of_subset["metrics"]["cider"])
            )
            assert results[name][f"{metric},none"] == pytest.approx(value)
