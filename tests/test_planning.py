"""The planner against torch's allocator, the model itself, and arithmetic by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import trl.trainer.utils
from conftest import make_trainer, run_here
from torch.profiler import ProfilerActivity, profile

from sarlang_sft import planning_standins
from sarlang_sft.backbones import BACKBONES, Backbone
from sarlang_sft.errors import InputError
from sarlang_sft.loading import load_processor
from sarlang_sft.planning_memory import Setup, Zero, build_planned, plan_memory, read_zero
from sarlang_sft.planning_rehearsal import Batch
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.trainable import count_components
from sarlang_sft.tuning import COMPONENTS, TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]
BASE_7B = 8_292_166_656
LORA_7B = 20_185_088  # rank 8 on the seven linear layers of 28 layers


@pytest.fixture
def narrow_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's tiles as wide as a tiny model: otherwise they are nine tenths of its memory, and hide the rest."""
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    monkeypatch.setattr(planning_standins, "VOCABULARY_CHUNK", 64)


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


def setup_of(model: Path, tuning: TuningArguments, batch: Batch, **changed: object) -> Setup:
    plain = {
        "dtype": "float32", "autocast": False, "checkpointed": (), "dense_mask": True, "accumulates": False,
        "optimiser": "adamw_torch", "zero": Zero(), "ranks": 1, "on_cuda": False,
    }  # fmt: skip
    return Setup(model_name_or_path=str(model), tuning=tuning, batch=batch, **{**plain, **changed})


@pytest.mark.parametrize(
    ("family", "tuning", "checkpointing", "half"),
    [
        ("qwen2_5_vl", "lora", True, True),
        ("qwen2_5_vl", "lora", False, False),
        ("qwen2_5_vl", "full", True, False),
        ("qwen2_5_vl", "full", False, True),
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
    setup = setup_of(
        tinies[family], arguments, batch, dtype=dtype, autocast=half, checkpointed=COMPONENTS * checkpointing
    )
    backbone = BACKBONES[family]
    planned = build_planned(setup, backbone)
    memory = plan_memory(setup, planned, load_processor(str(tinies[family]), backbone), backbone)
    assert memory.step.peak == pytest.approx(peak, rel=0.05)
    counted = sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
    assert sum(size for part, size in memory.parts.items() if part.startswith("weights, ")) == counted


def test_checkpointing_one_component_keeps_the_others_activations(tiny: Path) -> None:
    processor = load_processor(str(tiny), QWEN)
    kept = {}
    for checkpointed in ((), ("vision_tower",), ("language_model",)):
        setup = setup_of(tiny, TuningArguments(tuning="full"), Batch(1, 512, 1, 96, 96, 64), checkpointed=checkpointed)
        step = plan_memory(setup, build_planned(setup, QWEN), processor, QWEN).step
        kept[checkpointed] = (step.vision, step.language_model)
    (vision, language_model) = kept[()]
    assert kept["vision_tower",][0] < vision and kept["vision_tower",][1] == language_model
    assert kept["language_model",][0] == vision and kept["language_model",][1] < language_model


def plan_7b(real_data: Path, tuning: TuningArguments, backbone: Backbone = QWEN, **changed: object) -> dict[str, int]:
    folder = real_data / "qwen2_5_vl_7b"
    batch = Batch(1, 4096, 7, 512, 512, 300)
    setup = setup_of(
        folder, tuning, batch,
        **{"dtype": "bfloat16", "autocast": True, "checkpointed": COMPONENTS, "dense_mask": False, "on_cuda": True}
        | changed,
    )  # fmt: skip
    planned = build_planned(setup, backbone)
    counts = count_components(planned.model, backbone, planned.trainable)
    memory = plan_memory(setup, planned, load_processor(str(folder), backbone, 262144), backbone)
    trainable = sum(count.adapter + count.full for count in counts)
    step = {"step": memory.step.activations, "language_model": memory.step.language_model}
    return {
        **memory.parts,
        **step,
        "base": sum(count.base for count in counts),
        "trainable": trainable,
        "host": memory.host,
    }


def test_lora_of_the_real_7b_takes_what_a_hand_calculation_says(real_data: Path) -> None:
    parts = plan_7b(real_data, TuningArguments(lora_r=8), ranks=8)
    assert (parts["base"], parts["trainable"]) == (BASE_7B, LORA_7B)
    weights = sum(size for part, size in parts.items() if part.startswith("weights, "))
    assert weights == 2 * BASE_7B + 4 * LORA_7B
    assert parts["gradients"] == parts["communication buckets"] == 4 * LORA_7B and parts["optimiser"] == 8 * LORA_7B
    h, m = 4096 * 3584 * 2, 4096 * 18944 * 2  # bytes of a tensor in bfloat16 as wide as the stream, and as the MLP
    kept = 28 * h + 3 * h  # every layer's input; the last norm's input in float32, and what it gives
    layer = 4 * m + (12 + 2 / 7) * h
    backwards = 3 * m + 2 * h
    assert parts["step"] == pytest.approx(h + kept + layer + backwards, rel=0.01)


def test_a_layer_of_the_real_7b_keeps_what_a_hand_calculation_says(real_data: Path) -> None:
    kept = [
        plan_7b(real_data, TuningArguments(lora_r=8), checkpointed=components)["language_model"]
        for components in (("vision_tower",), COMPONENTS)
    ]
    h, m = 4096 * 3584 * 2, 4096 * 18944 * 2
    assert (kept[0] - kept[1]) / 28 == pytest.approx(4 * m + (12 + 2 / 7) * h - h, rel=0.01)


def test_zero_cuts_what_its_stage_says(tiny: Path) -> None:
    tuning, batch, parts = TuningArguments(tuning="full"), Batch(1, 256, 1, 96, 96, 32), {}
    for stage in (1, 2, 3):
        setup = setup_of(tiny, tuning, batch, autocast=True, ranks=8, zero=Zero(stage))
        planned = build_planned(setup, QWEN)
        parts[stage] = plan_memory(setup, planned, load_processor(str(tiny), QWEN), QWEN).parts
    numbers = sum(parameter.numel() for parameter in planned.model.parameters())
    assert [parts[stage]["optimiser"] for stage in (1, 2, 3)] == [12 * numbers // 8] * 3
    assert [parts[stage]["gradients"] for stage in (1, 2, 3)] == [2 * numbers, 2 * numbers // 8, 2 * numbers // 8]
    weights = [sum(size for name, size in parts[stage].items() if name.startswith("weights, ")) for stage in (1, 2, 3)]
    assert weights[:2] == [2 * numbers] * 2 and weights[2] == pytest.approx(2 * numbers / 8, abs=3)


def test_parameters_of_the_72b_are_those_of_its_architecture(real_data: Path, tmp_path: Path) -> None:
    # Its published sizes: Qwen2.5-72B (arXiv 2412.15115), vision tower of arXiv 2502.13923.
    config = json.loads((real_data / "qwen2_5_vl_7b" / "config.json").read_text())
    sizes = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    config |= {**sizes, "intermediate_size": 29568, "vocab_size": 152064}
    config["vision_config"]["out_hidden_size"] = 8192
    (tmp_path / "config.json").write_text(json.dumps(config))
    setup = setup_of(tmp_path, TuningArguments(tuning="qlora", lora_r=16), Batch(1, 64, 0, 1, 1, 8))
    planned = build_planned(setup, QWEN)
    counts = {count.component: count for count in count_components(planned.model, QWEN, planned.trainable)}
    h, kv, m, v = 8192, 1024, 29568, 152064
    layer = 2 * h * h + 2 * h * kv + 3 * h * m + h + 2 * kv + 2 * h
    assert counts["language_model"].base == 80 * layer + 2 * v * h + h == 72_706_203_648
    assert sum(count.base for count in counts.values()) == 73_406_351_360
    assert counts["language_model"].adapter == 80 * 16 * (4 * h + 2 * (h + kv) + 3 * (h + m)) == 210_534_400


def test_quantised_weights_take_four_bits_and_their_scales(real_data: Path) -> None:
    parts = plan_7b(real_data, TuningArguments(tuning="qlora"))
    h, m, kv, v = 3584, 18944, 512, 152064
    linear = 28 * (2 * h * h + 2 * h * kv + 3 * h * m)
    rest = 2 * v * h + 28 * (2 * h + h + 2 * kv) + h  # embedding, head, norms and biases
    wanted = linear * (1 / 2 + 1 / 64 + 1 / 4096) + 2 * rest + 4 * LORA_7B
    assert parts["weights, language model"] == pytest.approx(wanted, rel=1e-6)


def test_zero_3_refuses_quantised_weights(tiny: Path) -> None:
    setup = setup_of(tiny, TuningArguments(tuning="qlora"), Batch(1, 64, 0, 1, 1, 8), zero=Zero(3), ranks=2)
    with pytest.raises(InputError, match="zero2"):
        plan_memory(setup, build_planned(setup, QWEN), load_processor(str(tiny), QWEN), QWEN)


def test_deepspeed_configurations_are_read_and_refused(tmp_path: Path) -> None:
    assert read_zero(None) == Zero() and str(read_zero(None)) == "DDP"
    path = tmp_path / "zero.json"
    offload = {"device": "cpu"}
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": offload}}))
    assert read_zero(path) == Zero(3, offload_optimiser=True)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"zero\.json"):
        read_zero(path)


def test_the_plan_is_printed_and_written_and_says_what_to_change(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["--model_name_or_path", real_data / "qwen2_5_vl_7b", "--data", tmp_path / "none", "--gpus", 8]
    words += ["--max_pixels", 262144, "--bf16", "true", "--gpu_memory", 20, "--price", 2, "--out", out]
    run_here(monkeypatch, "recipes/plan.py", *words, "--output_dir", tmp_path, "--max_tokens_per_row", 2048)
    screen = capsys.readouterr().out
    plan = json.loads(out.read_text())
    assert f"trainable: {LORA_7B:,} of {BASE_7B + LORA_7B:,}" in screen and "published counts" in screen
    assert plan["rows"]["image_tokens"] == 18 * 18, "512 pixels are rounded to 504, 28 for every token"
    assert plan["fits"] == (plan["memory"]["needed"] <= 20e9) and plan["speed"]["mfu_source"] == "assumed"
    assert plan["memory"]["allocated"] == sum(plan["memory"]["parts"].values())


def test_rows_come_from_the_data_folder_where_there_is_one(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["--model_name_or_path", tiny, "--data", data, "--output_dir", tmp_path, "--gpus", 1, "--out", out]
    run_here(monkeypatch, "recipes/plan.py", *words, "--gpu_memory", 0.01, "--num_train_epochs", 1, "--mfu", 0.5)
    plan = json.loads(out.read_text())
    assert str(data) in plan["rows"]["source"] and plan["rows"]["dialogues_per_image"] > 1
    assert not plan["fits"] and plan["changes"] and "DOES NOT FIT" in capsys.readouterr().out
    assert any(name.startswith("and ") for name in plan["changes"]), "none is enough: they are added up"
    assert plan["changes"]["--tuning qlora"]["needed"] < plan["memory"]["needed"]
    assert plan["speed"]["mfu_source"] == "given"


def test_a_model_planned_is_not_downloaded_or_loaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    (model / "model.safetensors").unlink()
    words = ["--model_name_or_path", model, "--data", tmp_path / "none", "--output_dir", tmp_path / "run"]
    run_here(monkeypatch, "recipes/plan.py", *words, "--gpus", 1)
    assert not (tmp_path / "run").exists()


def test_an_mfu_that_was_not_measured_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", tiny, "--data", tmp_path / "none", "--output_dir", tmp_path, "--gpus", 1]
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, "recipes/plan.py", *words, "--measured", "benchmarks/results/cpu_throughput.json")
    assert stopped.value.code == 2 and "no mfu" in capsys.readouterr().err


@pytest.mark.parametrize("family", BACKBONES)
def test_every_family_is_planned_for_a_gpu(family: str, tinies: dict[str, Path]) -> None:
    processor = load_processor(str(tinies[family]), BACKBONES[family])
    activations = []
    for dense_mask in (False, True):
        setup = setup_of(
            tinies[family], TuningArguments(), Batch(1, 512, 1, 96, 96, 32), on_cuda=True, dense_mask=dense_mask
        )
        planned = build_planned(setup, BACKBONES[family])
        activations.append(plan_memory(setup, planned, processor, BACKBONES[family]).step.activations)
    assert activations[1] - activations[0] >= 3 * 512 * 512 * 4, "SDPA keeps a mask in each of three layers"
