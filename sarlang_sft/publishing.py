"""A folder ready to be published: weights, card, scores, facts and checksums; and its way to the hub."""

import json
import os
import re
import shutil
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import MODEL_FILES
from sarlang_sft.imagery import OPS_FILE
from sarlang_sft.model_card import base_id, write_card
from sarlang_sft.records import file_hash
from sarlang_sft.release import REPORT
from sarlang_sft.release_checks import check_files, weight_files
from sarlang_sft.release_facts import Release
from sarlang_sft.run_files import RUN
from sarlang_sft.scoring.predictions import read_json
from sarlang_sft.whole_output import whole_folder

CHECKSUMS = "SHA256SUMS"
PROCESSOR_FILES = {"processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", OPS_FILE}
# Of a tokenizer or processor: `/think` and `/` are no paths there.
TEXTS = {"chat_template", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"}
NAMES_A_MODEL = {"_name_or_path", "name_or_path", "base_model_name_or_path"}
_PATH = re.compile(r"(?<![\w:/.~<])~?(?:/[^\s/'\",:;()\[\]]+)+/?")


def write_release(release: Release, out: Path) -> None:
    """Assemble a release; weights are linked where the file system can, else copied.

    Raises:
        InputError: The weights are not whole, `out` is not empty or cannot be written, two score files have one name,
            or a file would tell a path of this machine.
    """
    check_files(release)
    weights = weight_files(release)
    with whole_folder(out) as building:
        for path in sorted(release.folder.iterdir()):
            if path in weights:
                _link(path, building / path.name)
            elif path.name == REPORT or (path.name.endswith("config.json") and MODEL_FILES.fullmatch(path.name)):
                _write(building / path.name, _without_model_paths(read_json(path), release))
            elif MODEL_FILES.fullmatch(path.name) or path.name in PROCESSOR_FILES:
                shutil.copyfile(path, building / path.name)
        for score in [*release.scores, *release.baselines]:
            target = building / "scores" / score.path.name
            if target.exists():
                raise InputError(f"--scores {score.path}: another score file has the same name; rename one")
            _write(target, without_paths(score.result))
        for number, data in enumerate(release.data, start=1):
            name = "manifest.json" if len(release.data) == 1 else f"manifest_{number}.json"
            _write(building / "training" / name, without_paths(data.manifest))
        if release.training:
            _write(
                building / "training" / RUN,
                without_paths({"state": release.training.state, "facts": release.training.facts}),
            )
        write_card(release, building / "README.md")
        _check_tells_no_paths(release, building)
        lines = [f"{file_hash(path)}  {path.relative_to(building)}\n" for path in _files(building)]
        (building / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def dump(content: Any) -> str:
    """JSON as it is published."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _link(source: Path, target: Path) -> None:
    source = source.resolve()  # the hub's cache holds links
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump(content), encoding="utf-8")


def _without_model_paths(config: dict[str, Any], release: Release) -> dict[str, Any]:
    """A model's configuration in which other models are named as the release names them."""
    named = {name: base_id(release) for name in NAMES_A_MODEL & config.keys() if config[name]}
    return without_paths(config | named) | {name: config[name] for name in TEXTS & config.keys()}


def without_paths(content: Any) -> Any:
    """JSON in which absolute paths are shortened to their last part, in keys, values and within texts."""
    if isinstance(content, dict):
        return {without_paths(key): without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    if not isinstance(content, str):
        return content
    if content.startswith(("/", "~/")) and "\n" not in content:
        return PurePath(content).name
    return _PATH.sub(lambda match: PurePath(match[0]).name, content)


def _check_tells_no_paths(release: Release, building: Path) -> None:
    folders = [release.folder, *(data.folder for data in release.data), Path.cwd(), Path.home()]
    told = {str(folder.resolve()) for folder in folders} | {data.manifest["image_root"] for data in release.data}
    for path in _files(building):
        if path.suffix in (".json", ".md") and not path.name.startswith(("tokenizer.", "vocab.")):
            text = path.read_text(encoding="utf-8").replace("\\", "")  # with which a card escapes
            if found := [folder for folder in told if len(folder) > 1 and re.search(rf"{re.escape(folder)}\b", text)]:
                name = path.relative_to(building)
                raise InputError(f"{name} of the release would tell the path {found[0]}; take it out of its source")


def check_login(repo: str) -> None:
    """Raise [`InputError`] unless something can be pushed to `user/repo`: before the work of assembling it."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--push_to {repo}: is no name on the hub ({error})") from error
    if "/" not in repo:
        raise InputError(f"--push_to {repo}: say USER/{repo}")
    if get_token() is None:
        raise InputError(f"--push_to {repo}: not logged in to the hub; run `hf auth login`")


def push(folder: Path, repo: str, private: bool, api: HfApi) -> str:
    """Upload a release; the repository is made if there is none. Returns the commit's address.

    Raises:
        InputError: The hub cannot be reached, or refuses.
    """
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Release")
    except (HTTPError, OfflineModeIsEnabled, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"--push_to {repo}: the hub did not take it ({why}); {folder} is complete: `hf upload {repo} {folder}`"
        ) from error
    return str(commit.commit_url)
