"""Command line and YAML into dataclasses, with errors that name the file and the key."""

import argparse
import difflib
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser

from sarlang_sft.errors import InputError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and launch lines as they stand in the docstring."""


def parse_arguments(
    dataclass_types: list[type], doc: str, default_config: Path | None = None, args: list[str] | None = None
) -> tuple[Any, ...]:
    """Fill the dataclasses from `--config FILE.yaml` and `--field value` options; options win over the file.

    Args:
        dataclass_types: One instance of each is returned, in this order.
        doc: The program's docstring, shown by `--help`.
        default_config: YAML used when the command line names neither `--config` nor `--model_name_or_path`; said in
            one line. Whoever names a model gets the dataclasses' defaults, never those of a demo.
        args: The command line; `sys.argv[1:]` by default.

    Raises:
        InputError: The config file is missing, is no YAML mapping, or holds a key that no dataclass has.
    """
    args = list(sys.argv[1:] if args is None else args)
    named = {word.partition("=")[0] for word in args}
    if default_config is not None and not named & {"--config", "--model_name_or_path", "-h", "--help"}:
        if os.environ.get("RANK", "0") == "0":
            print(f"No --config and no model given: using {default_config}", flush=True)
        args = ["--config", str(default_config), *args]
    if "--config" in args[:-1]:
        check_config_file(Path(args[args.index("--config") + 1]), dataclass_types)
    parser = TrlParser(dataclass_types, description=doc, formatter_class=HelpFormatter)
    try:
        return parser.parse_args_and_config(args)
    except ValueError as error:  # a dataclass refused a value in its __post_init__
        raise InputError(str(error)) from error


def check_config_file(path: Path, dataclass_types: list[type]) -> None:
    """Raise [`InputError`] unless `path` is a YAML mapping whose keys are all fields of the dataclasses."""
    if not path.is_file():
        raise InputError(f"--config {path}: no such file")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: must hold `option: value` lines, found {type(config).__name__}")
    known = {field.name for cls in dataclass_types for field in fields(cls)} | {"env"}
    for key in config:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "see --help for the options"
            raise InputError(f"{path}: unknown option `{key}`; {hint}")
