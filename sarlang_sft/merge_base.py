"""The base model that adapters are merged into, refused where they cannot be."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from sarlang_sft.backbones import Backbone, find_backbone
from sarlang_sft.checkpoints import SEAL
from sarlang_sft.errors import InputError
from sarlang_sft.fingerprints import base_fingerprint, surely_differ
from sarlang_sft.loading import build_skeleton
from sarlang_sft.merging import Checkpoint, read_checkpoint
from sarlang_sft.run_facts import Facts
from sarlang_sft.run_files import RUN

QUANTISED_NAME = re.compile(r"(?i)[-_](bnb|[48]-?bit|int[48]|awq|gptq|fp8|nf4|gguf)(?![a-z])")
NOT_QUANTISED = (
    "weights of few bits would round the update away. Merge into the original model in 16 bits, and quantise the "
    "merged one if need be"
)


@dataclass(frozen=True)
class Base:
    """The base model: as it was named, its folder, its family, and the headers of its weights."""

    name: str
    folder: Path
    backbone: Backbone
    checkpoint: Checkpoint
    fingerprint: str

    def skeleton(self) -> PreTrainedModel:
        """The model without weights."""
        return build_skeleton(str(self.folder), self.backbone)


def open_base(base: str, quantised: str = NOT_QUANTISED) -> Base:
    """The base model from its folder or the hub.

    Args:
        quantised: What to say of one that is stored quantised.

    Raises:
        InputError: It cannot be found, its family is not supported, it is stored quantised, or a file is missing or
            not whole.
    """
    if not Path(base).is_dir() and QUANTISED_NAME.search(base):
        raise InputError(f"--base {base}: is stored quantised, by its name: {quantised}")
    backbone = find_backbone(base)
    folder = Path(base)
    if not folder.is_dir():
        try:
            wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
            folder = Path(snapshot_download(base, allow_patterns=wanted))
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            raise InputError(f"--base {base}: cannot be fetched ({error})") from error
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        raise InputError(f"--base {base}: is stored quantised (quantization_config): {quantised}")
    return Base(base, folder, backbone, read_checkpoint(folder), base_fingerprint(base))


def read_facts(adapter: Path) -> Facts:
    """What the run that made an adapter was made of; empty for an adapter from elsewhere."""
    for name in (RUN, SEAL):
        if (adapter / name).is_file():
            try:
                facts = json.loads((adapter / name).read_text(encoding="utf-8"))["facts"]
                return {"base": facts["base"], "options": facts["options"]}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"--adapter {adapter}: {name} cannot be read ({error!r}), so that its base is unknown; move it "
                    "away to merge all the same"
                ) from error
    return {}


def check_same_base(adapter: str, facts: Facts, base: Base) -> None:
    """Raise [`InputError`] if an adapter was trained on another base, where that was recorded.

    A commit of the hub and the hash of a folder say nothing of each other: then the shapes decide.
    """
    if surely_differ(facts.get("base"), base.fingerprint):
        recorded, here = (one if "@" in one else one[:12] for one in (facts["base"], base.fingerprint))
        raise InputError(
            f"--adapter {adapter}: was trained on another base ({facts['options'].get('model_name_or_path')}, "
            f"fingerprint {recorded}) than --base {base.name} ({here}); give the one it was trained on"
        )
