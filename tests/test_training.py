"""The recipes, run as a user runs them."""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_trainer, run_script
from peft import PeftModel
from safetensors.torch import load_file

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import BACKBONES
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import load_ops
from sarlang_sft.inference import load_tuned
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.packing import PlannedRows
from sarlang_sft.parity import sample_inputs
from sarlang_sft.training import Plan
from sarlang_sft.tuning import TuningArguments

LORA, FULL = ROOT / "recipes/qwen_lora.py", ROOT / "recipes/qwen_full.py"
FIVE_STEPS = [
    "--max_steps", 5, "--logging_steps", 1, "--learning_rate", 1e-3, "--dtype", "float32", "--save_strategy", "no",
    "--gradient_checkpointing", "false", "--lr_scheduler_type", "constant", "--use_cpu", "true",
    "--turns_per_image", 4, "--max_tokens_per_row", 600, "--dataloader_num_workers", 0,
]  # fmt: skip


TEN_STEPS = ["--max_steps", 10, "--save_strategy", "steps", "--save_steps", 4]


def options_of(way: str, folder: Path) -> list[object]:
    """The recipe's options for a way to spread a training over ranks.

    Args:
        folder: Where a DeepSpeed configuration may be written: every tensor of a tiny model is so small that ZeRO-3
            would leave it whole.
    """
    if way == "ddp":
        return []
    if way == "fsdp":
        return ["--fsdp", "true"]
    if not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("no C++ compiler: DeepSpeed compiles its CPU communication kernels")
    config = json.loads((ROOT / f"deepspeed_configs/{way}.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / f"{way}.json").write_text(json.dumps(config))
    return ["--deepspeed", folder / f"{way}.json"]


def torchrun(processes: int, *words: object) -> str:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *words]
    return run_script(*command)


def losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def common(tiny: Path, data: Path, out: Path, batch: int) -> list[object]:
    return [
        "--model_name_or_path", tiny, "--data", data, "--output_dir", out,
        "--per_device_train_batch_size", batch, *FIVE_STEPS,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def single(tiny: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a plain single-process run."""
    out = tmp_path_factory.mktemp("single") / "lora"
    output = run_script(LORA, *common(tiny, data, out, 4), *TEN_STEPS)
    assert "language_model  adapted" in output and "vision_tower    frozen" in output
    assert "attention: language model SDPA, vision tower SDPA" in output and "train image trees: " in output
    return out


def test_adapter_folder_is_complete_and_changes_the_logits(single: Path, tiny: Path) -> None:
    assert load_ops(single) == [] and (single / "image_ops.json").is_file()
    assert (single / "processor_config.json").is_file() and (single / "tokenizer.json").is_file()
    plain, tuned = load_tuned(str(tiny), None), load_tuned(str(tiny), str(single))
    with torch.inference_mode():
        for inputs in sample_inputs(tuned):
            assert not torch.allclose(plain.model(**inputs).logits, tuned.model(**inputs).logits, atol=1e-3)
    assert all("language_model" in key for key in load_file(single / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("way", "rows", "accumulation", "checkpointing", "resumed"),
    [
        ("ddp", 2, 1, "false", False),
        pytest.param("zero1", 2, 1, "true", True, marks=pytest.mark.slow),
        pytest.param("zero2", 1, 2, "true", True, marks=pytest.mark.slow),
        pytest.param("zero2_offload", 1, 2, "true", True, marks=pytest.mark.slow),
        ("zero3", 2, 1, "true", True),
        pytest.param("zero3_offload", 2, 1, "true", True, marks=pytest.mark.slow),
        ("fsdp", 1, 2, "true", True),
    ],
)
def test_two_ranks_give_the_losses_of_one_and_go_on_where_they_were(
    way: str, rows: int, accumulation: int, checkpointing: str, resumed: bool,
    single: Path, tiny: Path, data: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Four rows of image trees a step, however they are spread; answers differ in length, so that averaging over
    batches instead of tokens would show (transformers#39123)."""
    words = [*common(tiny, data, tmp_path / "out", rows), *TEN_STEPS, "--gradient_accumulation_steps", accumulation]
    words += ["--gradient_checkpointing", checkpointing, *options_of(way, tmp_path)]
    torchrun(2, LORA, *words)
    assert losses(tmp_path / "out") == pytest.approx(losses(single), abs=1e-4) and len(losses(single)) == 10
    ours, reference = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "out", single))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in reference.items()}
    for key, value in ours.items():
        assert torch.allclose(value, reference[key], atol=1e-5), key
    load_tuned(str(tiny), str(tmp_path / "out"))  # refuses missing and unexpected keys
    if resumed:
        shutil.copytree(tmp_path / "out", tmp_path / "again")
        words[words.index("--output_dir") + 1] = tmp_path / "again"
        torchrun(2, LORA, *words, "--resume", tmp_path / "again/checkpoint-4")
        assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "out"), abs=1e-6)
        for key, value in load_file(tmp_path / "again/adapter_model.safetensors").items():
            assert torch.allclose(value, ours[key], rtol=0, atol=1e-6), key


@pytest.mark.parametrize(
    ("family", "mode", "options"),
    [
        ("qwen3_vl", "zero3", ["--vision_tower", "lora", "--projector", "full", "--gradient_checkpointing", "true"]),
        pytest.param(
            "llava",
            "ddp",
            ["--vision_tower", "lora", "--projector", "full", "--gradient_checkpointing", "true"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "llava_next", "ddp", ["--tuning", "qlora", "--optim", "paged_adamw_8bit"], marks=pytest.mark.slow
        ),
        pytest.param("qwen2_vl", "zero2", ["--tuning", "qlora"], marks=pytest.mark.slow),
    ],
)
def test_two_ranks_tune_every_component_as_one_process_does(
    family: str, mode: str, options: list[str], tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Adapters in the tower beside a projector in full: parts that a rank cuts, checkpoints, or never runs."""
    spread = options_of(mode, tmp_path)
    tiny, recipe = tinies[family], ROOT / f"recipes/{BACKBONES[family].recipes}_lora.py"
    run_script(recipe, *common(tiny, data, tmp_path / "single", 2), *options)
    torchrun(2, recipe, *common(tiny, data, tmp_path / "out", 1), *options, *spread)
    # TRL makes the adapters of a quantised model bfloat16; DeepSpeed keeps its float32 copies to itself
    rounded = mode == "zero2"
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "single"), abs=5e-3 if rounded else 2e-4)
    ours, reference = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "single"))
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in reference.items()}
    start = load_file(tiny / "model.safetensors")
    for key, value in ours.items():
        # 8-bit optimisers round their states block by block
        tolerance = 2e-2 if rounded else 2e-3 if "qlora" in options else 3e-4
        assert torch.allclose(value.float(), reference[key], atol=tolerance), key
        assert ".lora_B." not in key or value.any(), f"{key}: no gradient came here"
    if "qlora" not in options:
        assert sum("lora" not in key for key in ours) == sum("merger" in k or "multi_modal" in k for k in start)
    load_tuned(str(tiny), str(tmp_path / "out"))


def test_one_rank_torchrun_and_one_process_with_deepspeed(
    single: Path, tiny: Path, data: Path, tmp_path: Path
) -> None:
    torchrun(1, LORA, *common(tiny, data, tmp_path / "torchrun", 4))
    assert losses(tmp_path / "torchrun") == pytest.approx(losses(single)[:5], abs=1e-5)
    if shutil.which("g++") or shutil.which("c++"):
        words = common(tiny, data, tmp_path / "zero2", 4)
        run_script(LORA, *words, "--deepspeed", ROOT / "deepspeed_configs/zero2.json")
        assert losses(tmp_path / "zero2") == pytest.approx(losses(single)[:5], abs=1e-4)


@pytest.mark.parametrize("loss_weighting", ["token", pytest.param("answer", marks=pytest.mark.slow)])
def test_the_flat_path_means_the_same_on_two_ranks_with_accumulation(
    loss_weighting: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    flat = ["--image_trees", "false", "--loss_weighting", loss_weighting]
    run_script(LORA, *common(tiny, data, tmp_path / "single", 8), *flat)
    words = [*common(tiny, data, tmp_path / "out", 2), *flat, "--gradient_accumulation_steps", 2]
    torchrun(2, LORA, *words)
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "single"), abs=1e-4)


@pytest.mark.parametrize(
    ("way", "family", "resumed"),
    [
        pytest.param("zero2", "qwen2_5_vl", False, marks=pytest.mark.slow),
        ("zero3", "qwen2_5_vl", False),
        pytest.param("fsdp", "llava", False, marks=pytest.mark.slow),
        pytest.param("zero3", "llava", True, marks=pytest.mark.slow),
        pytest.param("fsdp", "qwen2_5_vl", True, marks=pytest.mark.slow),
        pytest.param("zero3_offload", "llava", True, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_tune_the_whole_model_as_one_process_does_and_save_the_bases_keys(
    way: str, family: str, resumed: bool, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """LLaVA's head is a tensor of its own, that of the tiny Qwen2.5-VL is its embedding."""
    recipe = ROOT / f"recipes/{BACKBONES[family].recipes}_full.py"
    words = [*common(tinies[family], data, tmp_path / "out", 1), *TEN_STEPS, "--gradient_checkpointing", "true"]
    alone = common(tinies[family], data, tmp_path / "single", 2)
    run_script(recipe, *alone, "--max_steps", 10)
    torchrun(2, recipe, *words, *options_of(way, tmp_path))
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "single"), abs=1e-4)
    folders = (tinies[family], tmp_path / "single", tmp_path / "out")
    before, reference, after = (load_file(folder / "model.safetensors") for folder in folders)
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    for key, value in after.items():
        assert torch.allclose(value, reference[key], atol=2e-4), key
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    language_model = {key for key in before if not key.startswith(("visual", "vision_tower", "multi_modal"))}
    assert moved == language_model
    load_tuned(str(tmp_path / "out"), None)
    if resumed:
        shutil.copytree(tmp_path / "out", tmp_path / "again")
        words[words.index("--output_dir") + 1] = tmp_path / "again"
        torchrun(2, recipe, *words, *options_of(way, tmp_path), "--resume", tmp_path / "again/checkpoint-4")
        assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "out"), abs=1e-6)
        for key, value in load_file(tmp_path / "again/model.safetensors").items():
            assert torch.allclose(value, after[key], rtol=0, atol=1e-6), key


def test_checkpoints_can_be_evaluated_as_they_are(tiny: Path, data: Path, tmp_path: Path) -> None:
    words = common(tiny, data, tmp_path / "out", 2)
    words[words.index("--save_strategy") + 1] = "steps"
    run_script(LORA, *words, "--save_steps", 3, "--image_ops", "log", "standardise", "shift:2")
    assert load_ops(tmp_path / "out/checkpoint-3") == ["log", "standardise", "shift:2"]
    assert load_tuned(str(tiny), str(tmp_path / "out/checkpoint-3")).image_ops == ["log", "standardise", "shift:2"]


def test_without_arguments_the_missing_sample_and_base_are_made(tmp_path: Path) -> None:
    """As `python recipes/qwen_lora.py` on a fresh clone, but for the number of steps and the folder."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    output = run_script(tmp_path / "recipes/qwen_lora.py", "--max_steps", 2, cwd=tmp_path)
    assert "No --config and no model given: using" in output
    assert "making a sample of 200 simulated scenes" in output and "making an untaught tiny qwen2_5_vl" in output
    assert (tmp_path / "outputs/demo/lora/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_name_or_path", "missing/model"], "missing/model: neither a folder"),
        (["--data", "missing/data"], "missing/data: no data folder"),
        (["--image_root", "missing/images"], "missing/images is no folder"),
        (["--image_ops", "sharpen"], "image_ops: unknown operation `sharpen`"),
        (["--max_length", "512"], "max_length: cutting a sequence cuts image tokens"),
        (["--language_model", "frozen"], "every component is frozen"),
        (["--config", "missing.yaml"], "missing.yaml: no such file"),
        (["--packing", "true"], "packing and padding_free"),
        (["--attn_implementation", "eager"], "attn_implementation eager: adds a boolean mask"),
        (["--turns_per_image", "0"], "turns_per_image 0: must be at least 1"),
        (["--max_tokens_per_row", "20"], "image longer than a row (raise max_tokens_per_row, or lower max_pixels"),
        (["--average_tokens_across_devices", "false"], "average_tokens_across_devices: must stay on"),
        (["--loss_weighting", "image"], "loss_weighting `image`: choose token or answer"),
        (["--lora_alpha", "-1"], "lora_alpha -1"),
        (["--resume_from_checkpoint", "missing"], "resume_from_checkpoint missing: say `resume` instead"),
        (["--resume", "missing"], "resume missing: no such folder; give auto, never or a checkpoint's folder"),
        (["--max_hours", "0"], "max_hours 0.0: must be above 0"),
        (["--save_only_model", "true"], "save_only_model True: must stay False"),
        (["--push_to_hub", "true"], "push_to_hub True: must stay False"),
        (["--lora_target_modules", "nothing"], "lora_target_modules `nothing`: matches no linear layer"),
        (["--lora_target_modules", ".*qkv"], "layers of the vision_tower (such as model.visual.blocks.0.attn.qkv)"),
        (["--tuning", "qlora", "--language_model", "full"], "quantised weights cannot be trained in full"),
        (["--dtype", "float32", "--attn_implementation", "flash_attention_2", "--image_trees", "false"],
         "flash_attention_2: computes in 16 bits only"),
        (["--dtype", "float8"], "dtype `float8`: choose one of auto, bfloat16"),
        (["--max_pixels", "100000000"], "takes 173,056 tokens, the model's context has 4,096; set it to at most"),
        (["--use_liger_kernel", "true"], "use_liger_kernel: not verified for any family here"),
        (["--checkpointed", "vision_tower", "--gradient_checkpointing", "false"], "gradient_checkpointing is off"),
        (["--checkpointed", "projector"], "checkpointed `projector`: choose one of both, vision_tower"),
        (["--activation_offloading", "true"], "activation_offloading: moves activations off the GPU"),
        (["--fsdp", "true"], "fsdp: cuts a model among ranks; start them by `torchrun --nproc_per_node N`"),
        (["--fsdp_config", "mine.json"], "fsdp_config mine.json: must stay None"),
        (["--deepspeed", "none.json"], "deepspeed none.json: cannot be read as JSON"),
        (["--deepspeed", "deepspeed_configs/zero2_offload.json", "--optim", "adafactor"],
         "optim adafactor: deepspeed deepspeed_configs/zero2_offload.json has an optimizer block"),
    ],
)  # fmt: skip
def test_wrong_configuration_stops_before_any_model_is_loaded(
    words: list[str], message: str, tiny: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = {"--model_name_or_path": tiny, "--data": data, "--output_dir": tmp_path / "out", "--max_steps": 1}
    given.update(zip(words[::2], words[1::2], strict=True))
    monkeypatch.setattr("sys.argv", [str(LORA), *[str(word) for pair in given.items() for word in pair]])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(LORA), run_name="__main__")
    output = "".join(capfd.readouterr())
    assert stopped.value.code == 2 and message in output and "Loading weights" not in output


def test_bad_input_is_one_line_for_whoever_runs_the_recipe(tiny: Path, data: Path, tmp_path: Path) -> None:
    output = run_script(LORA, "--model_name_or_path", tiny, "--data", tmp_path / "missing", code=2)
    assert f"error: --data {tmp_path / 'missing'}: no data folder" in output and "Traceback" not in output
    if shutil.which("g++") or shutil.which("c++"):
        words = [*common(tiny, data, tmp_path / "out", 1), "--tuning", "qlora"]
        output = run_script(LORA, *words, "--deepspeed", ROOT / "deepspeed_configs/zero3.json", code=2)
        assert "ZeRO-3 cuts the weights that quantisation, pissa and eva read whole; use" in output
        assert "Traceback" not in output and "Loading weights" not in output


def test_an_unknown_config_key_is_named_with_its_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model_name_or_path: x\ndata: y\nlora_rank: 8\n")
    output = run_script(LORA, "--config", config, code=2)
    assert re.search(r"mine\.yaml: unknown option `lora_rank`; (did you mean|see --help)", output)


@pytest.mark.parametrize(
    "line", ["lora_r: [8]", "data: {a: b}", "image_ops: log", "image_ops:", "max_steps: 3.7", "max_pixels: yes"]
)
def test_values_of_the_wrong_type_are_named_with_their_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"model_name_or_path: x\n{line}\n")
    arguments = [ModelArguments, TuningArguments, DataArguments, TrainArguments]
    with pytest.raises(InputError, match=rf"mine\.yaml: `{line.split(':')[0]}: .* is not of the type"):
        parse_arguments(arguments, "", args=["--config", str(tmp_path / "mine.yaml")])


def test_the_adapter_loads_with_plain_peft_and_every_layer_has_moved(single: Path, tiny: Path) -> None:
    base = BACKBONES["qwen2_5_vl"].model_class.from_pretrained(tiny)
    tuned = PeftModel.from_pretrained(base, single)
    assert sum("lora_B" in name and bool(p.abs().sum() > 0) for name, p in tuned.named_parameters()) == 3 * 7


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_in_the_middle_of_an_epoch_equals_uninterrupted(
    ranks: int, tiny: Path, data: Path, tmp_path: Path
) -> None:
    """Rows come from the plan of their epoch: a resumed run takes those that are left, with the dialogues drawn anew
    for it; evaluation in between changes nothing and gives one loss, however many ranks share it."""
    words = common(tiny, data, tmp_path / "whole", 4 // ranks)
    words[words.index("--save_strategy") + 1] = "steps"
    words[words.index("--max_steps") + 1] = 7
    words += ["--save_steps", 5, "--lora_dropout", 0.1, "--eval_strategy", "steps", "--eval_steps", 3]
    words += ["--per_device_eval_batch_size", 1]
    output = torchrun(ranks, LORA, *words)
    steps = int(re.search(r"train image trees: .* in (\d+) rows .*, 4 rows and", output)[1]) // 4
    assert steps < 5 and 5 % steps and "val image trees" in output, "step 5 must lie within a later epoch"
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoint-7")
    words[words.index("--output_dir") + 1] = tmp_path / "resumed"
    torchrun(ranks, LORA, *words, "--resume", tmp_path / "resumed/checkpoint-5")
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 7
    ours, reference = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("resumed", "whole"))
    assert all(torch.equal(ours[key], reference[key]) for key in reference)
    history = json.loads((tmp_path / "whole/trainer_state.json").read_text())["log_history"]
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert (
        len(evaluated) == 3
        and 0.7 * losses(tmp_path / "whole")[-1] < evaluated[0] < 1.3 * losses(tmp_path / "whole")[0]
    )


@pytest.mark.parametrize("family", sorted(BACKBONES))
def test_trees_and_flat_learn_the_same_over_a_whole_training(
    family: str, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """The same images and questions in every step: eight dialogues, as two trees or as eight rows."""
    table = read_mixture([DataSource(str(data))], "train")
    record = table["record"].to_numpy()
    groups = [np.flatnonzero(record == number)[:4] for number in range(20)]
    plans = {"trees": [groups[i : i + 2] for i in range(0, 20, 2)], "flat": [[d[None]] for g in groups for d in g]}
    results = {}
    for name, plan in plans.items():
        trees = name == "trees"
        trainer, _ = make_trainer(
            tinies[family], data, tmp_path / name, TuningArguments(), Plan(PlannedRows(table, [plan], trees), None),
            max_steps=10, per_device_train_batch_size=1 if trees else 8, logging_steps=1, image_trees=trees,
            gradient_checkpointing=trees,
        )  # fmt: skip
        trainer.train()
        results[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert all(entry["qa_per_s"] > 0 and entry["tokens_per_s"] > 0 for entry in trainer.state.log_history[:-1])
    assert results["trees"] == pytest.approx(results["flat"], abs=1e-4) and results["flat"][-1] < results["flat"][0]


@pytest.mark.parametrize("family", sorted(BACKBONES))
@pytest.mark.parametrize("projector", ["frozen", "lora"])
def test_a_frozen_tower_is_left_out_of_the_graph_and_the_rest_learns_all_the_same(
    projector: str, family: str, tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Checkpointing makes transformers let gradients into the patches of a frozen tower; it must not keep any."""
    tuning = TuningArguments(projector=projector)
    trainer, _ = make_trainer(tinies[family], data, tmp_path, tuning, max_steps=1, gradient_checkpointing=True)
    seen = []
    for name, module in trainer.model.named_modules():
        if name.endswith(("visual.blocks.2", "vision_tower.encoder.layers.1", "vision_tower.encoder.layers.2")):
            module.register_forward_hook(lambda m, i, output: seen.append(output))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    outputs = [one[0] if isinstance(one, tuple) else one for one in seen]
    assert outputs and not any(output.requires_grad for output in outputs)
    moved = {
        name for name, p in trainer.model.named_parameters() if name in before and not torch.equal(p, before[name])
    }
    assert {name for name in before if "lora_B" in name} <= moved
    assert any("merger" in name or "multi_modal_projector" in name for name in moved) == (projector == "lora")


def test_llava_recipe_without_arguments_and_with_a_pixel_budget(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    recipe = tmp_path / "recipes/llava_lora.py"
    output = run_script(recipe, "--max_steps", 2, cwd=tmp_path)
    assert "making an untaught tiny llava" in output and "language_model  adapted" in output
    words = ["--config", tmp_path / "recipes/configs/demo_llava.yaml", "--max_pixels", 9000]
    assert "this family resizes every image to one size" in run_script(recipe, *words, cwd=tmp_path, code=2)
    load_tuned(str(tmp_path / "outputs/demo_llava/base"), str(tmp_path / "outputs/demo_llava/lora"))
