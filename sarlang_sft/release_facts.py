"""What is known of a model that is to be released, all of it read from the disk."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.imagery import load_ops
from sarlang_sft.records import SPLITS, file_hash, open_split, read_manifest, read_records
from sarlang_sft.release import REPORT
from sarlang_sft.scoring.predictions import CAPTION_TASK, read_json
from sarlang_sft.trainable import own_name

ADAPTER, MERGED, TRAINED = "adapter", "merged", "trained"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RUN, STATE = "run.json", "trainer_state.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
VQA, CAPTIONS = "vqa", "captions"
PROTOCOLS = {"exact": VQA, "published": VQA, "standard": CAPTIONS, "official": CAPTIONS}
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank
_LANGUAGE_MODEL = tuple(
    f"{prefix}." for backbone in BACKBONES.values() for prefix in backbone.components["language_model"]
)


class Adapter(NamedTuple):
    """An adapter's kind, and why vLLM cannot apply it (None if it can)."""

    config: dict[str, Any]
    tensors: int
    unserved: str | None

    @property
    def served_rank(self) -> int:
        """The smallest --max-lora-rank of vLLM that holds it."""
        return min(rank for rank in SERVED_RANKS if rank >= self.config["r"])


class Training(NamedTuple):
    """A run: its `state`, what it is made of, and how far it came (`global_step` and `epoch`, None if unknown)."""

    state: str
    facts: dict[str, Any]
    steps: int | None
    epochs: float | None


class Base(NamedTuple):
    """The base model: its name on the hub and commit there, the fingerprint of local files, its licence; or None."""

    name: str | None
    commit: str | None
    fingerprint: str | None
    license: str | None


class Data(NamedTuple):
    """A data folder.

    Attributes:
        hashes: SHA-256 of its files by name.
        sources: Images by source and split.
        resolutions: Images by metres per pixel, None where that is not recorded.
        question: The first question of the split test (of train, where test has none), in the words of training.
    """

    folder: Path
    manifest: dict[str, Any]
    hashes: dict[str, str]
    sources: dict[str, dict[str, int]]
    resolutions: dict[float | None, int]
    question: str


class Score(NamedTuple):
    """A score file."""

    path: Path
    result: dict[str, Any]

    @property
    def kind(self) -> str:
        """`vqa` or `captions`."""
        return PROTOCOLS[self.result["protocol"]]

    @property
    def origin(self) -> dict[str, Any]:
        """What it is made from; empty where that was not recorded."""
        return self.result.get("made_from") or {}

    @property
    def settings(self) -> dict[str, Any]:
        """How the answers were made; empty where that was not recorded."""
        return self.origin.get("settings") or {}


@dataclass(frozen=True)
class Release:
    """A model to be released: where it lies, what it is, and everything that is known of it.

    Attributes:
        name: What its users will call it: the hub's `user/repo`, or the folder's name.
        kind: `adapter`, `merged` (from base and adapters) or `trained` (in full).
        fingerprints: That scores of it may name: its own, and those of the adapters it is merged from.
        accepted: What speaks against the release, and why it is released all the same.
    """

    name: str
    folder: Path
    kind: str
    fingerprints: set[str]
    adapter: Adapter | None
    base: Base
    training: Training | None
    merge: dict[str, Any] | None
    image_ops: list[str]
    processor: dict[str, Any]
    data: list[Data]
    scores: list[Score]
    baselines: list[Score]
    license: str | None
    data_licenses: dict[str, str]
    accepted: dict[str, tuple[str, str]]


def kind_of(folder: Path) -> str:
    """`adapter`, `merged` or `trained`; raises [`InputError`] if there is no model."""
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {folder}: no model there (neither config.json nor adapter_config.json)")
    return TRAINED if (folder / RUN).is_file() else MERGED


def read_adapter(folder: Path) -> Adapter:
    """An adapter's configuration and its tensors' names; raises [`InputError`] where they cannot be read."""
    config = read_json(folder / "adapter_config.json")
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            names = [own_name(name) for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError) as error:
        raise InputError(f"--model {folder}: {ADAPTER_WEIGHTS} cannot be read ({error})") from error
    outside = [name for name in names if not name.startswith(_LANGUAGE_MODEL)]
    reasons = [
        (outside, f"{len(outside)} of its {len(names)} tensors lie outside the language model (such as {{}})"),
        ([name for name in names if ".lora_" not in name], "it holds weights trained in full (such as {})"),
        ([config["peft_type"]] * (config["peft_type"] != "LORA"), "it is no LoRA but {}"),
        (["DoRA"] * bool(config.get("use_dora")), "it is a {}"),
        (list(config.get("rank_pattern") or {}), "its layers have several ranks"),
        ([str(config["r"])] * (config["r"] > SERVED_RANKS[-1]), "its rank {} is above vLLM's largest"),
    ]
    unserved = next((reason.format(found[0]) for found, reason in reasons if found), None)
    return Adapter(config, len(names), unserved)


def read_training(folder: Path | None) -> Training | None:
    """The run in an output folder; None if there is none."""
    if folder is None or not (folder / RUN).is_file():
        return None
    run = read_json(folder / RUN)
    if not run.keys() >= {"state", "facts"} or not run["facts"].keys() >= {"options", "base", "data", "versions"}:
        raise InputError(f"{folder / RUN}: is no run's file")
    state = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    return Training(run["state"], run["facts"], state.get("global_step"), state.get("epoch"))


def read_base(named: str | None, training: Training | None, adapter: Adapter | None) -> Base:
    """The base model as the run recorded it, or as the adapter names it.

    Args:
        named: Its name on the hub, as the user states it.

    Raises:
        InputError: The run began with another model of the hub.
    """
    recorded = training.facts["base"] if training else None
    name, _, commit = (recorded or "").rpartition("@")
    if named and name and named != name:
        raise InputError(f"--base {named}: the run began with {name}; leave --base out")
    path = training.facts["options"]["model_name_or_path"] if training else ""
    if adapter and not training:
        path = adapter.config.get("base_model_name_or_path") or ""
        name = path if HUB_NAME.fullmatch(path) and not Path(path).is_dir() else ""
    name = named or name or None
    local = recorded if recorded and "@" not in recorded else None
    return Base(name, commit if not local and commit else None, local, _license_of(path, name))


def _license_of(path: str, name: str | None) -> str | None:
    """The licence in the base model's own card, in its folder or in the hub's cache."""
    beside = str(Path(path) / "README.md") if path else None
    cached = try_to_load_from_cache(name, "README.md") if name else None
    for card in (beside, cached):
        if isinstance(card, str) and Path(card).is_file():
            stated = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
            if isinstance(stated, str):
                return stated
    return None


def read_data(folder: Path) -> Data:
    """Everything a card says of a data folder."""
    manifest = read_manifest(folder)
    names = ["manifest.json", *(f"{split}.parquet" for split in SPLITS)]
    sources: dict[str, Counter] = {}
    resolutions: Counter = Counter()
    for split in SPLITS:
        with open_split(folder, split, ["source", "resolution_m"]) as file:
            table = file.read(columns=["source", "resolution_m"]).to_pydict()
        for source in table["source"]:
            sources.setdefault(source, Counter())[split] += 1
        resolutions.update(table["resolution_m"])
    hashes = {name: file_hash(folder / name) for name in names if (folder / name).is_file()}
    return Data(folder, manifest, hashes, sources, resolutions, _first_question(folder))


def _first_question(data: Path) -> str:
    captions = []
    for split in ("test", "train"):
        for record in read_records(data, split):
            for dialogue in record.dialogues:
                question = dialogue.turns[0].question
                if dialogue.task != CAPTION_TASK and "<box:" not in question:
                    return question
                captions.append(question)
    return captions[0]


def read_score(path: Path) -> Score:
    """A file of eval/score_vqa.py or eval/score_caption.py; raises [`InputError`] if it is none."""
    result = read_json(path)
    if result.get("protocol") not in PROTOCOLS or not result.keys() >= {"n", "answered", "overall", "by_task"}:
        raise InputError(f"{path}: is no score file of eval/score_vqa.py or eval/score_caption.py")
    return Score(path, result)


def read_merge(folder: Path) -> dict[str, Any] | None:
    """What merging reported; None if nothing."""
    return read_json(folder / REPORT) if (folder / REPORT).is_file() else None


def read_processor(folder: Path) -> dict[str, Any]:
    """The image processor's configuration; raises [`InputError`] if there is none."""
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if (folder / name).is_file():
            config = read_json(folder / name)
            config = config.get(key) if key else config
            if config:
                return config
    raise InputError(
        f"--model {folder}: no image processor (processor_config.json or preprocessor_config.json); copy those of the "
        "training into it"
    )


def collect(
    model: Path, name: str, run: Path | None, base: str | None, data: list[Path], scores: list[Path],
    baselines: list[Path], license: str | None, data_licenses: dict[str, str],
) -> Release:  # fmt: skip
    """Read everything that is known of a model.

    Args:
        run: Output folder of its training; None looks in the model's own folder.

    Raises:
        InputError: A file is missing or is not what it should be.
    """
    kind = kind_of(model)
    own_run = run or (model if kind != MERGED else None)
    if run and not (run / RUN).is_file():
        raise InputError(f"--run {run}: no run there ({RUN} is missing)")
    adapter = read_adapter(model) if kind == ADAPTER else None
    training = read_training(own_run)
    merged_from = run if kind == MERGED and run and kind_of(run) == ADAPTER else None
    return Release(
        name=name,
        folder=model,
        kind=kind,
        fingerprints={base_fingerprint(str(folder)) for folder in (model, merged_from) if folder},
        adapter=adapter,
        base=read_base(base, training, adapter),
        training=training,
        merge=read_merge(model) if kind == MERGED else None,
        image_ops=load_ops(model),
        processor=read_processor(model),
        data=[read_data(folder) for folder in data],
        scores=[read_score(path) for path in scores],
        baselines=[read_score(path) for path in baselines],
        license=license,
        data_licenses=data_licenses,
        accepted={},
    )


def baseline_name(release: Release, score: Score) -> str | None:
    """What a baseline is: `base model`, or `blind`: the model itself with the images exchanged; None if neither."""
    settings = score.settings
    tuned = {settings.get("model_fingerprint"), settings.get("adapter_fingerprint")} & release.fingerprints
    if settings.get("exchange_images"):
        return "blind" if tuned else None
    begun_with = release.training.facts["base"] if release.training else None
    untuned = settings.get("adapter_fingerprint") is None and settings.get("model_fingerprint") == begun_with
    return "base model" if untuned and begun_with else None


def dump(content: Any) -> str:
    """JSON as it is published."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
