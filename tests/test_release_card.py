"""What a release says of a model, what it refuses, and how it gets to the hub."""

import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, make_trainer, run_script
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from sarlang_sft.arguments import DataArguments
from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.inference import Asked, answer_each, load_tuned
from sarlang_sft.prediction_files import keep_settings
from sarlang_sft.publishing import check_login, push, without_paths, write_release
from sarlang_sft.records import image_root_of, read_dialogue_table, read_records
from sarlang_sft.release import merge_adapter
from sarlang_sft.release_checks import ACCEPTABLE, accept
from sarlang_sft.release_facts import collect
from sarlang_sft.release_origin import read_adapter
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.predictions import join_predictions, made_from, write_result
from sarlang_sft.scoring.vqa import score_vqa
from sarlang_sft.training import save_result
from sarlang_sft.tuning import TuningArguments


class Made(NamedTuple):
    """A folder with a base model `base`, its adapter `run`, both as `merged`, and score files of the adapter."""

    folder: Path
    data: Path


def train(base: Path, data: Path, out: Path, **tuning: object) -> None:
    trainer, _ = make_trainer(base, data, out, TuningArguments(**tuning), max_steps=2, learning_rate=1e-2)
    save_result(trainer, DataArguments(data=str(data)), trainer.train().metrics)


def score(path: Path, data: Path, model: Path, adapter: Path | None, split: str = "test", **settings: object) -> None:
    """Answers of which every second one is right, and their scores, as eval/*.py write them."""
    predictions = path.with_suffix(".jsonl")
    rows = [
        {"id": f"{row['id']}#{turn}", "label": text["answer"], "predict": text["answer"] if number % 2 else "a plane"}
        for number, row in enumerate(read_dialogue_table(data, split).to_pylist())
        for turn, text in enumerate(row["turns"])
    ]
    made = {
        "model": str(model), "adapter": adapter and str(adapter), "data": str(data), "split": split, "bits": 0,
        "exchange_images": False, "max_new_tokens": 64, "dtype": "auto", "max_pixels": None,
        "model_fingerprint": base_fingerprint(str(model)),
        "adapter_fingerprint": adapter and base_fingerprint(str(adapter)),
    }  # fmt: skip
    keep_settings(predictions, made | settings)
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    captions = path.stem.startswith("captions")
    rows = join_predictions(predictions, data, split, captions).rows
    result = score_captions(rows, "official") if captions else score_vqa(rows, "exact")
    write_result(path, {**result, "made_from": made_from(predictions, data, split)})


@pytest.fixture(scope="module")
def made(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(tiny, folder / "base")
    train(folder / "base", data, folder / "run", lora_r=4)
    merge_adapter(str(folder / "base"), str(folder / "run"), folder / "merged")
    for name in ("vqa.json", "captions.json"):
        score(folder / name, data, folder / "base", folder / "run")
    score(folder / "before.json", data, folder / "base", None)
    score(folder / "blind.json", data, folder / "base", folder / "run", exchange_images=True)
    score(folder / "text.json", data, folder / "base", folder / "run", without_images=True)
    return Made(folder, data)


def release(made: Made, out: Path, model: str | Path = "merged", accepted: list[str] | None = None, **of: Any) -> str:
    """Release a model of `made`; its card. Paths are relative to its folder."""
    run = of.get("run", "run" if model == "merged" else None)
    facts = collect(
        made.folder / model,
        of.get("name", out.name),
        run and made.folder / run,
        of.get("base"),
        of.get("data", [made.data]),
        [made.folder / path for path in of.get("scores", ["vqa.json", "captions.json"])],
        [made.folder / path for path in of.get("baselines", [])],
        of.get("license"),
        of.get("data_licenses", []),
    )
    write_release(accept(facts, accepted or []), out)
    return (out / "README.md").read_text()


def copied(made: Made, name: str, to: Path) -> Path:
    return Path(shutil.copytree(made.folder / name, to))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_merged_model_is_released_with_all_that_is_known(made: Made, tmp_path: Path) -> None:
    card = release(made, tmp_path / "sar-qwen", baselines=["before.json", "blind.json", "text.json"])
    front = ModelCard.load(tmp_path / "sar-qwen/README.md").data
    assert front.pipeline_tag == "image-text-to-text" and front.library_name == "transformers"
    assert front.license == "other" and front.base_model is None, "nobody said where the base model is from"
    vqa = json.loads((made.folder / "vqa.json").read_text())
    values = {result.metric_type: result.metric_value for result in front.eval_results}
    assert values["accuracy"] == round(100 * vqa["overall"]["value"], 2) and "cider" in values
    for task, group in vqa["by_task"].items():
        low, high = 100 * group["low"], 100 * group["high"]
        assert f"| {task} | {group['n']} | {100 * group['value']:.1f} ({low:.1f}-{high:.1f}) |" in card
    assert "| right, % | base model, % | blind, % | text-only, % |" in card and "Not surely better than blind" in card
    manifest = json.loads((made.data / "manifest.json").read_text())
    for name, count in manifest["counts"]["train"]["vqa1"].items():
        assert re.search(rf"\| vqa1 \| {name} \| {count:,} \|", card)
    assert f"accepted {manifest['accepted']:,}" in card and "| simulator |" in card
    assert base_fingerprint(str(made.folder / "base")) in card
    assert re.search(r"`lora_r` \| 4 ", card) and re.search(r"`learning\\?_rate` \| 0.01 ", card)
    report = json.loads((made.folder / "merged/merge_report.json").read_text())
    assert f"{report['effect']:.2e}" in card and f"{report['max_abs_diff']:.2e}" in card
    assert torch.__version__.partition("+")[0] in card and "2 steps" in card
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|\{\{ |\{%", card.replace("None: this", "")), card
    files = {str(path.relative_to(tmp_path / "sar-qwen")) for path in (tmp_path / "sar-qwen").rglob("*.*")}
    assert files >= {"model.safetensors", "config.json", "generation_config.json", "image_ops.json", "tokenizer.json"}
    assert files >= {"scores/vqa.json", "scores/blind.json", "training/manifest.json", "training/run.json"}
    assert "training_args.bin" not in files, "it is a pickle"
    assert (made.folder / "merged/model.safetensors").is_file(), "weights are never moved"


def test_the_programs_score_an_adapter_and_release_it(made: Made, tmp_path: Path) -> None:
    base, run = made.folder / "base", made.folder / "run"
    words = ["--model", base, "--adapter", run, "--data", made.data, "--limit", 12, "--max_new_tokens", 4]
    run_script("eval/generate.py", *words, "--out", tmp_path)
    given = ["--predictions", tmp_path / "predictions.jsonl", "--data", made.data]
    run_script("eval/score_vqa.py", *given, "--out", tmp_path / "vqa.json")
    words = ["recipes/release.py", "--model", run, "--data", made.data, "--out", tmp_path / "adapter"]
    output = run_script(*words, code=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: --scores: there are no scores") and not (tmp_path / "adapter").exists()
    run_script(*words, "--scores", tmp_path / "vqa.json", "--base", "somebody/tiny")
    front = ModelCard.load(tmp_path / "adapter/README.md").data
    assert (front.base_model, front.base_model_relation, front.library_name) == ("somebody/tiny", "adapter", "peft")
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "adapter", capture_output=True, text=True
    )
    files = [path for path in (tmp_path / "adapter").rglob("*") if path.is_file()]
    assert checked.returncode == 0 and checked.stdout.count(": OK\n") == len(files) - 1
    told = [str(ROOT), str(tmp_path), str(made.folder), str(made.data), str(Path.home()), "/tmp/"]
    for path in files:
        if path.suffix != ".safetensors":
            assert not [place for place in told if place in path.read_text()], path
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == (
        "somebody/tiny"
    )


@pytest.mark.parametrize("model", ["merged", "run"])
def test_the_snippet_in_the_card_answers_as_the_tuned_model(
    made: Made, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    card = release(made, tmp_path / "sar-qwen", model, accepted=["base: a test"] if model == "run" else [])
    record = next(read_records(made.data, "test"))
    picture = Image.open(image_root_of(made.data, None) / record.images[0])
    picture.save(tmp_path / "scene.png")
    (tmp_path / "base").symlink_to(made.folder / "base")
    monkeypatch.chdir(tmp_path)
    [snippet] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(snippet, {})
    [question] = re.findall(r'^question = (".*")$', snippet, re.MULTILINE)
    tuned = load_tuned(str(made.folder / "base"), str(made.folder / "run"))
    turn = {"question": json.loads(question), "answer": ""}
    [(answer, _)] = answer_each(tuned, [Asked([picture.convert("RGB")], [turn])], 64)
    assert answer and capsys.readouterr().out.strip() == answer


def test_image_operations_stand_in_the_snippet(made: Made, tmp_path: Path) -> None:
    merged = copied(made, "merged", tmp_path / "merged")
    (merged / "image_ops.json").write_text('{"image_ops": ["log", "standardise"]}')
    card = release(made, tmp_path / "out", merged, run="run", scores=["vqa.json"])
    assert "load_picture(Path(\"scene.png\"), ['log', 'standardise'])" in card
    assert "send pictures that they were applied to" in card


def test_an_adapter_beyond_the_language_model_is_served_merged(made: Made, tmp_path: Path) -> None:
    served = release(made, tmp_path / "plain", "run", ["base: a test"])
    assert "--enable-lora --max-lora-rank 8 --lora-modules" in served and "merge_adapter" not in served
    train(made.folder / "base", made.data, tmp_path / "tower", lora_r=4, vision_tower="lora")
    accepted = ["base: a test", "other_scores: a test"]
    card = release(made, tmp_path / "out", tmp_path / "tower", accepted)
    assert "merge_adapter.py --base base --adapter out --out merged" in card and "--enable-lora" not in card
    assert re.search(r"tensors lie outside the language model \(such as model.visual", card.replace("\\_", "_"))


def not_asked(made: Made, tmp_path: Path) -> dict[str, Any]:
    return {"scores": []}


def another_adapter(made: Made, tmp_path: Path) -> dict[str, Any]:
    folder = copied(made, "run", tmp_path / "run")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    score(tmp_path / "vqa.json", made.data, made.folder / "base", folder)
    return {"scores": [tmp_path / "vqa.json"]}


def blind_scores(made: Made, tmp_path: Path) -> dict[str, Any]:
    return {"scores": ["blind.json"]}


def text_only_scores(made: Made, tmp_path: Path) -> dict[str, Any]:
    return {"scores": ["text.json"]}


def unsigned_scores(made: Made, tmp_path: Path) -> dict[str, Any]:
    shutil.copyfile(made.folder / "vqa.json", tmp_path / "vqa.json")
    change(tmp_path / "vqa.json", made_from=None)
    return {"scores": [tmp_path / "vqa.json"]}


def scores_on_val(made: Made, tmp_path: Path) -> dict[str, Any]:
    score(tmp_path / "vqa.json", made.data, made.folder / "base", made.folder / "run", "val")
    return {"scores": [tmp_path / "vqa.json"]}


def changed_data(made: Made, tmp_path: Path) -> dict[str, Any]:
    folder = Path(shutil.copytree(made.data, tmp_path / "data"))
    shutil.copyfile(folder / "val.parquet", folder / "train.parquet")
    return {"data": [folder]}


def unreported_merge(made: Made, tmp_path: Path) -> dict[str, Any]:
    (copied(made, "merged", tmp_path / "merged") / "merge_report.json").unlink()
    return {"model": tmp_path / "merged"}


def unchecked_merge(made: Made, tmp_path: Path) -> dict[str, Any]:
    change(copied(made, "merged", tmp_path / "merged") / "merge_report.json", max_abs_diff=None, effect=None)
    return {"model": tmp_path / "merged"}


def failed_merge(made: Made, tmp_path: Path) -> dict[str, Any]:
    change(copied(made, "merged", tmp_path / "merged") / "merge_report.json", max_abs_diff=3.0, effect=4.0)
    return {"model": tmp_path / "merged"}


def unfinished_run(made: Made, tmp_path: Path) -> dict[str, Any]:
    change(copied(made, "run", tmp_path / "run") / "run.json", state="running")
    return {"run": tmp_path / "run"}


def local_base(made: Made, tmp_path: Path) -> dict[str, Any]:
    return {"model": "run"}


@pytest.mark.parametrize(
    ("case", "name", "message"),
    [
        (not_asked, "no_scores", "there are no scores"),
        (another_adapter, "other_scores", "answers are of another model"),
        (blind_scores, "other_scores", "blind baseline"),
        (text_only_scores, "other_scores", "text-only baseline"),
        (unsigned_scores, "unknown_scores", "does not say which model"),
        (scores_on_val, "split", "is on the split val"),
        (changed_data, "data", "the folder trained on"),
        (unreported_merge, "merge_check", "no merge_report.json"),
        (unchecked_merge, "merge_check", "were not compared"),
        (failed_merge, "merge_check", "merging changed the logits by 3"),
        (unfinished_run, "run", "did not finish (running)"),
        (local_base, "base", "a folder that nobody else has"),
    ],
)
def test_what_speaks_against_a_release_refuses_it_unless_accepted(
    made: Made, tmp_path: Path, case: Any, name: str, message: str
) -> None:
    of = {"scores": ["vqa.json"], **case(made, tmp_path)}
    model = of.pop("model", "merged")
    of["run"] = of.get("run", None if model == "run" else "run")
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        release(made, tmp_path / "out", model, **of)
    assert f"--accept '{name}: " in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    card = release(made, tmp_path / "out", model, [f"{name}: we know, it is <early>"], **of)
    assert "we know, it is &lt;early>" in card and message in card.replace("\\", "")
    assert str(made.folder) not in card.replace("\\", "") and str(tmp_path) not in card.replace("\\", "")
    assert name in ACCEPTABLE


def no_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    (folder / "model.safetensors").unlink()  # which a release may share
    save_file(weights, folder / "model.safetensors")


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_number, "holds what is no number"),
        (without("model.safetensors"), "model.safetensors is missing"),
        (without("processor_config.json"), "no image processor"),
        (without("generation_config.json"), "generation_config.json is missing"),
    ],
)
def test_a_model_that_cannot_be_used_is_never_released(made: Made, tmp_path: Path, damage: Any, message: str) -> None:
    damage(copied(made, "merged", tmp_path / "merged"))
    with pytest.raises(InputError, match=message):
        release(made, tmp_path / "out", tmp_path / "merged", run="run")
    assert not (tmp_path / "out").exists()


def test_a_model_of_the_hub_is_the_base_model_only_by_its_name(made: Made, tmp_path: Path) -> None:
    score(tmp_path / "hub.json", made.data, made.folder / "base", None, model_fingerprint="some/base@c0ffee")
    of = {"scores": ["vqa.json"], "baselines": [tmp_path / "hub.json"]}
    with pytest.raises(InputError, match="neither the base model's answers"):
        release(made, tmp_path / "out", base="other/base", **of)
    assert "| base model, %" in release(made, tmp_path / "out", base="some/base", **of)


def test_options_that_say_nothing_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing of this kind to accept"):
        release(made, tmp_path / "out", accepted=["split: only in case"])
    with pytest.raises(InputError, match="write 'NAME: why'"):
        release(made, tmp_path / "out", accepted=["split"])
    with pytest.raises(InputError, match="neither the base model's answers"):
        release(made, tmp_path / "out", baselines=["vqa.json"])
    with pytest.raises(InputError, match="is no score file"):
        release(made, tmp_path / "out", scores=["merged/merge_report.json"])
    with pytest.raises(InputError, match="SOURCE one of simulator"):
        release(made, tmp_path / "out", data_licenses=["MSTAR: public"])


def test_licences_stand_where_they_are_stated(made: Made, tmp_path: Path) -> None:
    card = release(made, tmp_path / "out", license="apache-2.0", data_licenses=["simulator: CC0"], base="some/base")
    front = ModelCard.load(tmp_path / "out/README.md").data
    assert (front.license, front.base_model, front.base_model_relation) == ("apache-2.0", "some/base", "finetune")
    assert re.search(r"\| simulator \|.*\| CC0 \|", card)


def test_a_licence_of_the_base_models_own_is_named(made: Made, tmp_path: Path) -> None:
    base = copied(made, "base", tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n")
    run = copied(made, "run", tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())["facts"]
    change(run / "run.json", facts=facts | {"options": facts["options"] | {"model_name_or_path": str(base)}})
    card = release(made, tmp_path / "out", run=run, base="some/base")
    front = ModelCard.load(tmp_path / "out/README.md").data
    link = "https://huggingface.co/some/base/blob/main/LICENSE"
    assert (front.license, front.license_name, front.license_link) == ("other", "qwen-research", link)
    assert "qwen-research, the licence of the base model." in card and "is not stated. They derive" not in card


def test_what_merging_recorded_is_told(made: Made, tmp_path: Path) -> None:
    merged = copied(made, "merged", tmp_path / "merged")
    parity = json.loads((merged / "merge_report.json").read_text())
    change(
        merged / "merge_report.json",
        logits=[parity | {"dtype": "bfloat16", "max_abs_diff": 0.125}, parity],
        adapters=[str(made.folder / "run"), str(made.folder / "other")],
        weights=[0.5, 0.25],
        combine="ties",
        checks=["processor"],
        not_checked=["logits as base + adapter"],
        trained_in_bits=4,
    )
    with pytest.raises(InputError, match="another model"):  # one adapter's are not those of a blend
        release(made, tmp_path / "out", merged, run="run")
    accepted = ["other_scores: a test"]
    card = release(made, tmp_path / "out", merged, accepted, run="run")
    assert re.search(r"\| bfloat16 \| \S+ \| 1.25e-01 \|\n\| float32 \|", card)
    assert "Merged from 2 adapters (ties, weights 0.5, 0.25)" in card and "in 4 bits" in card
    assert "Checked when merging: processor. **Not checked**: logits as base + adapter." in card


def test_the_run_of_the_merged_adapter_is_found(made: Made, tmp_path: Path) -> None:
    merged = copied(made, "merged", tmp_path / "merged")
    change(merged / "merge_report.json", adapters=[str(made.folder / "run")])
    assert "2 steps" in release(made, tmp_path / "out", merged, run=None)


def test_an_adapter_trained_again_since_is_not_the_one_merged(made: Made, tmp_path: Path) -> None:
    merged, run = copied(made, "merged", tmp_path / "merged"), copied(made, "run", tmp_path / "run")
    weights = load_file(run / "adapter_model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, run / "adapter_model.safetensors")
    change(merged / "merge_report.json", adapters=[str(run)])
    score(tmp_path / "vqa.json", made.data, made.folder / "base", run)
    with pytest.raises(InputError, match="its answers are of another model"):
        release(made, tmp_path / "out", merged, run=None, scores=[tmp_path / "vqa.json"])
    with pytest.raises(InputError, match="not the one that this run's folder holds"):
        release(made, tmp_path / "out", merged, run=None, scores=["vqa.json"])


def test_texts_of_a_tokenizer_are_not_taken_for_paths(made: Made, tmp_path: Path) -> None:
    merged = copied(made, "merged", tmp_path / "merged")
    texts = {"chat_template": "{{ 'say /no_think' }}", "added_tokens_decoder": {"7": {"content": "/"}}}
    change(merged / "tokenizer_config.json", tokenizer_file=str(tmp_path / "tokenizer.json"), **texts)
    release(made, tmp_path / "out", merged, run="run")
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert {name: written[name] for name in texts} == texts and written["tokenizer_file"] == "tokenizer.json"


def test_an_adapter_that_vllm_would_scale_otherwise_is_served_merged(made: Made, tmp_path: Path) -> None:
    assert read_adapter(made.folder / "run").unserved is None
    change(copied(made, "run", tmp_path / "run") / "adapter_config.json", alpha_pattern={"q_proj": 4})
    assert "several scales" in read_adapter(tmp_path / "run").unserved


def test_only_lora_is_released(made: Made, tmp_path: Path) -> None:
    config = copied(made, "run", tmp_path / "run") / "adapter_config.json"
    config.write_text('{"peft_type": "IA3"}')
    with pytest.raises(InputError, match="is no LoRA but IA3"):
        release(made, tmp_path / "out", tmp_path / "run")


def test_sources_of_the_published_data_have_their_terms(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.data, tmp_path / "data"))
    for split in ("train", "val", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        sources = pa.array(["SARDet-100K" if row % 2 else "SpaceNet6" for row in range(len(table))])
        table = table.set_column(table.schema.get_field_index("source"), "source", sources)
        pq.write_table(table, folder / f"{split}.parquet")
    score(tmp_path / "vqa.json", folder, made.folder / "base", made.folder / "run")
    card = release(made, tmp_path / "out", data=[made.data, folder], scores=[tmp_path / "vqa.json"])
    assert re.search(r"\| SARDet-100K \|.*\| CC BY-NC 4.0 \|", card)
    assert re.search(r"\| SpaceNet6 \|.*\| not stated: check before use \|", card)
    assert "SARLANG-1M, whose repository states no licence" in card and "**data** (not trained on)" in card
    front = ModelCard.load(tmp_path / "out/README.md").data
    assert front.datasets == ["YiminJimmy/SARLANG-1M"] and front.eval_results[0].dataset_type == front.datasets[0]


def test_a_base_model_of_the_hub_is_named_with_its_commit(made: Made, tmp_path: Path) -> None:
    run = copied(made, "run", tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())["facts"]
    options = facts["options"] | {"model_name_or_path": "some/base"}
    change(run / "run.json", facts=facts | {"base": "some/base@c0ffee", "options": options})
    card = release(made, tmp_path / "out", run)
    assert "[some/base](https://huggingface.co/some/base), commit `c0ffee`" in card
    assert ModelCard.load(tmp_path / "out/README.md").data.base_model == "some/base"
    assert 'AutoModelForImageTextToText.from_pretrained("some/base"' in card
    with pytest.raises(InputError, match="--base other/base: the base model was some/base"):
        release(made, tmp_path / "again", run, base="other/base")


def test_a_model_trained_in_full_is_its_own_run(made: Made, tmp_path: Path) -> None:
    train(made.folder / "base", made.data, tmp_path / "full", tuning="language_model")
    score(tmp_path / "vqa.json", made.data, tmp_path / "full", None)
    card = release(made, tmp_path / "out", tmp_path / "full", scores=[tmp_path / "vqa.json"])
    assert "tuned (`tuning: language_model`)" in card and "Merge check" not in card and "vllm serve out" in card


def test_changes_that_were_not_committed_are_told(made: Made, tmp_path: Path) -> None:
    run = copied(made, "run", tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())["facts"]
    change(run / "run.json", facts=facts | {"git": {"commit": "c0ffee", "dirty": True}})
    card = release(made, tmp_path / "out", run=run)
    assert "commit `c0ffee` **with changes that were not committed**" in card


def test_paths_are_shortened_and_addresses_are_not() -> None:
    told = {"/home/me/data": ["~/x/y.json", "see /srv/a b", "https://huggingface.co/a/b", "and/or", "a/b"], "n": 1}
    assert without_paths(told) == {
        "data": ["y.json", "see a b", "https://huggingface.co/a/b", "and/or", "a/b"],
        "n": 1,
    }


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as making a repository and one commit takes."""

    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines))
        address = f"http://{self.headers['Host']}/me/sar"
        answer: dict[str, Any] = {"url": address, "commitUrl": f"{address}/commit/{'1' * 40}"}
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            answer = {"files": files}
        if self.path.endswith("validate-yaml"):
            answer = {"errors": [], "warnings": []}
        text = json.dumps(answer | {"commitOid": "1" * 40}).encode()
        self.send_response(401 if self.headers["Authorization"] != "Bearer hf_right" else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_release_is_pushed_whole(made: Made, tmp_path: Path, hub: str) -> None:
    release(made, tmp_path / "out")
    push(tmp_path / "out", "me/sar", True, HfApi(endpoint=hub, token="hf_right"))
    asked = {path.split("?")[0].rpartition("/api/")[2]: lines for path, lines in Hub.asked}
    assert asked["repos/create"][0]["visibility"] == "private" and "validate-yaml" in asked
    pushed = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in asked["models/me/sar/commit/main"]
        if line["key"] == "file"
    }
    out = tmp_path / "out"
    assert pushed == {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_push_that_fails_says_how_to_go_on(
    made: Made, tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(made, tmp_path / "out")
    with pytest.raises(InputError, match=r"hf upload me/sar .*out`"):
        push(tmp_path / "out", "me/sar", True, HfApi(endpoint=hub, token="hf_wrong"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="hf auth login"):
        check_login("me/sar")
    with pytest.raises(InputError, match="is no name on the hub"):
        check_login("me/sar/qwen")
