import os
import subprocess
import sys
from pathlib import Path

import pytest

from sarlang_sft.backbones import BACKBONES
from sarlang_sft.records import read_dialogue_table, write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("SAR_REAL_DATA")
    if not folder:
        pytest.skip("SAR_REAL_DATA is not set: it names a folder with real SAR data and a real processor")
    return Path(folder).resolve()


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


def run_script(*words: object, code: int = 0, cwd: Path = ROOT) -> str:
    """Run a script of the repository as a user would; its output, after checking its exit code."""
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1200, env=environment)
    output = finished.stdout + finished.stderr
    assert finished.returncode == code, output
    return output
