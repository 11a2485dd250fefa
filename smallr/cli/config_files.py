"""Finds configs by name or file: `cogpo`, `adaptive/router`, `cogpo:smoke`, `my/own.py:argument`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path

from ml_collections import ConfigDict

import smallr
from smallr.config import base
from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json
from smallr.data.errors import nearest

_PACKAGE = Path(smallr.__file__).parent


def folder() -> Path:
    """Returns the folder of the configs: a package beside the others if smallr is installed, `configs/` in a clone."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Lists the names of all configs, those without a folder first."""
    found = [path.relative_to(folder()).with_suffix("") for path in folder().rglob("*.py") if path.stem != "__init__"]
    return sorted((path.as_posix() for path in found), key=lambda name: ("/" in name, name))


def docstring(name: str) -> str:
    """Returns the docstring of a config, read without running it."""
    return ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text())) or ""


def load(spec: str, group: str = "") -> tuple[ConfigDict, str]:
    """Loads a config.

    Args:
      spec: a name or a file, with an argument for its `get_config` behind a colon.
      group: folder of configs whose names need no folder in front.

    Returns:
      The config, and its short name.

    Raises:
      UserError: no such config, or it does not take the argument.
    """
    name, colon, argument = spec.partition(":")
    path = _find(name, group)
    if path is None and group == "eval":  # any benchmark has a config
        path, colon, argument = folder() / "eval" / "benchmark.py", ":", spec
    if path is None:
        known = names()
        near = nearest(name, known) or nearest(f"{group}/{name}", known)
        raise UserError(f"no config {name!r}: neither a file nor one of smallr's (smallr configs lists them){near}")
    module_spec = importlib.util.spec_from_file_location(f"smallr_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise UserError(f"{path}: a config has a function get_config()")
    if not colon:
        return get_config(), path.stem
    if not inspect.signature(get_config).parameters:
        raise UserError(f"config {name} takes no argument: {argument!r}")
    return get_config(argument), path.stem


def is_run(workdir: str | None) -> bool:
    """Returns whether the folder holds a run with its config."""
    return workdir is not None and (Path(workdir) / "config.json").is_file()


def of_run(workdir: str) -> ConfigDict:
    """Returns the config that a run was started with; fields that its version did not have yet get their defaults.

    Raises:
      UserError: it cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        config = ConfigDict(read_json(path, fields={"config": dict})["config"])
    except FileError as error:
        raise UserError(f"{error}: restore it, or name the config of the run") from error
    if "objective" in config:
        _add_missing(config, base())
    config.lock()
    return config


def _add_missing(config: ConfigDict, defaults: ConfigDict) -> None:
    for name, value in defaults.items():
        if name not in config:
            config[name] = value
        elif isinstance(value, ConfigDict) and isinstance(config[name], ConfigDict) and name != "columns":
            _add_missing(config[name], value)


def _find(name: str, group: str) -> Path | None:
    if Path(name).suffix == ".py" and Path(name).is_file():
        return Path(name)
    inside = name.removeprefix("configs/").removesuffix(".py")
    for candidate in (inside, f"{group}/{inside}") if group else (inside,):
        if candidate in names():
            return folder() / f"{candidate}.py"
    same = [known for known in names() if known.rpartition("/")[2] == inside]
    return folder() / f"{same[0]}.py" if len(same) == 1 else None
