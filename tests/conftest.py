import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import torch
from foreign_files import IMAGES, SIZE
from hypothesis import settings
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import AutoConfig, PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from sarlang_sft.adapters import lora_config
from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import BACKBONES, Backbone, find_backbone
from sarlang_sft.loading import build_skeleton, load_processor, load_weights
from sarlang_sft.records import read_dialogue_table, write_data_folder
from sarlang_sft.run_trainer import RunTrainer
from sarlang_sft.runs import open_run
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.signals import SIGNALS
from sarlang_sft.trainable import Trainable, choose_trainable
from sarlang_sft.training import Plan, build_trainer, make_collator, plan_rows, prepare_attention, prepare_tuning
from sarlang_sft.tuning import TuningArguments

ROOT = Path(__file__).parent.parent
HUNG = 400  # seconds until a script counts as hung
os.environ.setdefault("WANDB_MODE", "disabled")  # tests of tracking choose another
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Handlers that training in this process installs do not outlive their test."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("SAR_REAL_DATA")
    if not folder:
        pytest.skip("SAR_REAL_DATA is not set: it names a folder with real SAR data and a real processor")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def qwen_7b(real_data: Path) -> PreTrainedModel:
    """The real 7B model without storage for its weights."""
    config = AutoConfig.from_pretrained(real_data / "qwen2_5_vl_7b")
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of 40 scenes in the released layout."""
    out = tmp_path_factory.mktemp("sample") / "sample"
    write_sample(out, images=40, seed=3)
    return out


@pytest.fixture(scope="session")
def data(sample: Path) -> Path:
    """The data folder of the sample."""
    out = sample.parent / "data"
    write_data_folder(out, *convert(sample, sample, 0.1, Prompts())[:2], image_root=sample, inputs={})
    return out


@pytest.fixture(scope="session")
def tinies(data: Path) -> dict[str, Path]:
    """An untaught tiny model of every family whose tokenizer knows the sample's words."""
    turns = [turn for dialogue in read_dialogue_table(data, "train")["turns"].to_pylist() for turn in dialogue]
    texts = [text for turn in turns for text in turn.values()]
    for family, backbone in BACKBONES.items():
        backbone.build_tiny(data.parent / family, texts, 0)
    return {family: data.parent / family for family in BACKBONES}


@pytest.fixture(scope="session")
def tiny(tinies: dict[str, Path]) -> Path:
    """The tiny Qwen2.5-VL."""
    return tinies["qwen2_5_vl"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `foreign_files.IMAGES`."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(IMAGES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE, 40 * number).save(root / name)
    return root


def with_adapters(model: PreTrainedModel, backbone: Backbone, tuning: TuningArguments) -> PeftModel:
    """The model as training wraps it."""
    return get_peft_model(model, lora_config(model, backbone, choose_trainable(model, backbone, tuning), tuning))


def run_script(*words: object, code: int = 0, cwd: Path = ROOT) -> str:
    """Run a script of the repository as a user would; its output, after checking its exit code."""
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        output, _ = process.communicate(timeout=HUNG)
    except subprocess.TimeoutExpired:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGABRT)  # which prints where its threads are
        pytest.fail(f"hangs: {command}\n{process.communicate()[0]}")
    assert process.returncode == code, output
    return output


def run_here(monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> None:
    """Run a script of the repository in this process, which is quicker: exit codes but 0 are a `SystemExit`."""
    monkeypatch.setattr("sys.argv", [script, *map(str, words)])
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """[`run_script`] in this process, which is quicker."""

    def run(script: str, *words: object, code: int = 0) -> str:
        capsys.readouterr()
        ended: object = 0
        try:
            run_here(monkeypatch, script, *words)
        except SystemExit as end:
            ended = end.code
        output = "".join(capsys.readouterr())
        assert ended == code, output
        return output

    return run


def assemble(
    model: ModelArguments, tuning: TuningArguments, data: DataArguments, training: TrainArguments, plan: Plan | None
) -> tuple[RunTrainer, Trainable]:
    """A recipe up to the point where it trains, in this process."""
    backbone = find_backbone(model.model_name_or_path)
    processor = load_processor(model.model_name_or_path, backbone, data.max_pixels)
    skeleton = build_skeleton(model.model_name_or_path, backbone)
    attention = prepare_attention(model, data, training)
    trainable, quantised = prepare_tuning(skeleton, backbone, model, tuning, training)
    run = open_run(model, tuning, data, training)
    plan = plan or plan_rows(processor, backbone, skeleton.config, data, training)
    collator = make_collator(processor, backbone, data, attention, run)
    weights = load_weights(model.model_name_or_path, backbone, model.dtype, attention.by_config(), quantised)
    return build_trainer(weights, collator, plan, attention, trainable, tuning, data, training, run), trainable


def make_trainer(
    model: Path, data: Path, out: Path, tuning: TuningArguments, plan: Plan | None = None, dtype: str = "float32",
    **options: object,
) -> tuple[RunTrainer, Trainable]:  # fmt: skip
    """[`assemble`] for a few quick steps.

    Args:
        plan: Rows to train on instead of those planned.
        options: Of `DataArguments` and `TrainArguments`.
    """
    of_data = {field.name for field in fields(DataArguments)} & options.keys()
    data_args = DataArguments(**{"data": str(data), "max_tokens_per_row": 600, **{n: options.pop(n) for n in of_data}})
    quick = {"max_steps": 3, "save_strategy": "no", "gradient_checkpointing": False, "lr_scheduler_type": "constant"}
    quick |= {"learning_rate": 1e-3, "report_to": "none", "dataloader_num_workers": 0, "output_dir": str(out)}
    training = TrainArguments(**{**quick, **options})
    return assemble(ModelArguments(str(model), dtype=dtype), tuning, data_args, training, plan)
