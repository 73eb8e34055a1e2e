"""The model card of a release: what is known of it, as the hub shows it. Nothing stands there that no file says."""

import json
from collections import Counter
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.records import SPLITS
from sarlang_sft.release_facts import CAPTIONS, VQA, Data, Release, Score, baseline_name
from sarlang_sft.release_origin import ADAPTER, License
from sarlang_sft.run_facts import FREE_GROUPS, MEANS, NOTHING
from sarlang_sft.sarlang import SARDET, SARLANG_SOURCES, SIMULATED
from sarlang_sft.tuning import PLAIN, TuningArguments

SARLANG_ON_HUB = "YiminJimmy/SARLANG-1M"
NOT_STATED = "not stated: check before use"
DATA_LICENSES = {SARDET: "CC BY-NC 4.0", SIMULATED: "simulated by this project: no data of others"}
TASK_TYPES = {
    VQA: ("visual-question-answering", "Visual question answering"),
    CAPTIONS: ("image-to-text", "Captioning"),
}
METRICS = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}  # fmt: skip
PROTOCOL_MEANS = {
    "exact": "an answer counts if it names the same thing as the stored one, spelling evened out; no judge",
    "published": "the rule of SARLANG-1M's authors without its paid judge, whose share counts as wrong",
    "standard": "PTB tokens, one caption of an image and style against all of its references",
    "official": "the rule of SARLANG-1M's authors: every reference by itself, words split at blanks",
}
# Stands elsewhere in the card, or is filled in by the libraries.
NOT_OPTIONS = {
    "model_name_or_path", "data", "deepspeed", "seed", "max_steps", "num_train_epochs", "accelerator_config",
    "activation_checkpointing", "eos_token", "pad_token", "pad_to_multiple_of",
}  # fmt: skip


def write_card(release: Release, path: Path) -> None:
    """Write the card; raises `ValueError` if its front matter is none that the hub's library reads back."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {function.__name__: function for function in (cell, share, python, grouped)}
    front = card_data(release)
    body = environment.get_template("model_card.md.j2").render(
        release=release,
        front=front,
        options=changed_options(release),
        scores=[
            {"score": score, "baselines": baselines, "unseen": unseen_tasks(score, baselines)}
            for score in release.scores
            for baselines in [_baselines_of(release, score)]
        ],
        sources=images_by_source(release),
        folders=[
            {"data": data, "rows": count_rows(data), "sources": trained_on(release, data)} for data in release.data
        ],
        taught=taught_tasks(release),
        resolutions=sum((Counter(data.resolutions) for data in release.data), Counter()),
        data_licenses=licenses_of_data(release),
        not_stated=NOT_STATED,
        sarlang=_has_sarlang(release),
        splits=SPLITS,
        metrics=METRICS,
        protocol_means=PROTOCOL_MEANS,
        question=release.data[0].question,
        base_id=base_id(release),
        tuned_id=release.name,
        zero=_zero_stage(release),
    )
    path.write_text(f"---\n{front.to_yaml()}\n---\n\n{body}", encoding="utf-8")
    ModelCard.load(path)


def card_data(release: Release) -> ModelCardData:
    """The front matter; of what is not known, nothing stands there."""
    license = (License(release.license) if release.license else release.base.license) or License("other")
    return ModelCardData(
        base_model=release.base.name,
        base_model_relation=("adapter" if release.kind == ADAPTER else "finetune") if release.base.name else None,
        library_name="peft" if release.kind == ADAPTER else "transformers",
        pipeline_tag="image-text-to-text",
        license=license.id,
        license_name=license.name or ("not-stated" if license.id == "other" else None),
        license_link=license.link,
        datasets=[SARLANG_ON_HUB] if _has_sarlang(release) else None,
        tags=["sar", "radar", "remote-sensing", "vision-language", *(["lora"] if release.kind == ADAPTER else [])],
        model_name=release.name.rpartition("/")[2],
        eval_results=[result for score in release.scores for result in eval_results(release, score)] or None,
    )


def eval_results(release: Release, score: Score) -> list[EvalResult]:
    """A score as the hub's model index has it: accuracies in percent, measures of captions as they are."""
    kind, title = TASK_TYPES[score.kind]
    [data] = [one for one in release.data if score.origin.get("questions") in one.hashes.values()][:1] or [None]
    name = ", ".join(sorted(data.sources)) if data else "unknown"
    protocol = score.result["protocol"]
    values = {"accuracy": ("VQA accuracy", round(100 * score.result["overall"]["value"], 2))}
    if score.kind == CAPTIONS:
        values = {key: (METRICS[key], round(value, 4)) for key, value in score.result["metrics"].items()}
    return [
        EvalResult(
            task_type=kind,
            task_name=title,
            dataset_type=SARLANG_ON_HUB if data and SARLANG_SOURCES & data.sources.keys() else name,
            dataset_name=name,
            dataset_split=score.origin.get("split"),
            metric_type=metric,
            metric_name=f"{shown} (protocol {protocol})",
            metric_value=value,
            metric_config=protocol,
        )
        for metric, (shown, value) in values.items()
    ]


def changed_options(release: Release) -> dict[str, Any]:
    """The options of the training that are not the defaults and matter for what is learned."""
    if release.training is None:
        return {}
    defaults: dict[str, Any] = {}
    for arguments in (ModelArguments, TuningArguments, DataArguments, TrainArguments):
        for field in fields(arguments):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            defaults[field.name] = default.value if isinstance(default, Enum) else default
    defaults |= PLAIN
    return {
        name: value
        for name, value in release.training.facts["options"].items()
        if name in defaults
        and value != defaults[name]
        and name not in NOT_OPTIONS
        and not name.startswith(FREE_GROUPS)
        and (MEANS.get(name) != NOTHING or name == "tuning")
    }


def images_by_source(release: Release) -> dict[str, dict[str, int]]:
    """Images by where they come from and split, over all data folders."""
    names = sorted({source for data in release.data for source in data.sources})
    return {
        name: {split: sum(data.sources.get(name, {}).get(split, 0) for data in release.data) for split in SPLITS}
        for name in names
    }


def count_rows(data: Data) -> list[tuple[str, str, dict[str, int]]]:
    """Subset, task, and dialogues by split."""
    counts = data.manifest["counts"]
    pairs = dict.fromkeys(
        (subset, task) for subsets in counts.values() for subset, tasks in subsets.items() for task in tasks
    )
    return [
        (subset, task, {split: counts.get(split, {}).get(subset, {}).get(task, 0) for split in SPLITS})
        for subset, task in pairs
    ]


def trained_on(release: Release, data: Data) -> list[dict[str, Any]]:
    """How the training took from a data folder: `weight`, `tasks`, `subsets` and `caps`; nothing if it did not."""
    sources = release.training.facts["data"] if release.training else []
    return [source for source in sources if source["train.parquet"] == data.hashes.get("train.parquet")]


def taught_tasks(release: Release) -> list[str]:
    """Tasks of the data that was trained on."""
    rows = [(row, source) for data in release.data for source in trained_on(release, data) for row in count_rows(data)]
    return list(dict.fromkeys(task for (_, task, counts), source in rows if counts["train"] and _takes(source, task)))


def _takes(source: dict[str, Any], task: str) -> bool:
    return not source["tasks"] or task in source["tasks"]


def licenses_of_data(release: Release) -> dict[str, str]:
    """The licence of every source, as the user states it or as it is known."""
    known = DATA_LICENSES | release.data_licenses
    return {source: known.get(source, NOT_STATED) for source in images_by_source(release)}


def base_id(release: Release) -> str:
    """What to call the base model in commands: its name on the hub, or that of the folder it was trained from."""
    return release.base.name or Path(release.base.path).name or "BASE_MODEL"


def _has_sarlang(release: Release) -> bool:
    return bool(SARLANG_SOURCES & images_by_source(release).keys())


def _baselines_of(release: Release, score: Score) -> dict[str, Score]:
    """Baselines on the same questions by the same protocol."""
    return {
        baseline_name(release, other): other
        for other in release.baselines
        if other.result["protocol"] == score.result["protocol"]
        and other.origin.get("questions") == score.origin.get("questions")
    }


def unseen_tasks(score: Score, baselines: dict[str, Score]) -> list[str]:
    """Tasks on which the model is not surely better than blind: their intervals overlap."""
    blind = baselines["blind"].result["by_task"] if "blind" in baselines else {}
    tasks = score.result["by_task"]
    return [task for task, entry in tasks.items() if task in blind and entry["low"] <= blind[task]["high"]]


def _zero_stage(release: Release) -> str | None:
    config = release.training.facts.get("deepspeed") if release.training else None
    return f"ZeRO-{config.get('zero_optimization', {}).get('stage', 0)}" if config else None


def cell(value: Any) -> str:
    """A value in a cell of a table, or in a line: nothing in it is taken for Markdown or HTML."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{sign}" if sign in "\\|`*_[]" else sign for sign in text)


def share(entry: dict[str, float]) -> str:
    """A share in percent with its interval: `71.5 (69.7-73.1)`."""
    return f"{100 * entry['value']:.1f} ({100 * entry['low']:.1f}-{100 * entry['high']:.1f})"


def python(text: str) -> str:
    """A text as Python writes it."""
    return json.dumps(text, ensure_ascii=False)


def grouped(number: float) -> str:
    """A whole number with its thousands set off."""
    return f"{number:,}"
