"""What speaks against a release: what may be accepted with a reason that the card then tells, and what may not."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from sarlang_sft.adapter_updates import WEIGHTS
from sarlang_sft.backbones import find_backbone
from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import surely_differ
from sarlang_sft.loading import build_skeleton, stored_files
from sarlang_sft.release_facts import Release, Score, baseline_name
from sarlang_sft.release_origin import ADAPTER, MERGED
from sarlang_sft.run_files import FINISHED

SEPARATOR = ":"
# What may be accepted by its name, with a reason.
ACCEPTABLE = {
    "no_scores": "nothing says how good it is",
    "unknown_scores": "a score file does not say which answers it counts",
    "other_scores": "a score is of another model or adapter",
    "split": "a score is not on the split test",
    "data": "data that was trained or scored on is not given",
    "merge_check": "the merged model was not compared with the adapted one, or differs from it",
    "run": "the run is unknown, did not finish, or is not that of the adapter merged",
    "base": "nobody else can load the adapter's base model",
}


class Concern(NamedTuple):
    """Something that speaks against a release.

    Attributes:
        name: Of `ACCEPTABLE`.
        where: The option, or the score file.
    """

    name: str
    where: str | Path
    what: str
    way_out: str

    def __str__(self) -> str:
        """As a card tells it: the options of a command are nothing to its readers, and folders not their business."""
        return f"{self.where.name}: {self.what}" if isinstance(self.where, Path) else self.what


def find_concerns(release: Release) -> list[Concern]:
    """Everything that speaks against a release and can be accepted."""
    return [*_of_scores(release), *_of_data(release), *_of_merge(release), *_of_training(release)]


def _of_scores(release: Release) -> Iterator[Concern]:
    if not release.scores:
        score = "score its answers with eval/score_vqa.py or eval/score_caption.py"
        yield Concern("no_scores", "--scores", "there are no scores", score)
    for score in release.scores:
        if not score.origin or not score.settings.get("model_fingerprint"):
            answer = "answer again with eval/generate.py into a new folder, and score those answers"
            yield Concern("unknown_scores", score.path, "does not say which model's answers it counts", answer)
        elif problem := _other_model(release, score):
            yield Concern("other_scores", score.path, problem, "score the answers of the model to be released")
        split = score.origin.get("split", "test")
        if split != "test":
            yield Concern("split", score.path, f"is on the split {split}", "answer and score --split test")


def _other_model(release: Release, score: Score) -> str | None:
    model, adapter = score.settings["model_fingerprint"], score.settings.get("adapter_fingerprint")
    begun_with = release.training.facts["base"] if release.training else None
    if score.settings.get("exchange_images"):
        return "its answers are those of the blind baseline (--exchange_images)"
    if score.settings.get("without_images"):
        return "its answers are those of the text-only baseline (--without_images)"
    if (adapter or model) not in release.fingerprints:
        named = score.settings.get("adapter") or score.settings.get("model")
        return f"its answers are of another model ({Path(named).name})"
    if adapter and surely_differ(model, begun_with):
        return "its answers are of the adapter on another base model than the run's"
    return None


def _of_data(release: Release) -> Iterator[Concern]:
    given = {digest for data in release.data for digest in data.hashes.values()}
    for source in release.training.facts["data"] if release.training else []:
        if source["train.parquet"] not in given:
            what = f"the folder trained on ({Path(source['path']).name}) is not among those given"
            yield Concern("data", "--data", what, "give every data folder of the training, unchanged")
    for score in release.scores:
        if score.origin and score.origin.get("questions") not in given:
            yield Concern("data", score.path, "is on questions of another data folder", "give that one in --data")


def _of_merge(release: Release) -> Iterator[Concern]:
    if release.kind != MERGED:
        return
    where, report = f"--model {release.folder}", release.merge or {}
    again = "merge again with recipes/merge_adapter.py"
    difference, effect = report.get("max_abs_diff"), report.get("effect")
    if release.merge is None:
        yield Concern("merge_check", where, "no merge_report.json says how it was merged", again)
    elif difference is None or effect is None:
        yield Concern("merge_check", where, "its logits were not compared when merging", again)
    elif not (math.isfinite(difference) and effect > 0 and 2 * difference <= effect):
        what = f"merging changed the logits by {difference:.3g}, the adapter by {effect:.3g}"
        yield Concern("merge_check", where, what, f"{again} --dtype float32")


def _of_training(release: Release) -> Iterator[Concern]:
    if release.training is None:
        yield Concern("run", "--run", "how it was trained is not known", "name the output folder of its training")
    elif release.other_run:
        what = "the adapter merged is not the one that this run's folder holds: the recipe may be another's"
        yield Concern("run", "--run", what, "name the run of that adapter, or merge this one")
    elif release.training.state != FINISHED:
        what = f"its training did not finish ({release.training.state})"
        yield Concern("run", "--run", what, "start the same training again")
    if release.kind == ADAPTER and release.base.name is None:
        yield Concern(
            "base",
            "--base",
            "the adapter's base model lies in a folder that nobody else has",
            "give its name on the hub, or release the merged model",
        )


def accept(release: Release, accepted: list[str]) -> Release:
    """The release with what is accepted of its concerns.

    Args:
        accepted: `NAME: reason`, of `ACCEPTABLE`.

    Raises:
        InputError: Something speaks against the release that is not accepted, or what is accepted does not.
    """
    reasons = {}
    for option in accepted:
        name, _, reason = (part.strip() for part in option.partition(SEPARATOR))
        if name not in ACCEPTABLE or not reason:
            raise InputError(f"--accept {option!r}: write 'NAME: why', NAME one of {', '.join(ACCEPTABLE)}")
        reasons[name] = reason
    concerns = find_concerns(release)
    for name, where, what, way_out in concerns:
        if name not in reasons:
            raise InputError(f"{where}: {what}; {way_out}, or say --accept '{name}: why it is released all the same'")
    if idle := reasons.keys() - {concern.name for concern in concerns}:
        raise InputError(f"--accept {min(idle)}: there is nothing of this kind to accept; leave it out")
    for score in release.baselines:
        if baseline_name(release, score) is None:
            raise InputError(
                f"--baselines {score.path}: neither the base model's answers nor those of this model to exchanged "
                "images or to none (eval/generate.py --exchange_images or --without_images); answer with the base "
                "model as --run names it"
            )
    told = {name: "; ".join(str(concern) for concern in concerns if concern.name == name) for name in reasons}
    return replace(release, accepted={name: (what, reasons[name]) for name, what in told.items()})


def weight_files(release: Release) -> list[Path]:
    """The safetensors files of an adapter or model."""
    return [release.folder / WEIGHTS] if release.kind == ADAPTER else stored_files(release.folder)


def check_files(release: Release) -> None:
    """Read all weights; nothing else would notice a release that cannot be used, so that none of this is acceptable.

    Memory: one tensor at a time.

    Raises:
        InputError: A weight file is missing or torn, a tensor is missing or holds what is no number, or the generation
            config is missing.
    """
    if release.kind != ADAPTER:
        build_skeleton(str(release.folder), find_backbone(str(release.folder)))
        if not (release.folder / "generation_config.json").is_file():
            raise InputError(
                f"--model {release.folder}: generation_config.json is missing; copy the base model's into it"
            )
    for path in weight_files(release):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        raise InputError(f"{path}: {name} holds what is no number; release another checkpoint")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: is no whole safetensors file ({error}); write it again") from error
