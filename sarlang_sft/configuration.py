"""Command line and YAML into dataclasses, with errors that name the file and the key."""

import argparse
import os
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from sarlang_sft.errors import InputError, nearest
from sarlang_sft.yaml_files import read_mapping

ALSO_LISTS = ("data", "stages")  # text on the command line, in YAML also a list, which argparse has no type for


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of what has one, and launch lines as they stand in the docstring."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


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
    args = [part for word in args for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    named = {word.partition("=")[0] for word in args}
    if default_config is not None and not named & {"--config", "--model_name_or_path", "-h", "--help"}:
        if os.environ.get("RANK", "0") == "0":
            print(f"No --config and no model given: using {default_config}", flush=True)
        args = ["--config", str(default_config), *args]
    if "--config" in args:
        if args[-1] == "--config":
            raise InputError("--config: the name of a YAML file must follow")
        check_config_file(Path(args[args.index("--config") + 1]), dataclass_types)
    parser = TrlParser(dataclass_types, description=doc, formatter_class=HelpFormatter, allow_abbrev=False)
    try:
        return parser.parse_args_and_config(args)
    except ValueError as error:  # a dataclass refused a value in its __post_init__
        raise InputError(str(error)) from error


def check_config_file(path: Path, dataclass_types: list[type]) -> None:
    """Raise [`InputError`] unless `path` is a YAML mapping whose keys are all fields of the dataclasses."""
    if not path.is_file():
        raise InputError(f"--config {path}: no such file")
    config = read_mapping(path, path.read_text(encoding="utf-8"))
    known = {name: hint for cls in dataclass_types for name, hint in get_type_hints(cls).items()} | {"env": dict}
    for key, value in config.items():
        if key not in known:
            raise InputError(f"{path}: unknown option `{key}`; {nearest(key, known, 'see --help for the options')}")
        may_be_list = key in ALSO_LISTS and isinstance(value, list)
        if not may_be_list and not fits(value, known[key]):
            raise InputError(f"{path}: `{key}: {value}` is not of the type {type_name(known[key])}")


def kinds(hint: Any) -> set[Any]:
    """The plain types in a type hint: `list[str] | None` gives list and NoneType."""
    if get_origin(hint) in (Union, UnionType):
        return {kind for part in get_args(hint) for kind in kinds(part)}
    return {get_origin(hint) or hint}


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can fill a field; text passes, since argparse reads it (`1e-4` is text to YAML)."""
    wanted = kinds(hint)
    if value is None or isinstance(value, list | dict):
        return type(value) in wanted
    if isinstance(value, bool):
        return bool(wanted & {bool, str})
    if isinstance(value, float):
        return bool(wanted & {float, str})
    return bool(wanted - {list, dict, NoneType})


def type_name(hint: Any) -> str:
    return " or ".join(sorted("nothing" if kind is NoneType else kind.__name__ for kind in kinds(hint)))
