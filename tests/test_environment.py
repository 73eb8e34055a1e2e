"""What is recorded of libraries and checkout."""

import subprocess
from pathlib import Path

import pytest
import torch
import transformers

from sarlang_sft.environment import LIBRARIES, git_state, versions

AUTHOR = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
NONE = {"commit": "not a checkout", "dirty": None}


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit that holds the folder `package`."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/code.py").write_text("a = 1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, *AUTHOR, "commit", "-m", "one")
    return tmp_path


def test_versions_are_those_that_run() -> None:
    found = versions()
    assert list(found) == ["python", *LIBRARIES] and all(found.values())
    assert found["transformers"] == transformers.__version__ and torch.__version__.startswith(found["torch"])


def test_the_commit_is_recorded_and_whether_tracked_files_differ_from_it(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == git_state(checkout / "package") == {"commit": commit, "dirty": False}
    (checkout / "notes.txt").write_text("untracked")
    assert git_state(checkout / "package")["dirty"] is False
    (checkout / "package/code.py").write_text("a = 2\n")
    assert git_state(checkout / "package") == {"commit": commit, "dirty": True}


def test_a_package_installed_below_a_foreign_project_is_no_checkout(checkout: Path) -> None:
    installed = checkout / ".venv/site-packages/package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("a = 1\n")
    assert git_state(installed) == NONE


def test_without_repository_commit_folder_or_git_it_is_no_checkout(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    assert git_state(outside) == git_state(outside / "missing") == NONE
    git(outside, "init")
    assert git_state(outside) == NONE  # no commit yet
    monkeypatch.setenv("PATH", str(outside))
    assert git_state(checkout) == NONE
