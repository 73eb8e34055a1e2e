"""What a run was made with: the versions of its libraries and the state of the checkout."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes", "wandb",
)  # fmt: skip
NO_CHECKOUT = "not a checkout"


def versions() -> dict[str, str]:
    """The version of Python and of every library that results depend on; "not installed" where one is missing."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_state(folder: Path) -> dict[str, str | bool | None]:
    """`commit` (the whole hash) and `dirty` (a tracked file differs from it) of the checkout that holds the folder.

    Without git, out of a repository, and where a repository tracks nothing in this folder (an installed package below
    somebody's project), `commit` is "not a checkout" and `dirty` None.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", ".")
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": NO_CHECKOUT, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]  # locks would get in the way of the user's git
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
