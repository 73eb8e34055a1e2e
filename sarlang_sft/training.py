"""The TRL trainer assembled: arguments, data, model, and what is saved at the end."""

import math
import os
import shutil
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from peft import PeftModel
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from sarlang_sft.adapters import INITIAL, keep_initial, lora_config, save_as_lora
from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.attention import FLEX, Attention, check_isolates_branches, choose_attention
from sarlang_sft.backbones import BACKBONES, Backbone, component_of
from sarlang_sft.bad_images import BAD_IMAGES, ReadableCollator, forget_bad_images, read_bad_images
from sarlang_sft.box_texts import write_table
from sarlang_sft.checkpoints import last_complete, told_what_is_left
from sarlang_sft.collate import DialogueCollator
from sarlang_sft.errors import STOPPED_EXIT, InputError
from sarlang_sft.imagery import save_ops
from sarlang_sft.lengths import Lengths, measure
from sarlang_sft.loader_workers import start_worker_server
from sarlang_sft.mixture import DataSource, Mixture, read_mixture
from sarlang_sft.packing import (
    Layout,
    LeftOut,
    PlannedRows,
    describe_left_out,
    describe_plan,
    find_left_out,
    plan_epochs,
    write_left_out,
)
from sarlang_sft.quantisation import quantisation
from sarlang_sft.read_ahead import ReadAhead
from sarlang_sft.records import read_dialogue_table, write_data_folder
from sarlang_sft.resumable import ResumableTrainer
from sarlang_sft.run_files import FINISHED, STOPPED
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.runs import Run
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.shard_order import Dealing, describe_dealing, plan_shard_epochs
from sarlang_sft.tracking import add_tracker
from sarlang_sft.trainable import (
    Trainable,
    check_trainable,
    choose_trainable,
    component_table,
    count_components,
    freeze_all_but,
    own_name,
    run_frozen_without_gradient,
)
from sarlang_sft.trees import TreeCollator
from sarlang_sft.tuning import TuningArguments
from sarlang_sft.val_answers import check_metric
from sarlang_sft.val_questions import ValQuestion, choose_questions, describe_questions

SAMPLE_SCENES = 200


def make_missing_inputs(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Make the demo's sample and tiny model where they are missing, on one rank per node.

    Only the folders that the configuration itself names for that are made: another `--data` or `--model_name_or_path`
    that does not exist stays an error.
    """
    with training.main_process_first(desc="making missing inputs"):
        folder = Path(data.sources()[0].path)
        if data.data == data.sample_folder and not (folder / "manifest.json").is_file():
            sample = folder.parent / "sample"
            if not (sample / "truth.json").is_file():
                print(
                    f"{folder} is missing: making a sample of {SAMPLE_SCENES} simulated scenes in {sample}", flush=True
                )
                write_sample(sample, SAMPLE_SCENES, seed=0)
            image_root = sample / data.sample_images
            records, rejections, inputs = convert(sample, image_root, 0.02, Prompts())
            write_data_folder(folder, records, rejections, image_root, inputs)
        base = Path(model.model_name_or_path)
        if model.model_name_or_path == model.tiny_folder and not (base / "config.json").is_file():
            print(f"{base} is missing: making an untaught tiny {model.tiny_family} there", flush=True)
            dialogues = read_dialogue_table(folder, "train")["turns"].to_pylist()
            texts = [text for dialogue in dialogues for turn in dialogue for text in turn.values()]
            BACKBONES[model.tiny_family].build_tiny(base, texts, training.seed)


def prepare_attention(model: ModelArguments, data: DataArguments, training: TrainArguments) -> Attention:
    """Choose the attention kernels, print them, and refuse image trees for models that would mix their branches."""
    if data.image_trees:
        check_isolates_branches(model.model_name_or_path, data.max_tokens_per_row)
    half = model.dtype != "float32" or bool(training.bf16 or training.fp16)
    attention = choose_attention(model.attn_implementation, data.image_trees, not training.use_cpu, half)
    if training.process_index == 0:
        print(attention, flush=True)
    return attention


def prepare_tuning(
    skeleton: PreTrainedModel,
    backbone: Backbone,
    model: ModelArguments,
    tuning: TuningArguments,
    training: TrainArguments,
) -> tuple[Trainable, BitsAndBytesConfig | None]:
    """What trains, and how the weights are quantised; refuses what cannot be before any weight is loaded."""
    zero3 = training.deepspeed_plugin is not None and training.deepspeed_plugin.zero_stage == 3
    if (zero3 or training.fsdp) and (tuning.bits() or tuning.init_lora_weights != "default"):
        raise InputError(
            f"{'deepspeed: ZeRO-3' if zero3 else 'fsdp: FSDP2'} cuts the weights that quantisation, pissa and eva "
            "read whole; use deepspeed_configs/zero2.json"
        )
    if not tuning.adapts() and model.dtype != "float32" and not (training.bf16 or training.fp16):
        raise InputError(
            f"dtype {model.dtype}: weights of 16 bits round small steps away; set --bf16 true, which computes in 16 "
            "bits and keeps what trains in 32, or --dtype float32"
        )
    trainable = choose_trainable(skeleton, backbone, tuning)
    return trainable, quantisation(skeleton, backbone, tuning.bits(), model.dtype)


class Plan(NamedTuple):
    """The rows to train on, and where the run evaluates those of the split `val`, and its questions to be answered."""

    train: PlannedRows
    val: PlannedRows | None
    questions: tuple[ValQuestion, ...] = ()


def plan_rows(
    processor: ProcessorMixin,
    backbone: Backbone,
    config: PretrainedConfig,
    data: DataArguments,
    training: TrainArguments,
) -> Plan:
    """Plan the rows of the whole training; prints what an epoch consists of and what is left out.

    What is left out also goes to `left_out.jsonl` in the output folder, one line per dialogue. Evaluation takes all
    dialogues of the wanted tasks and subsets once, whatever the weights and caps.
    """
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    context = config.get_text_config().max_position_embeddings
    check_pixels(processor, data.max_pixels, context)
    layout = Layout(data.image_trees, data.max_tokens_per_row, data.turns_per_image, per_step, context=context)
    sources = data.sources()
    out = Path(training.output_dir) / "left_out.jsonl" if training.process_index == 0 else None
    train = _plan_split(sources, "train", layout, processor, backbone, data, training, out)
    val, questions = None, []
    if training.eval_strategy != "no":
        everything = [replace(source, weight=1.0, caps={}) for source in sources]
        per_step = training.per_device_eval_batch_size
        layout = Layout(data.image_trees, data.max_tokens_per_row, None, per_step, False, context)
        val = _plan_split(everything, "val", layout, processor, backbone, data, training, None)
        questions = choose_questions(val, training.val_questions)
        check_metric(training.metric_for_best_model or "loss", questions)
        if questions and training.process_index == 0:
            print(describe_questions(questions), flush=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # of loader workers, of which each is one core's
    if training.dataloader_num_workers:
        start_worker_server()
    return Plan(train, val, tuple(questions))


def check_pixels(processor: ProcessorMixin, max_pixels: int | None, context: int) -> None:
    """Raise [`InputError`] if an image of `max_pixels` takes more tokens than the model's context has."""
    if max_pixels is None:
        return
    side = math.isqrt(max_pixels)
    [tokens] = processor._get_num_multimodal_tokens(image_sizes=[(side, side)])["num_image_tokens"]
    if tokens > context:
        raise InputError(
            f"max_pixels {max_pixels}: an image of that many takes {tokens:,} tokens, the model's context has "
            f"{context:,}; set it to at most {max_pixels * context // tokens}"
        )


def prepare_dialogues(
    table: pa.Table, layout: Layout, processor: ProcessorMixin, backbone: Backbone, image_ops: list[str]
) -> tuple[pa.Table, Lengths, list[LeftOut]]:
    """The rows of `read_mixture` with their boxes written, their lengths, and those that are left out."""
    table, unwritten = write_table(table, processor, backbone, image_ops)
    lengths = measure(table, processor, backbone, image_ops)
    left_out = [LeftOut(row, reason) for row, reason in unwritten.items()]
    left_out += [found for found in find_left_out(lengths, layout) if found.dialogue not in unwritten]
    return table, lengths, left_out


def _plan_split(
    sources: list[DataSource],
    split: str,
    layout: Layout,
    processor: ProcessorMixin,
    backbone: Backbone,
    data: DataArguments,
    training: TrainArguments,
    left_out_file: Path | None,
) -> PlannedRows:
    table = read_mixture(sources, split)
    table, lengths, left_out = prepare_dialogues(table, layout, processor, backbone, data.image_ops)
    if training.process_index == 0:
        print("\n".join(f"{split} {line}" for line in describe_left_out(left_out, table)), end="\n" * bool(left_out))
    if left_out_file:
        write_left_out(left_out_file, left_out, table)
    mixture = Mixture(sources, table)
    dealing = find_dealing(table, training, data.shard_window) if layout.shuffle else None
    plan = partial(plan_shard_epochs, dealing=dealing) if dealing else plan_epochs
    epochs = plan(mixture, lengths, left_out, layout, training.seed, 1)
    wanted = math.ceil(training.num_train_epochs)
    if training.max_steps > 0:
        wanted = math.ceil(training.max_steps * layout.rows_per_step / len(epochs[0]))
    if layout.shuffle and wanted > 1:
        epochs = plan(mixture, lengths, left_out, layout, training.seed, wanted)
    if training.process_index == 0:
        print(f"{split} {describe_plan(epochs, lengths, layout)}", flush=True)
        if dealing:
            print(f"{split} {describe_dealing(epochs, dealing)}", flush=True)
    ahead = ReadAhead(table, dealing, training.dataloader_num_workers == 0) if dealing else None
    return PlannedRows(table, epochs, data.image_trees, training.seed, ahead)


def find_dealing(table: pa.Table, training: TrainArguments, window: int) -> Dealing | None:
    """Who reads which shards; None if no image lies in one."""
    shard = table["shard"].to_numpy()
    if shard.max(initial=-1) < 0:
        return None
    return Dealing(shard, training.world_size, training.per_device_train_batch_size, window)


def make_collator(
    processor: ProcessorMixin,
    backbone: Backbone,
    data: DataArguments,
    attention: Attention,
    run: Run,
) -> ReadableCollator:
    """The collator of the planned rows; a run that begins counts unreadable images anew."""
    if run.checkpoint is None and run.ranks.first:
        forget_bad_images(run.folder)
    if data.image_trees:
        row_length = data.max_tokens_per_row if attention.language_model == FLEX else None
        collator = TreeCollator(processor, backbone, data.image_ops, row_length)
    else:
        collator = DialogueCollator(processor, backbone, data.image_ops)
    return ReadableCollator(collator, run.folder, data.max_bad_images)


def check_supervision(collator: ReadableCollator, rows: PlannedRows) -> None:
    """Collate one row before any model is loaded; raises [`InputError`] if a token or an image of it is missing."""
    collator.collator([rows[0]])


class CheckpointComponent(TrainerCallback):
    """Leaves activation checkpointing on in one component only."""

    def __init__(self, backbone: Backbone, component: str) -> None:
        self.backbone = backbone
        self.component = component

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: object
    ) -> None:
        """Called after the trainer has turned checkpointing on everywhere."""
        for name, module in model.named_modules():
            if isinstance(module, GradientCheckpointingLayer):
                own = own_name(name.removeprefix("module."))
                module.gradient_checkpointing &= component_of(own, self.backbone) == self.component


def build_trainer(
    model: PreTrainedModel,
    collator: ReadableCollator,
    plan: Plan,
    attention: Attention,
    trainable: Trainable,
    tuning: TuningArguments,
    data: DataArguments,
    training: TrainArguments,
    run: Run,
) -> RunTrainer:
    """TRL's trainer with our collator; prints the component table and refuses to train anything else than it says."""
    backbone = collator.backbone
    peft_config = lora_config(model, backbone, trainable, tuning)
    if peft_config is None:
        freeze_all_but(model, trainable)
    trainer = RunTrainer(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=plan.train.dialogues,
        eval_dataset=plan.val,
        processing_class=collator.processor,
        peft_config=peft_config,
    )
    trainer.plan(plan.train, backbone, attention.language_model)
    if training.checkpointed != "both":
        trainer.add_callback(CheckpointComponent(backbone, training.checkpointed))
    run_frozen_without_gradient(trainer.model, backbone)
    check_trainable(trainer.model, trainable)
    counts = count_components(trainer.model, backbone, trainable)
    if trainer.is_world_process_zero():
        print(component_table(counts, trainable, tuning), flush=True)
    components = {count.component: {**asdict(count), "state": count.state} for count in counts}
    tracker = add_tracker(trainer, run.id, {**run.facts, "components": components}, run.cut_off)
    trainer.join(run, data.image_ops, plan.questions, tracker)
    if not trainer.is_deepspeed_enabled:  # which keeps weights in 32 bits beside those of the model
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # 16 bits would round small steps away
    if tuning.init_lora_weights == "eva":
        trainer.start_from_data([plan.train[number] for number in range(min(tuning.eva_rows, len(plan.train)))])
    if tuning.init_lora_weights == "pissa" and trainer.is_world_process_zero():
        with told_what_is_left(run.folder, INITIAL):
            keep_initial(trainer.model, run.folder)
    trainer.set_learning_rates(backbone, tuning)
    return trainer


def leave_if_stopped(trainer: ResumableTrainer) -> None:
    """End the program with exit code 75 if training was stopped on request: its checkpoint is written."""
    if not trainer.interruption.stopping:
        return
    run = trainer.run
    run.leave(STOPPED)
    if run.ranks.first:
        checkpoint = last_complete(run.folder)
        command = "the same command" if trainer.args.resume == "auto" else "the same command with `--resume auto`"
        kept = f"{checkpoint} is written; {command} goes on from there" if checkpoint else "nothing was learned yet"
        print(f"Stopped: {kept}", flush=True)
    run.ranks.wait()  # a launcher ends all ranks when the first has left
    sys.exit(STOPPED_EXIT)


def save_result(trainer: RunTrainer, data: DataArguments, metrics: dict[str, float]) -> None:
    """Write the adapter (or model), its processor, image operations and metrics to the top of the output folder.

    Every file gets its place when all are written.

    Raises:
        CannotWriteError: They could not be written.
        InputError: The weights are no numbers.
        RuntimeError: They do not hold every tensor in full, see `check_saved`.
    """
    trainer.check_weights()
    out = Path(trainer.args.output_dir)
    part = out / ".result.part"
    with told_what_is_left(out, "the result"):
        if trainer.is_world_process_zero():
            shutil.rmtree(part, ignore_errors=True)  # of a run that was killed here
        trainer.run.ranks.wait()
        trainer.save_model(str(part))
        if trainer.is_world_process_zero():
            save_ops(part, data.image_ops)
            adapted = isinstance(trainer.model, PeftModel)
            if adapted and trainer.model.peft_config["default"].init_lora_weights == "pissa":
                save_as_lora(trainer.model, part, out / INITIAL)
            for path in part.iterdir():
                os.replace(path, out / path.name)
            part.rmdir()
        note_finished(trainer, metrics)
    say_finished(trainer, metrics)


def note_finished(trainer: ResumableTrainer, metrics: dict[str, float]) -> None:
    """Write the metrics and the trainer's state, and that the run is finished."""
    metrics["checkpoint_seconds"] = round(trainer.saving_seconds, 3)
    metrics["bad_images"] = len(read_bad_images(Path(trainer.args.output_dir)))
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    trainer.run.leave(FINISHED)


def say_finished(trainer: ResumableTrainer, metrics: dict[str, float]) -> None:
    """Print where the result lies, and wait for all ranks."""
    out = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        if metrics["bad_images"]:
            print(f"Left out {metrics['bad_images']} images that cannot be read, see {out / BAD_IMAGES}", flush=True)
        print(f"Done: {out}", flush=True)
    trainer.run.ranks.wait()  # a launcher may end whoever still writes a while after the others have left
