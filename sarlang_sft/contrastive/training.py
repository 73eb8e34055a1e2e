"""A contrastive training assembled: the model with its run, its pairs, its trainer, and what is saved at the end."""

import gc
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from transformers import set_seed

from sarlang_sft.bad_images import forget_bad_images
from sarlang_sft.checkpoints import told_what_is_left
from sarlang_sft.contrastive.arguments import PairDataArguments, PairTrainArguments, Stage
from sarlang_sft.contrastive.batches import EpochPairs, PairCollator
from sarlang_sft.contrastive.features import tell_cut_texts
from sarlang_sft.contrastive.models import ContrastiveModel, load_model, model_fingerprint, save_model
from sarlang_sft.contrastive.pairs import Pairs, merge_pairs, read_pairs
from sarlang_sft.contrastive.trainer import PairRunTrainer, Towers
from sarlang_sft.contrastive.tuning import count_parameters, merge, tune
from sarlang_sft.errors import InputError
from sarlang_sft.loader_workers import start_worker_server
from sarlang_sft.run_facts import make_facts
from sarlang_sft.runs import Run, enter_run
from sarlang_sft.signals import leave_at_once
from sarlang_sft.tracking import add_tracker
from sarlang_sft.training import leave_if_stopped, note_finished, say_finished

ADAPTER = "adapter"  # in the output folder


def train_stage(stage: Stage) -> None:
    """Train a stage, or the rest of it; nothing if it is finished.

    Ends the program with exit code 75 if it was stopped on request.

    Raises:
        InputError: The model, the data or the options cannot be used.
    """
    model, tuning, data, training = stage.model, stage.tuning, stage.data, stage.training
    leave_at_once(lambda: None)  # a finished stage before this one has ignored signals
    if Path(model.model_name_or_path).resolve() == Path(training.output_dir).resolve():
        raise InputError(f"output_dir {training.output_dir}: is the model to start from; choose another one")
    base = model_fingerprint(model.model_name_or_path, model.weights)
    options = {**asdict(model), **asdict(tuning), **asdict(data), **training.to_dict()}
    run = enter_run(make_facts(options, base, data.sources(), training), training)
    if run is None:
        return
    pairs = read_split(data, "train")
    if run.ranks.first:
        print(describe_epoch(pairs, data, training), flush=True)
    set_seed(training.seed)  # of random weights, and of adapters
    contrastive = load_model(
        model.model_name_or_path,
        model.weights,
        image_size=model.image_size,
        resize_mode=model.resize_mode,
        image_ops=data.image_ops,
    )
    check_captions(contrastive, model.model_name_or_path, training)
    if training.process_index == 0:
        tell_cut_texts(contrastive, pairs.texts, "train")
    adapters = tune(contrastive, tuning)
    trainer = build_trainer(contrastive, pairs, data, training, run)
    result = trainer.train()
    leave_if_stopped(trainer)
    save_result(trainer, adapters, result.metrics)
    del trainer, contrastive, adapters
    gc.collect()  # before the next stage loads its model
    torch.cuda.empty_cache()


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise [`InputError`] if the data of any stage cannot be used, before the first one trains."""
    for stage in stages:
        try:
            check_batch(read_split(stage.data, "train"), stage.data, stage.training)
            if stage.training.eval_strategy != "no":
                read_split(stage.data, "val")
        except InputError as error:
            raise InputError(f"stages: {stage.name}: {error}" if stage.name else str(error)) from error


def read_split(data: PairDataArguments, split: str) -> Pairs:
    """The pairs of a split of all data folders."""
    return merge_pairs(
        [
            read_pairs(source.folder, split, source.image_root, source.subsets, source.leave_out, source.only)
            for source in data.sources()
        ]
    )


def check_batch(pairs: Pairs, data: PairDataArguments, training: PairTrainArguments) -> None:
    """Raise [`InputError`] if an epoch is less than one batch."""
    epoch, batch = _epoch_and_batch(pairs, data, training)
    if epoch < batch:
        raise InputError(
            f"per_device_train_batch_size {training.per_device_train_batch_size} on {training.world_size} ranks: an "
            f"epoch has {epoch:,} pairs (captions: {data.captions}), less than one batch of {batch:,}"
        )


def describe_epoch(pairs: Pairs, data: PairDataArguments, training: PairTrainArguments) -> str:
    """What an epoch consists of, in one line."""
    epoch, batch = _epoch_and_batch(pairs, data, training)
    return (
        f"train: {len(pairs.paths):,} images, {len(pairs.texts):,} different captions, {len(pairs):,} pairs of "
        f"{', '.join(sorted({*pairs.sources}))}; an epoch has {epoch // batch:,} batches of {batch:,}, and "
        f"{epoch % batch:,} pairs are left out of it"
    )


def _epoch_and_batch(pairs: Pairs, data: PairDataArguments, training: PairTrainArguments) -> tuple[int, int]:
    epoch = len(pairs) if data.captions == "all" else len(pairs.paths)
    return epoch, training.per_device_train_batch_size * training.world_size


def check_captions(contrastive: ContrastiveModel, name: str, training: PairTrainArguments) -> None:
    """Raise [`InputError`] unless the model has what the losses are about."""
    if training.caption_loss_weight and not contrastive.captions:
        raise InputError(f"model {name}: writes no captions; choose a CoCa, such as coca_ViT-L-14 or sar-coca-tiny")
    if contrastive.captions and not training.caption_loss_weight:
        raise InputError(f"model {name}: is a CoCa, whose decoder would not learn; set --caption_loss_weight 1")
    if contrastive.model.logit_bias is not None:
        raise InputError(f"model {name}: has a bias of SigLIP's loss, which is not trained here; choose a CLIP")


def build_trainer(
    contrastive: ContrastiveModel, pairs: Pairs, data: PairDataArguments, training: PairTrainArguments, run: Run
) -> PairRunTrainer:
    """The trainer of a run; prints what trains. A run that begins counts unreadable images anew."""
    if run.checkpoint is None and run.ranks.first:
        forget_bad_images(run.folder)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if training.dataloader_num_workers:
        start_worker_server()
    trainer = PairRunTrainer(
        model=Towers(contrastive.model),
        args=training,
        data_collator=PairCollator(contrastive, pairs, run.folder, data.max_bad_images),
        train_dataset=EpochPairs(pairs, data.captions, training.seed),
        eval_dataset=read_split(data, "val") if training.eval_strategy != "no" else None,
    )
    trainer.give(contrastive, pairs)
    if trainer.is_world_process_zero():
        print(count_parameters(contrastive.model), flush=True)
    tracker = add_tracker(trainer, run.id, run.facts, run.cut_off)
    trainer.join(run, contrastive.image_ops, tracker)
    return trainer


def save_result(trainer: PairRunTrainer, adapters: PeftModel | None, metrics: dict[str, float]) -> None:
    """Write the model, adapters merged, and the adapters in a folder beside it; every file gets its place at the end.

    Raises:
        CannotWriteError: They could not be written.
        InputError: The weights are no numbers.
    """
    trainer.check_weights()
    out = Path(trainer.args.output_dir)
    part = out / ".result.part"
    with told_what_is_left(out, "the result"):
        if trainer.is_world_process_zero():
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed here
            if adapters is not None:
                adapters.save_pretrained(part / ADAPTER)
                shutil.rmtree(out / ADAPTER, ignore_errors=True)
                merge(trainer.contrastive, adapters)
            save_model(trainer.contrastive, part)
            for path in part.iterdir():
                os.replace(path, out / path.name)
            part.rmdir()
        note_finished(trainer, metrics)
    say_finished(trainer, metrics)
