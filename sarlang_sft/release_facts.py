"""What is known of a model that is to be released, all of it read from the disk."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import base_fingerprint, surely_differ
from sarlang_sft.imagery import load_ops
from sarlang_sft.records import SPLITS, file_hash, open_split, read_manifest, read_records
from sarlang_sft.release import REPORT
from sarlang_sft.release_origin import (
    ADAPTER,
    MERGED,
    Adapter,
    Base,
    Training,
    kind_of,
    read_adapter,
    read_base,
    read_training,
)
from sarlang_sft.run_files import RUN
from sarlang_sft.scoring.predictions import CAPTION_TASK, read_json

VQA, CAPTIONS = "vqa", "captions"
PROTOCOLS = {"exact": VQA, "published": VQA, "judge": VQA, "standard": CAPTIONS, "official": CAPTIONS}


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
        fingerprints: That scores of it may name: its own, and that of the adapter merged into it.
        other_run: Whether the run's adapter is none of those merged.
        accepted: What speaks against the release, and why it is released all the same.
    """

    name: str
    folder: Path
    kind: str
    fingerprints: set[str]
    other_run: bool
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
    """What merging reported; None if nothing. Raises [`InputError`] if it is no report."""
    if not (folder / REPORT).is_file():
        return None
    report = read_json(folder / REPORT)
    if not report.keys() >= {"base", "base_fingerprint", "adapters", "adapter_fingerprints", "weights"}:
        raise InputError(f"{folder / REPORT}: is no report of recipes/merge_adapter.py of this version; merge again")
    return report


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
    baselines: list[Path], license: str | None, data_licenses: list[str],
) -> Release:  # fmt: skip
    """Read everything that is known of a model.

    Args:
        run: Output folder of its training; None looks in the model's own folder, or in that of the adapter merged.
        data_licenses: `SOURCE: LICENCE` each.

    Raises:
        InputError: A file is missing or is not what it should be.
    """
    kind = kind_of(model)
    if run and not (run / RUN).is_file():
        raise InputError(f"--run {run}: no run there ({RUN} is missing)")
    adapter = read_adapter(model) if kind == ADAPTER else None
    merge = read_merge(model) if kind == MERGED else None
    sole = _sole_adapter(merge)
    training = read_training(run or (sole if kind == MERGED else model))
    if training and merge and surely_differ(training.facts["base"], merge.get("base_fingerprint")):
        raise InputError(f"--run {run}: began with another base model than the one merged; name the adapter's run")
    folders = [read_data(folder) for folder in data]
    trained_to = base_fingerprint(str(run or sole)) if kind == MERGED and (run or sole) else None
    answering = {base_fingerprint(str(model))}
    if kind == MERGED and not _is_blend(merge):  # what was merged, not what its folder holds by now
        answering |= set(merge["adapter_fingerprints"]) if merge else {trained_to} - {None}
    return Release(
        name=name,
        folder=model,
        kind=kind,
        fingerprints=answering,
        other_run=bool(trained_to and merge and trained_to not in merge["adapter_fingerprints"]),
        adapter=adapter,
        base=read_base(base, training, merge, adapter),
        training=training,
        merge=merge,
        image_ops=load_ops(model),
        processor=read_processor(model),
        data=folders,
        scores=[read_score(path) for path in scores],
        baselines=[read_score(path) for path in baselines],
        license=license,
        data_licenses=_stated(data_licenses, folders),
        accepted={},
    )


def _is_blend(merge: dict[str, Any] | None) -> bool:
    """Whether a merged model answers as none of its adapters does by itself."""
    return (merge or {}).get("weights", [1.0]) != [1.0]


def _sole_adapter(merge: dict[str, Any] | None) -> Path | None:
    """The adapter that a merged model is, if it is made of one and that is still there."""
    adapters = (merge or {}).get("adapters") or []
    folder = Path(adapters[0]) if len(adapters) == 1 else None
    return folder if folder and (folder / "adapter_config.json").is_file() else None


def _stated(licenses: list[str], data: list[Data]) -> dict[str, str]:
    sources = {source for folder in data for source in folder.sources}
    found = {}
    for option in licenses:
        source, _, license = (part.strip() for part in option.partition(":"))
        if source not in sources or not license:
            raise InputError(f"--data_license {option!r}: write 'SOURCE: LICENCE', SOURCE one of {', '.join(sources)}")
        found[source] = license
    return found


def baseline_name(release: Release, score: Score) -> str | None:
    """What a baseline is: `base model`, or `blind`: the model itself with the images exchanged; None if neither."""
    settings = score.settings
    tuned = {settings.get("model_fingerprint"), settings.get("adapter_fingerprint")} & release.fingerprints
    if settings.get("exchange_images"):
        return "blind" if tuned else None
    begun_with = release.training.facts["base"] if release.training else None
    answered = settings.get("model_fingerprint")
    # One of the hub and one of a folder cannot be compared: then its name must be the base model's.
    named = answered and not surely_differ(answered, begun_with) and answered.rpartition("@")[0] == release.base.name
    same = answered and begun_with and not tuned and (answered == begun_with or named)
    return "base model" if same and settings.get("adapter_fingerprint") is None else None
