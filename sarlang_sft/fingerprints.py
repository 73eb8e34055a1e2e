"""What tells one model, adapter or file from any other."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from sarlang_sft.errors import InputError
from sarlang_sft.records import file_hash

SAMPLED = 1 << 20  # bytes at the start, middle and end of a weight file that stand for all of it
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
MODEL_FILES = re.compile(
    r"(.*config|tokenizer.*|vocab|merges|special_tokens_map|added_tokens|chat_template|.*\.index)\.(json|jinja|txt)"
    r"|.*\.model"
)


def base_fingerprint(model_name_or_path: str) -> str:
    """Tells a model from any other: the commit of one on the hub, or a SHA-256 over the files of a folder.

    Of weight files it takes size, header and samples, so that 72 billion parameters are told apart in a moment.

    Raises:
        InputError: A model on the hub cannot be looked up.
    """
    folder = Path(model_name_or_path)
    if not folder.is_dir():
        try:
            snapshot = snapshot_download(model_name_or_path, allow_patterns=["config.json"])
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            raise InputError(f"model {model_name_or_path}: cannot be looked up ({error})") from error
        return f"{model_name_or_path}@{Path(snapshot).name}"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if MODEL_FILES.fullmatch(path.name):
            digest.update(f"{path.name}\0{file_hash(path)}\0".encode())
        elif path.suffix in WEIGHT_SUFFIXES:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with open(path, "rb") as file:
                for place in (0, size // 2, max(0, size - SAMPLED)):
                    file.seek(place)
                    digest.update(file.read(SAMPLED))
    return digest.hexdigest()


def surely_differ(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are of two models; one of the hub cannot be compared with one of a folder."""
    comparable = one and other and ("@" in one) == ("@" in other)
    return bool(comparable) and one != other
