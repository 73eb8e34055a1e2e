"""What a run is made of, and what of it may differ when the run goes on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.environment import git_state, versions
from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.records import SHARD_INDEX, file_hash, image_root_of, open_split
from sarlang_sft.tuning import TuningArguments

Facts = dict[str, Any]

NOTHING = "changes nothing that is learned"
ROUNDING = "the result is equal up to rounding"
DROPOUT = f"{ROUNDING}; dropout is drawn anew"
SCHEDULE = "the learning rate's schedule and the order of the rows to come follow the new length"
ONWARDS = "holds from here on"
OTHER_SCORES = "scores on val are not those of before"
RESULT = "learning goes on the same; it decides which step is the result"
SAME_IMAGES = "nothing that is learned, if the same images lie there: that is not compared"
WITHOUT_EFFECT = """
    output_dir run_name project report_to disable_tqdm per_device_eval_batch_size prediction_loss_only push_to_hub
    dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataset_num_proc ddp_timeout debug
    skip_memory_metrics do_train do_eval do_predict local_rank resume max_hours max_bad_images
    include_num_input_tokens_seen model_name_or_path data deepspeed tuning rendezvous_timeout global_batch_size
    dataloader_multiprocessing_context weights bf16_full_eval fp16_full_eval batch_eval_metrics include_for_metrics
"""  # model, data and deepspeed are compared by what they hold, the batch by the rows of a step
WITHIN_ROUNDING = """
    gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
    checkpointed activation_offloading attn_implementation torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps tf32 ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_find_unused_parameters micro_batch_size
"""
MEANS = {
    **dict.fromkeys(WITHOUT_EFFECT.split(), NOTHING),
    **dict.fromkeys(WITHIN_ROUNDING.split(), ROUNDING),
    **dict.fromkeys(["use_cpu", "per_device_train_batch_size", "gradient_accumulation_steps"], DROPOUT),
    **dict.fromkeys(["max_steps", "num_train_epochs"], SCHEDULE),
    **dict.fromkeys(["val_questions", "val_max_new_tokens"], OTHER_SCORES),
    "max_grad_norm": ONWARDS,
    "load_best_model_at_end": RESULT,
    "image_root": SAME_IMAGES,
    "shard_cache": NOTHING,
    "shard_cache_gb": NOTHING,
}
OF_A_HOST = """
    data model_name_or_path weights image_root shard_cache shard_cache_gb deepspeed output_dir run_name project
    report_to resume local_rank disable_tqdm log_level log_level_replica rendezvous_timeout dataset_num_proc
    dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
"""  # which ranks may give otherwise; paths are compared by what they hold
DATA_FILES = ("manifest.json", "train.parquet", "val.parquet", SHARD_INDEX)
ELSEWHERE = {"path", "image_root", "shard_cache", "shard_cache_gb", "val.parquet", "manifest.json", SHARD_INDEX}
LEARNS_FROM_SCORES = ("reduce_lr_on_plateau", "greedy")  # kinds of lr_scheduler_type
FREE_GROUPS = ("logging_", "log_", "eval_", "val_", "save_", "hub_", "trackio_", "tiny_", "sample_")


class Source(Protocol):
    """A data folder of a training, a dataclass: what is taken of it, and where its images lie."""

    path: str
    image_root: str | None

    @property
    def folder(self) -> Path:
        """The data folder."""


class Difference(NamedTuple):
    """Something that is not what it was.

    Attributes:
        means: What follows if the run goes on all the same; None if it must not.
        way_out: Said of what must not differ.
    """

    name: str
    was: Any
    now: Any
    means: str | None
    way_out: str = "set it back"

    def __str__(self) -> str:
        changed = f"{self.name}: {self.was} then, {self.now} now"
        return f"{changed} ({self.means or self.way_out})"


def collect_facts(
    model: ModelArguments, tuning: TuningArguments, data: DataArguments, training: TrainArguments
) -> Facts:
    """What a run is made of, as JSON: options, fingerprints of base model and data, ranks, versions, git state.

    Raises:
        InputError: A data folder, its images or the model cannot be found.
    """
    options = {**asdict(model), **asdict(tuning), **asdict(data), **training.to_dict()}
    return make_facts(options, base_fingerprint(model.model_name_or_path), data.sources(), training)


def make_facts(options: Facts, base: str, sources: Sequence[Source], training: TrainArguments) -> Facts:
    """[`collect_facts`] of any kind of training.

    Args:
        options: All of them, with `model_name_or_path`.
        base: Tells the model that it begins with from any other.
        sources: The data folders, each with what is taken of it.

    Raises:
        InputError: A data folder, or its images, cannot be found.
    """
    for source in sources:
        image_root_of(source.folder, source.image_root)
        with open_split(source.folder, "train", ["dialogues"]):
            pass
    facts = {
        "options": options,
        "base": base,
        "data": [
            {
                **asdict(source),
                **{
                    path.name: file_hash(path) if path.is_file() else None
                    for path in (source.folder / name for name in DATA_FILES)
                },
            }
            for source in sources
        ],
        "world_size": training.world_size,
        "rows_per_step": rows_per_step(training),
        "deepspeed": training.hf_deepspeed_config.config if training.hf_deepspeed_config else None,
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
    }
    return json.loads(json.dumps(facts, default=str))


def rows_per_step(training: TrainArguments) -> int:
    """Rows of one step of the optimiser over all ranks."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size


def find_differences(was: Facts, now: Facts) -> list[Difference]:
    """Everything that differs between two runs' facts, what must not differ first."""
    found = [*_of_base_and_data(was, now), *_of_ranks(was, now), *_of_options(was, now)]
    for name, version in now["versions"].items():
        if was["versions"].get(name) != version:
            found.append(Difference(name, was["versions"].get(name), version, "results may differ"))
    return sorted(found, key=lambda difference: difference.means is not None)


def check_alike(facts: list[Facts], hosts: list[str]) -> None:
    """Raise [`InputError`] if a rank begins with another model, other data or other options than rank 0.

    Paths may differ where what they hold is the same. When to save, to log or to evaluate must not: whoever does so
    waits for all ranks.

    Args:
        facts: Of every rank, as its host read them.
    """
    for rank, (other, host) in enumerate(zip(facts, hosts, strict=True)):
        found = [one for one in _of_base_and_data(facts[0], other) if one.means != SAME_IMAGES]
        told = [f"{one.name} {one.now} (not {one.was})" for one in found]
        for name, ours in facts[0]["options"].items():
            if name not in OF_A_HOST.split() and other["options"][name] != ours:
                told.append(f"{name} {other['options'][name]!r} (not {ours!r})")
        for ours, theirs in zip(facts[0]["data"], other["data"], strict=False):
            if ours["manifest.json"] != theirs["manifest.json"]:
                told.append(f"another {theirs['path']}/manifest.json")
        if facts[0]["deepspeed"] != other["deepspeed"]:
            told.append("another deepspeed configuration")
        if told:
            raise InputError(
                f"rank {rank} on {host} has {'; '.join(told)}, unlike rank 0 on {hosts[0]}; start the same command, "
                "with the same files, on all nodes"
            )


def _of_base_and_data(was: Facts, now: Facts) -> Iterator[Difference]:
    if was["base"] != now["base"]:
        names = (facts["options"]["model_name_or_path"] for facts in (was, now))
        yield Difference("base model", *names, None, "its files are not the same: give the model that it began with")
    then, here = was["data"], now["data"]
    if len(then) != len(here):
        yield Difference("data", f"{len(then)} folders", f"{len(here)} folders", None)
    for old, new in zip(then, here, strict=False):
        for name in sorted(new.keys() - ELSEWHERE):
            if old.get(name) != new[name]:
                shown = [value[:12] if name == "train.parquet" else value for value in (old.get(name), new[name])]
                yield Difference(f"data {new['path']}: {name}", *shown, None, "the order of learning depends on it")
        if old["val.parquet"] != new["val.parquet"]:
            shown = [str(value)[:12] for value in (old["val.parquet"], new["val.parquet"])]
            yield Difference(f"data {new['path']}: val.parquet", *shown, OTHER_SCORES)
        if old["manifest.json"] != new["manifest.json"] or old["image_root"] != new["image_root"]:
            shown = [f"{item['image_root'] or 'its own'}, {str(item['manifest.json'])[:12]}" for item in (old, new)]
            yield Difference(f"data {new['path']}: image_root and manifest.json", *shown, SAME_IMAGES)


def _of_ranks(was: Facts, now: Facts) -> Iterator[Difference]:
    stages = [_zero_stage(facts["deepspeed"]) for facts in (was, now)]
    if stages[0] != stages[1]:
        yield Difference("deepspeed", *stages, None, "the optimiser's state is kept otherwise")
    elif was["deepspeed"] != now["deepspeed"]:
        yield Difference("deepspeed", "one configuration", "another", ROUNDING)
    if was["rows_per_step"] != now["rows_per_step"]:
        yield Difference(
            "rows per step", was["rows_per_step"], now["rows_per_step"], None,
            "keep processes x per_device_train_batch_size x gradient_accumulation_steps, as global_batch_size does",
        )  # fmt: skip
    if was["world_size"] != now["world_size"]:
        cut = now["deepspeed"] is not None
        dealt = any(source.get(SHARD_INDEX) for source in now["data"])
        yield Difference(
            "processes", was["world_size"], now["world_size"], None if cut or dealt else DROPOUT,
            "DeepSpeed has cut the optimiser's state for as many" if cut else "shards are dealt to as many",
        )  # fmt: skip


def _zero_stage(config: dict[str, Any] | None) -> str:
    return "off" if config is None else f"ZeRO-{config.get('zero_optimization', {}).get('stage', 0)}"


def _of_options(was: Facts, now: Facts) -> Iterator[Difference]:
    then, here = was["options"], now["options"]
    by_scores = here["lr_scheduler_type"] in LEARNS_FROM_SCORES
    for name in here:
        if name in then and then[name] != here[name]:
            means = MEANS.get(name, NOTHING if name.startswith(FREE_GROUPS) else None)
            if by_scores and name.startswith(("eval_", "val_")) and name != "val_batch_size":
                means = f"{ONWARDS}; the learning rate follows the scores on val"
            yield Difference(name, repr(then[name]), repr(here[name]), means)
