"""Sets the fields of a config from text, finds the nearest name to a wrong one, and tells their meanings.

The meaning of a field is the comment at the line that sets it in the modules of configs.
"""

from __future__ import annotations

import ast
import difflib
import functools
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import smallr
from smallr.core.errors import UserError

# What other trainers call a field.
_ELSEWHERE = {
    "batch_size": "batch.rows",
    "per_device_train_batch_size": "batch.rows",
    "micro_batch_size": "batch.rows",
    "gradient_accumulation_steps": "batch.accumulation",
    "max_length": "batch.row_length",
    "max_seq_length": "batch.row_length",
    "sequence_len": "batch.row_length",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "logging_steps": "log_every",
    "eval_steps": "eval_every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep_last",
    "warmup_ratio": "optimizer.warmup",
    "warmup_steps": "optimizer.warmup",
    "max_grad_norm": "optimizer.clip_norm",
    "lr_scheduler_type": "optimizer.schedule",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset_name": "data.train",
    "loss_type": "objective.loss",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "gradient_checkpointing": "compute.remat",
    "bf16": "compute.dtype",
}
_MODULES = {
    "training": "config.py",
    "evaluation": "evals/config.py",
    "crv": "methods/crv/config.py",
    "planner": "methods/planner/config.py",
    "collate": "methods/collate/config.py",
    "decomposition": "methods/decomposition/config.py",
}
_LINE = re.compile(r"\s+(?P<root>\w+)\.(?P<path>[\w.]+)(?:, config\.[\w.]+)* = .*?(?:  # (?P<meaning>.+))?$")
_COMMENT = re.compile(r"\s+# (.+)$")


def flat(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of each field; a group comes before its fields."""
    for name, value in config.items():
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{name}.")


def with_lora(config: ConfigDict) -> ConfigDict:
    """Returns the config with the fields of LoRA and their learning rate."""
    from smallr.config import add_lora

    with config.unlocked():
        return add_lora(config)


def set_field(config: ConfigDict, path: str, text: str | None) -> None:
    """Sets a field from what stands on the command line.

    Raises:
      UserError: no such field, or a value of another type; one line that names the field.
    """
    parent, name = _field(config, path)
    node = parent[name]
    if isinstance(node, ConfigDict):
        raise _is_group(path, node)
    if text is None:
        if not isinstance(node, bool):
            raise UserError(f"config.{path}: give a value, --config.{path}=VALUE")
        text = "true"
    if _is_sources(config, path):
        _set_sources(parent, name, _sources_of_rows(path, text))
    else:
        parent[name] = _value(path, text, node)


def set_value(config: ConfigDict, path: str, value: Any) -> None:
    """Sets a field from a value of Python, or the fields of a group from a mapping.

    A text is read as on the command line. A whole float is taken for an int, as 1e3 is there.

    Raises:
      UserError: no such field, or a value of another type; one line that names the field.
    """
    parent, name = _field(config, path)
    old = parent[name]
    if _is_sources(config, path) and isinstance(value, tuple | list | str | os.PathLike):
        several = isinstance(value, tuple | list)
        _set_sources(parent, name, tuple(value) if several else _sources_of_rows(path, os.fspath(value)))
    elif isinstance(value, Mapping) and isinstance(old, ConfigDict):
        for key, each in value.items():
            set_value(config, f"{path}.{key}", each)
    elif isinstance(old, ConfigDict):
        raise _is_group(path, old)
    elif isinstance(value, str | os.PathLike):
        parent[name] = _value(path, os.fspath(value), old)
    elif isinstance(old, tuple | list) and isinstance(value, tuple | list):
        parent[name] = tuple(value)
    elif isinstance(old, bool) == isinstance(value, bool) and isinstance(old, int | float):
        if not isinstance(value, int | float):
            raise UserError(f"config.{path}={value!r}: must be a {_kind_of(old)}, like {old}")
        if isinstance(old, int) and value != int(value):
            raise UserError(f"config.{path}={value!r}: must be a whole number, like {old}")
        parent[name] = old.__class__(value)
    else:
        raise UserError(f"config.{path}={value!r}: must be a {_kind_of(old)}, like {old!r}")


def _field(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """Returns the group that holds a field, and the field's name in it."""
    *groups, name = path.split(".")
    node = config
    for group in (*groups, name):
        if not isinstance(node, ConfigDict) or group not in node:
            raise UserError(_unknown(config, path))
        parent, node = node, node[group]
    return parent, name


def _is_group(path: str, node: ConfigDict) -> UserError:
    return UserError(f"config.{path} is a group: set one of its fields, {', '.join(f'{path}.{key}' for key in node)}")


def _kind_of(value: Any) -> str:
    names = {bool: "truth value", int: "whole number", float: "number", str: "text", tuple: "tuple", list: "list"}
    return names.get(value.__class__, value.__class__.__name__)


def _is_sources(config: ConfigDict, path: str) -> bool:
    return path == "data.train" and _kind(config) == "training"


def _set_sources(data: ConfigDict, name: str, value: str | tuple[Any, ...]) -> None:
    """Sets `data.train`, a source or a list of them; the config of a run knows it as the one that it was."""
    with data.ignore_type():
        data[name] = value


def _sources_of_rows(path: str, text: str) -> str | tuple[Any, ...]:
    """The text as the name of a source, or as a list of sources with their fields."""
    if not (text.lstrip().startswith(("[", "(")) and "{" in text):
        return text
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError) as error:
        raise UserError(
            f"config.{path}={text}: cannot be read as a list of {{'path': …, 'weight': …}}: {error}"
        ) from None
    return tuple(value)


def _value(path: str, text: str, old: Any) -> Any:
    """Returns the text as a value of the type of the old one."""
    lower = text.lower()
    if isinstance(old, bool):
        if lower not in ("true", "false", "1", "0", "yes", "no"):
            raise UserError(f"config.{path}={text}: must be true or false")
        return lower in ("true", "1", "yes")
    if isinstance(old, int | float):
        try:
            value = float(text)
        except ValueError:
            kind = "whole number" if isinstance(old, int) else "number"
            raise UserError(f"config.{path}={text}: must be a {kind}, like {old}") from None
        if isinstance(old, float):
            return value
        if not value.is_integer():
            raise UserError(f"config.{path}={text}: must be a whole number, like {old}")
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else int(value)
    if isinstance(old, tuple | list):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return text


def _unknown(config: ConfigDict, path: str) -> str:
    if path.split(".")[0] == "lora":
        return f"config.{path}: this config trains all parameters; add --lora to train adapters"
    near = nearest_fields(config, path)
    hint = f"; did you mean {' or '.join(near)}?" if near else " (--help lists the fields)"
    return f"config.{path}: no such field{hint}"


def nearest_fields(config: ConfigDict, path: str) -> list[str]:
    """Returns up to two fields that may be meant."""
    known = [name for name, value in flat(config) if not isinstance(value, ConfigDict)]
    wanted = path.rpartition(".")[2].lower()
    if _ELSEWHERE.get(wanted) in known:
        return [_ELSEWHERE[wanted]]
    last = {name: name.rpartition(".")[2] for name in known}
    for fits in (
        lambda name: last[name] == wanted,
        lambda name: "".join(word[0] for word in last[name].split("_")) == wanted,  # lr
    ):
        if found := [name for name in known if fits(name)]:
            return found[:2]
    whole = difflib.get_close_matches(path, known, 1, 0.75)
    return whole or [name for name in known if difflib.get_close_matches(wanted, [last[name]], 1, 0.75)][:2]


@functools.cache
def _sources(kind: str) -> list[tuple[str, str, str]]:
    """Yields (path, setting function, meaning) in the order of a module; `*.name` in groups that are alike."""
    found, function, above = [], "", []
    for line in (Path(smallr.__file__).parent / _MODULES[kind]).read_text().splitlines():
        if line.startswith("def "):
            function = line[4:].partition("(")[0]
        match, comment = _LINE.match(line), _COMMENT.match(line)
        if match:
            path = match["path"] if match["root"] == "config" else f"*.{match['path']}"
            found.append((path, function, match["meaning"] or " ".join(above)))
        above = [*above, comment[1]] if comment else []
    return found


def _kind(config: ConfigDict) -> str:
    if "markers" in config:
        return "decomposition"
    if "agents" in config:
        return "crv"
    if "planners" in config:
        return "planner"
    if "marks" in config:
        return "collate"
    return "evaluation" if isinstance(config.get("benchmark"), str) else "training"


def meaning(config: ConfigDict, path: str) -> str:
    """Returns the meaning of a field of this config; empty if it has none."""
    name = path.rpartition(".")[2]
    entries = [entry for entry in _sources(_kind(config)) if entry[2]]
    fitting = [entry for entry in entries if entry[0] == path] or [
        entry for entry in entries if entry[0] == f"*.{name}"
    ]
    objective = config.get("objective", {}).get("name")
    for _, function, text in fitting:
        if function == objective:
            return text
    if fitting:
        return fitting[0][2]
    if path.startswith("objective.") and objective == "preference":
        from smallr.losses.preference.registry import parse

        field = parse(config.objective.loss).fields.get(name)
        return field.meaning if field else ""
    return ""


def described(config: ConfigDict) -> Iterator[tuple[str, Any, str]]:
    """Yields (path, value, meaning) in the order of the modules of configs: the fields of a group, then its groups.

    A group comes before its fields, with the group itself as the value.
    """
    order = {path: place for place, (path, _, _) in reversed([*enumerate(_sources(_kind(config)))])}

    def entries(group: ConfigDict, prefix: str) -> Iterator[tuple[str, Any, str]]:
        names = sorted(group, key=lambda name: order.get(prefix + name, order.get(f"*.{name}", len(order))))
        for name in sorted(names, key=lambda name: isinstance(group[name], ConfigDict)):
            yield prefix + name, group[name], meaning(config, prefix + name)
            if isinstance(group[name], ConfigDict):
                yield from entries(group[name], f"{prefix}{name}.")

    return entries(config, "")


def describe(config: ConfigDict) -> str:
    """Returns a line for each field, in the order of the modules of configs: its value here and its meaning."""
    lines = []
    for path, value, text in described(config):
        if isinstance(value, ConfigDict):
            title = f"{path}:  {text}" if text else f"{path}:"
            lines += ["", *textwrap.wrap(title, 118, subsequent_indent="  ")]
        else:
            lines += _line(path, value, text)
    return "\n".join(lines).strip("\n")


def _line(path: str, value: Any, text: str) -> Iterator[str]:
    field = f"  {path}={value}" if isinstance(value, str) and value.isprintable() and value else f"  {path}={value!r}"
    wrapped = textwrap.wrap(text, 72) or [""]
    if len(field) > 46:
        yield field
        field = ""
    yield f"{field:46}  {wrapped[0]}".rstrip()
    yield from (f"{'':46}  {more}" for more in wrapped[1:])
