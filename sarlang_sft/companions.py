"""What stands beside a released model's weights: configurations, processor, tokenizer, image operations."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, ProcessorMixin

from sarlang_sft.backbones import Backbone
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import save_ops
from sarlang_sft.loading import build_skeleton, load_processor

GENERATION = "generation_config.json"
# Of tokenizers before `tokenizer.json`; older libraries and servers look for them.
OLDER_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json", "added_tokens.json")


def write_companions(
    base: Path, skeleton: PreTrainedModel, processor: ProcessorMixin, image_ops: list[str], dtype: str, out: Path
) -> None:
    """Write them to a folder: the base's configurations as they are, and the processor that training used.

    What the base has for older libraries is written too, with what the processor in use says.

    Args:
        dtype: Of the merged weights; unless `auto`, the configuration names it.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if dtype != "auto":
        config = _with_dtype({**config, "torch_dtype" if "torch_dtype" in config else "dtype": dtype}, dtype)
    _write_json(out / "config.json", config)
    if (base / GENERATION).is_file():
        shutil.copyfile(base / GENERATION, out / GENERATION)
    else:
        skeleton.generation_config.save_pretrained(out)
    processor.save_pretrained(out)
    if (base / "preprocessor_config.json").is_file():
        processor.image_processor.save_pretrained(out)
    if (base / "video_preprocessor_config.json").is_file():
        processor.video_processor.save_pretrained(out)
    if (base / "chat_template.json").is_file() and isinstance(processor.chat_template, str):
        _write_json(out / "chat_template.json", {"chat_template": processor.chat_template})
    older = [base / name for name in OLDER_TOKENIZER if (base / name).is_file()]
    if older and _same_tokenizer(base, out):
        for path in older:
            shutil.copyfile(path, out / path.name)
    save_ops(out, image_ops)


def check_companions(folder: Path, backbone: Backbone, processor: ProcessorMixin) -> None:
    """Raise [`InputError`] unless a folder alone gives this processor, a generation configuration, and its model.

    The model is built without weights; its weight files must fit it.
    """
    found = load_processor(str(folder), backbone)
    if found.to_dict() != processor.to_dict() or found.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise InputError(f"{folder}: gives another processor than was kept with the adapter; nothing was written")
    build_skeleton(str(folder), backbone)
    try:
        GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {GENERATION} cannot be read ({error}); nothing was written") from error


def _with_dtype(config: Any, dtype: str) -> Any:
    """The configuration with another dtype wherever it names one."""
    if not isinstance(config, dict):
        return config
    return {
        key: dtype if key in ("dtype", "torch_dtype") else _with_dtype(value, dtype) for key, value in config.items()
    }


def _same_tokenizer(base: Path, out: Path) -> bool:
    first, second = (AutoTokenizer.from_pretrained(folder) for folder in (base, out))
    return first.get_vocab() == second.get_vocab() and first.special_tokens_map == second.special_tokens_map


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
