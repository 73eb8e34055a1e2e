"""YAML files that hold options."""

from pathlib import Path
from typing import Any

import yaml

from sarlang_sft.errors import InputError


def read_mapping(path: Path, text: str) -> dict[Any, Any]:
    """The text of a YAML file; raises [`InputError`] if it is no mapping."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold `option: value` lines, found {type(content).__name__}")
    return content
