"""Templates of launchers, and how they are filled.

A field is `{{name}}`. All templates give every machine its part of the grid (`--share=I/N`); the machines share a disk, on
which each run has its folder, so whatever is stopped goes on when it is started again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from smallr.core.errors import UserError
from smallr.data.errors import nearest

KINDS = {"slurm": "slurm.sh", "skypilot": "skypilot.yaml", "xpk": "xpk.sh"}
# Fields with a default; those without one must be given.
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "slurm": {"name": "cogpo", "shares": "4", "hours": "12", "cpus": "8", "memory": "64G", "gpus": "1"},
    "skypilot": {"name": "cogpo", "shares": "4", "accelerator": "H100:1", "extra": "gpu"},
    "xpk": {"name": "cogpo", "shares": "4", "tpu_type": "v5litepod-8"},
}
_FIELD = re.compile(r"\{\{(\w+)\}\}")
_COUNTS = ("shares", "hours", "cpus", "gpus")
_WORD = re.compile(r"[\w./:@+=,-]+")  # safe unquoted in shell and YAML
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # what Kubernetes, SLURM and SkyPilot all take


def render(kind: str, command: str, values: Mapping[str, str]) -> str:
    """A launcher, ready to be submitted.

    Args:
      kind: slurm, skypilot or xpk.
      command: of the grid without `--share`, e.g. `python -m experiments.crv.ablation --out=/shared/cogpo`.
      values: of the template's fields; those with a default may be left out.

    Raises:
      UserError: an unknown kind or field, a field without a value, a value that the launcher could not hold.
    """
    if kind not in KINDS:
        raise UserError(f"launcher {kind!r} is none of {', '.join(KINDS)}")
    text = (Path(__file__).parent / KINDS[kind]).read_text()
    names = list(dict.fromkeys(_FIELD.findall(text)))
    ours = [name for name in names if name not in ("command", "last")]
    for name in values:
        if name not in ours:
            raise UserError(f"{kind}: no field {name!r}; there are {', '.join(ours)}{nearest(name, ours)}")
    filled = {**DEFAULTS[kind], **values}
    if missing := [name for name in ours if not filled.get(name)]:
        raise UserError(f"{kind}: set {', '.join(missing)}, e.g. --set={missing[0]}=VALUE")
    for name in ours:
        _check(kind, name, filled[name])
    words = shlex.split(command)
    if not words or any(word.startswith("--share") for word in words):
        raise UserError(f"command {command!r}: give the grid's command without --share, which the launcher adds")
    if any(char in command for char in '"$`\\'):  # it is put between double quotes for xpk
        raise UserError(f'command {command!r}: it may not hold ", $, ` or a backslash')
    filled |= {"command": shlex.join(words), "last": str(int(filled["shares"]) - 1)}
    return _FIELD.sub(lambda match: filled[match[1]], text)


def _check(kind: str, name: str, value: str) -> None:
    if name in _COUNTS and not (value.isdecimal() and int(value) >= 1):
        raise UserError(f"{kind}: {name}={value!r} must be a whole number of at least 1")
    if name == "name" and not _NAME.fullmatch(value):
        raise UserError(f"{kind}: name={value!r} must be up to 40 small letters, digits and hyphens, a letter first")
    if not _WORD.fullmatch(value):
        raise UserError(f"{kind}: {name}={value!r} may hold letters, digits and ./:@+=,_- only")
