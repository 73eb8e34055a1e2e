"""Planned memory against torch's allocator, and against arithmetic by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trl.trainer.utils
from conftest import make_trainer, run_script
from torch.profiler import ProfilerActivity, profile

from sarlang_sft.arguments import ModelArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.errors import InputError
from sarlang_sft.planning import standins
from sarlang_sft.planning.changes import try_changes
from sarlang_sft.planning.memory import Memory, plan_memory
from sarlang_sft.planning.model import Batch, Setup, build_planned
from sarlang_sft.planning.published import Architecture, find_architecture
from sarlang_sft.planning.sharding import FSDP2, Sharding, read_sharding
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.tuning import COMPONENTS, TuningArguments

BASE_7B = 8_292_166_656
LORA_7B = 20_185_088  # rank 8 on the seven linear layers of 28 layers
WIDTH, MLP, KV, VOCABULARY = 3584, 18944, 512, 152064  # of the 7B
H, M = 4096 * WIDTH * 2, 4096 * MLP * 2  # bytes of a tensor in bfloat16 as wide as its stream, and as its MLP
LAYER = 4 * M + (12 + 2 / 7) * H  # what a layer of it keeps with adapters: docs/planner.md


@pytest.fixture
def narrow_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's tiles as wide as a tiny model: otherwise they are nine tenths of its memory, and hide the rest."""
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    monkeypatch.setattr(standins, "VOCABULARY_CHUNK", 64)


def architecture_of(name: Path | str) -> Architecture:
    return find_architecture(ModelArguments(str(name)), ["Is there a ship?", "Yes."], None)


def setup_of(tuning: TuningArguments, batch: Batch, **changed: object) -> Setup:
    plain = {
        "dtype": "float32", "autocast": False, "checkpointed": (), "trees": True, "dense_mask": True,
        "accumulates": False, "optimiser": "adamw_torch", "sharding": Sharding(), "ranks": 1, "on_cuda": False,
    }  # fmt: skip
    return Setup(tuning=tuning, batch=batch, **{**plain, **changed})


def plan(setup: Setup, architecture: Architecture) -> Memory:
    return plan_memory(setup, build_planned(setup, architecture), architecture)


def weights_of(memory: Memory) -> int:
    return sum(size for part, size in memory.parts.items() if part.startswith("weights, "))


def allocated_by_a_step(trainer: RunTrainer, trace: Path) -> tuple[int, Batch]:
    """Peak of what torch's allocator gave to one forward and backward pass, in bytes, and the pass's batch."""
    row = trainer.train_dataset[0]
    inputs = trainer.data_collator([row])
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    model = trainer.accelerator.prepare_model(trainer.model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.training_step(model, dict(inputs), torch.tensor(1))
    recorded.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    tokens = inputs["input_ids"].shape[1]
    return peak, Batch(1, tokens, len(row), row[0][0]["width"], row[0][0]["height"], tokens - 1)


@pytest.mark.parametrize(
    ("family", "tuning", "checkpointing", "half"),
    [
        ("qwen2_5_vl", "lora", True, True),
        ("qwen2_5_vl", "lora", False, False),
        ("qwen2_5_vl", "full", True, False),
        ("qwen2_5_vl", "full", False, True),
        ("qwen2_5_vl", "qlora", True, False),
        ("qwen2_vl", "lora_int8", False, True),
        ("qwen3_vl", "lora_tower", True, False),
        ("llava", "dora", False, True),
        ("llava_next", "lora_tower", False, False),
    ],
)
def test_a_step_takes_the_memory_that_was_planned(
    family: str, tuning: str, checkpointing: bool, half: bool, tinies: dict[str, Path], data: Path, tmp_path: Path,
    narrow_head: None,
) -> None:  # fmt: skip
    arguments = TuningArguments(tuning=tuning)
    dtype = "bfloat16" if half and tuning != "full" else "float32"
    trainer, _ = make_trainer(
        tinies[family], data, tmp_path / "run", arguments, dtype=dtype, bf16=half, max_tokens_per_row=1536,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    peak, batch = allocated_by_a_step(trainer, tmp_path / "trace.json")
    setup = setup_of(arguments, batch, dtype=dtype, autocast=half, checkpointed=COMPONENTS * checkpointing)
    memory = plan(setup, architecture_of(tinies[family]))
    assert memory.step.peak == pytest.approx(peak, rel=0.05 if not arguments.bits() else 0.15)
    if not arguments.bits():
        counted = sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
        assert weights_of(memory) == counted


def test_checkpointing_one_component_keeps_the_others_activations(tiny: Path) -> None:
    kept = {}
    for checkpointed in ((), ("vision_tower",), ("language_model",)):
        setup = setup_of(TuningArguments(tuning="full"), Batch(1, 512, 1, 96, 96, 64), checkpointed=checkpointed)
        step = plan(setup, architecture_of(tiny)).step
        kept[checkpointed] = (step.vision, step.language_model)
    (vision, language_model) = kept[()]
    assert kept["vision_tower",][0] < vision and kept["vision_tower",][1] == language_model
    assert kept["language_model",][0] == vision and kept["language_model",][1] < language_model


def plan_7b(tuning: TuningArguments, **changed: object) -> Memory:
    of_7b = {"dtype": "bfloat16", "autocast": True, "checkpointed": COMPONENTS, "dense_mask": False, "on_cuda": True}
    setup = setup_of(tuning, Batch(1, 4096, 7, 512, 512, 300), **of_7b | changed)
    return plan(setup, architecture_of("Qwen/Qwen2.5-VL-7B-Instruct"))


def test_lora_of_the_7b_takes_what_a_hand_calculation_says() -> None:
    memory = plan_7b(TuningArguments(lora_r=8), ranks=8)
    assert weights_of(memory) == 2 * BASE_7B + 4 * LORA_7B
    assert memory.parts["gradients"] == memory.parts["communication buckets"] == 4 * LORA_7B
    assert memory.parts["optimiser"] == 8 * LORA_7B
    kept = 28 * H + 3 * H  # every layer's input; the last norm's input in float32, and what it gives
    backwards = 3 * M + 2 * H
    assert memory.step.activations == pytest.approx(H + kept + LAYER + backwards, rel=0.01)
    assert memory.step.head == 300 * 32768 * 2, "one tile of logits; the head is frozen and in 16 bits"


def test_a_layer_of_the_7b_keeps_what_a_hand_calculation_says() -> None:
    kept = [
        plan_7b(TuningArguments(lora_r=8), checkpointed=components).step.language_model
        for components in (("vision_tower",), COMPONENTS)
    ]
    assert (kept[0] - kept[1]) / 28 == pytest.approx(LAYER - H, rel=0.01)


def test_quantised_weights_of_the_7b_take_four_bits_and_their_scales() -> None:
    memory = plan_7b(TuningArguments(tuning="qlora"))
    linear = 28 * (2 * WIDTH**2 + 2 * WIDTH * KV + 3 * WIDTH * MLP)
    rest = 2 * VOCABULARY * WIDTH + 28 * (3 * WIDTH + 2 * KV) + WIDTH  # embedding, head, norms and biases
    wanted = linear * (1 / 2 + 1 / 64 + 1 / 4096) + 2 * rest + 4 * LORA_7B
    assert memory.parts["weights, language model"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_cuts_what_its_stage_says(stage: int, tiny: Path) -> None:
    setup = setup_of(
        TuningArguments(tuning="full"), Batch(1, 256, 1, 96, 96, 32), autocast=True, ranks=8,
        sharding=Sharding("ZeRO", stage),
    )  # fmt: skip
    architecture = architecture_of(tiny)
    memory = plan(setup, architecture)
    numbers = sum(parameter.numel() for parameter in build_planned(setup, architecture).model.parameters())
    assert memory.parts["optimiser"] == 12 * numbers // 8
    assert memory.parts["gradients"] == 2 * numbers // (8 if stage > 1 else 1)
    assert weights_of(memory) == pytest.approx(2 * numbers // (8 if stage == 3 else 1), abs=1000)


def test_fsdp2_cuts_weights_gradients_and_states_in_32_bits(tiny: Path) -> None:
    setup = setup_of(
        TuningArguments(tuning="full"), Batch(1, 256, 1, 96, 96, 32), autocast=True, ranks=8, sharding=FSDP2
    )
    architecture = architecture_of(tiny)
    memory = plan(setup, architecture)
    numbers = sum(parameter.numel() for parameter in build_planned(setup, architecture).model.parameters())
    assert memory.parts["optimiser"] == 8 * numbers // 8
    assert memory.parts["gradients"] == 4 * numbers // 8 == pytest.approx(weights_of(memory), abs=1000)
    model = architecture.backbone.model_class(architecture.config)
    outside = numbers - sum(
        parameter.numel() for layer in [*model.model.visual.blocks, *model.model.language_model.layers]
        for parameter in layer.parameters()
    )  # fmt: skip
    embedding = 0 if architecture.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    largest = sum(parameter.numel() for parameter in model.model.language_model.layers[0].parameters())
    gathered = memory.parts["weights gathered for the layers at work"]
    assert gathered == 2 * (2 * largest + outside - embedding), "the projector stays as well as the head"
    accumulating = plan(replace(setup, accumulates=True), architecture)
    assert accumulating.parts["gradients, whole while they add up"] == 2 * numbers, "nothing is cut before the last"
    changes = try_changes(replace(setup, accumulates=True, on_cuda=True), accumulating, 1.0, architecture)
    zero3 = changes["--deepspeed deepspeed_configs/zero3.json"]
    assert zero3.parts["gradients"] == 2 * numbers // 8, "it has a way out: ZeRO-3 cuts gradients in every batch"


def test_adamw_of_torch_takes_roots_of_all_tensors_at_once_on_a_gpu(tiny: Path) -> None:
    architecture = architecture_of(tiny)
    setup = setup_of(TuningArguments(tuning="full"), Batch(1, 16, 0, 1, 1, 1), on_cuda=True, checkpointed=COMPONENTS)
    fused = plan(replace(setup, optimiser="adamw_torch_fused"), architecture).parts["activations"]
    numbers = plan(setup, architecture).parts["optimiser"] // 8
    assert fused < 4 * numbers == plan(setup, architecture).parts["activations"]


def test_offloading_moves_weights_states_and_gradients_to_the_cpu(tiny: Path) -> None:
    batch, architecture = Batch(1, 256, 1, 96, 96, 32), architecture_of(tiny)
    sharding = Sharding("ZeRO", 3, offload_optimiser=True, offload_weights=True)
    memory = plan(
        setup_of(TuningArguments(tuning="full"), batch, autocast=True, ranks=2, sharding=sharding), architecture
    )
    numbers = sum(
        parameter.numel() for parameter in architecture.backbone.model_class(architecture.config).parameters()
    )
    assert memory.parts["optimiser"] == memory.parts["gradients"] == weights_of(memory) == 0
    assert memory.host == pytest.approx((2 + 12 + 2 + 4) * numbers / 2, rel=0.01)


def test_zero_3_refuses_quantised_weights(tiny: Path) -> None:
    setup = setup_of(TuningArguments(tuning="qlora"), Batch(1, 64, 0, 1, 1, 8), sharding=Sharding("ZeRO", 3), ranks=2)
    with pytest.raises(InputError, match="zero2"):
        plan(setup, architecture_of(tiny))


@pytest.mark.parametrize("family", BACKBONES)
def test_every_family_is_planned_for_a_gpu(family: str, tinies: dict[str, Path]) -> None:
    architecture = architecture_of(tinies[family])
    activations = []
    for dense_mask in (False, True):
        setup = setup_of(TuningArguments(), Batch(1, 512, 1, 96, 96, 32), on_cuda=True, dense_mask=dense_mask)
        activations.append(plan(setup, architecture).step.activations)
    assert activations[1] - activations[0] >= 3 * 512 * 512 * 4, "SDPA keeps a mask in each of three layers"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_take_the_memory_that_was_planned(
    stage: int, tiny: Path, data: Path, tmp_path: Path, narrow_head: None
) -> None:
    zero = {
        "stage": stage, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 50_000,
        "stage3_max_live_parameters": 100_000, "stage3_max_reuse_distance": 100_000,
        "stage3_prefetch_bucket_size": 50_000, "stage3_param_persistence_threshold": 1000,
        "stage3_gather_16bit_weights_on_model_save": True,
    }  # fmt: skip
    config = tmp_path / "zero.json"
    sizes = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    sizes |= {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    config.write_text(json.dumps({"bf16": {"enabled": "auto"}, "zero_optimization": zero, **sizes}))
    words = ["--model_name_or_path", tiny, "--data", data, "--output_dir", tmp_path / "run", "--report_to", "none"]
    words += ["--max_steps", 2, "--save_strategy", "no", "--dataloader_num_workers", 0, "--max_tokens_per_row", 600]
    words += ["--bf16", "true", "--dtype", "float32", "--tuning", "full", "--gradient_checkpointing", "true"]
    words += ["--deepspeed", config] if stage else []
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "tests/rank_memory.py"]
    run_script(*launch, tmp_path / "peak", "recipes/qwen_full.py", *words)
    measured = json.loads((tmp_path / "peak.0").read_text())

    tokens = measured["tokens"]
    batch = Batch(1, tokens, measured["images"], 96, 96, tokens - 1)
    sharding = read_sharding(config, 2, 1) if stage else Sharding()
    tuning = TuningArguments(tuning="full")
    setup = setup_of(tuning, batch, autocast=True, checkpointed=COMPONENTS, ranks=2, sharding=sharding)
    memory = plan(setup, architecture_of(tiny))
    print(f"stage {stage}: planned {memory.allocated:,}, measured {measured['peak']:,}")
    assert memory.allocated == pytest.approx(measured["peak"], rel=0.15)
