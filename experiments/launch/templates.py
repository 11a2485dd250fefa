"""Finds and fills the templates of launchers.

A field is `{{name}}`. Two kinds of commands can be launched: a grid, of which every machine gets a part (`--share=I/N`), and
`smallr train`, which runs once, on one node or over several (`--distributed`). Results are on a disk or bucket that all
machines share; each run has its folder there, so whatever is stopped goes on when it is started again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from smallr.core.errors import UserError
from smallr.data.errors import nearest

KINDS = {"slurm": "slurm.sh", "skypilot": "skypilot.yaml", "xpk": "xpk.sh"}
# Fields with a default; those without one must be given.
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "slurm": {"name": "cogpo", "shares": "4", "hours": "12", "cpus": "8", "memory": "64G", "gpus": "1", "nodes": "1"},
    "skypilot": {"name": "cogpo", "shares": "4", "accelerator": "H100:1", "extra": "gpu", "nodes": "1"},
    "xpk": {"name": "cogpo", "shares": "4", "tpu_type": "v5litepod-8"},
}
_FIELD = re.compile(r"\{\{(\w+)\}\}")
_FILLED_HERE = ("about", "command", "last", "part")
_COUNTS = ("shares", "hours", "cpus", "gpus", "nodes")
_WORD = re.compile(r"[\w./:@+=,-]+")  # safe unquoted in shell and YAML
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # what Kubernetes, SLURM and SkyPilot all take
# Of a grid: which part a machine takes.
_SHARES = {
    "slurm": ' --share="$SLURM_ARRAY_TASK_ID/{shares}"',
    "skypilot": ' --share="$SKYPILOT_NODE_RANK/{shares}"',
    "xpk": " --share=$share/{shares}",
}
# Of a training run over several nodes: how its processes find each other. JAX asks SLURM and TPU slices itself.
_DISTRIBUTED = {
    "slurm": " --distributed",
    "skypilot": ' --distributed --coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n1):8476"'
    ' --num_processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"',
    "xpk": " --distributed",
}
_ABOUT_GRID = {
    "slurm": "One task of the array is one part of the grid.",
    "skypilot": "One node is one part of the grid.",
    "xpk": "One workload of one TPU slice for each part of the grid. A slice has one host, since answers are written on one.",
}
_ABOUT_RUN = {
    "slurm": "One training run.",
    "skypilot": "One training run.",
    "xpk": "One training run on one TPU slice.",
}


def render(kind: str, command: str, values: Mapping[str, str]) -> str:
    """Returns a launcher, ready to be submitted.

    Args:
      kind: slurm, skypilot or xpk.
      command: of a grid or `smallr sweep` without `--share`, e.g. `python -m experiments.crv.ablation --out=/shared/cogpo`; or
        `smallr train CONFIG --workdir=FOLDER …`.
      values: of the template's fields; those with a default may be left out.

    Raises:
      UserError: an unknown kind or field, a field without a value, a value that the launcher could not hold.
    """
    if kind not in KINDS:
        raise UserError(f"launcher {kind!r} must be one of: {', '.join(KINDS)}")
    text = (Path(__file__).parent / KINDS[kind]).read_text()
    words = shlex.split(command)
    trains = _check_command(command, words)
    unused = "shares" if trains else "nodes"
    names = dict.fromkeys((*DEFAULTS[kind], *_FIELD.findall(text)))
    ours = [name for name in names if name not in (*_FILLED_HERE, unused)]
    for name in values:
        if name not in ours:
            raise UserError(f"{kind}: no field {name!r}; there are {', '.join(ours)}{nearest(name, ours)}")
    filled = {**DEFAULTS[kind], **values}
    if missing := [name for name in ours if not filled.get(name)]:
        raise UserError(f"{kind}: set {', '.join(missing)}, e.g. --set={missing[0]}=VALUE")
    for name in ours:
        _check(kind, name, filled[name])
    filled |= _of_run(kind, filled) if trains else _of_grid(kind, filled)
    filled["command"] = shlex.join(words)
    return _FIELD.sub(lambda match: filled[match[1]], text)


def _of_grid(kind: str, filled: Mapping[str, str]) -> dict[str, str]:
    nodes = filled["shares"] if kind == "skypilot" else "1"
    part = _SHARES[kind].format(shares=filled["shares"])
    return {"about": _ABOUT_GRID[kind], "part": part, "last": str(int(filled["shares"]) - 1), "nodes": nodes}


def _of_run(kind: str, filled: Mapping[str, str]) -> dict[str, str]:
    several = kind == "xpk" or int(filled["nodes"]) > 1  # a slice may have several hosts
    return {"about": _ABOUT_RUN[kind], "part": _DISTRIBUTED[kind] if several else "", "last": "0", "shares": "1"}


def _check_command(command: str, words: Sequence[str]) -> bool:
    """Returns whether the command is a training run; raises where it could not be launched."""
    if not words or any(word.startswith("--share") for word in words):
        raise UserError(f"command {command!r}: give the grid's command without --share, which the launcher adds")
    if any(char in command for char in '"$`\\'):  # it is put between double quotes for xpk
        raise UserError(f'command {command!r}: it may not hold ", $, ` or a backslash')
    trains = words[:2] == ["smallr", "train"] or "smallr.train" in words
    if trains and not any(word.startswith("--workdir=") for word in words):
        raise UserError(f"command {command!r}: add --workdir=FOLDER on the shared disk, so that a requeued run goes on")
    if trains and "--distributed" in words:
        raise UserError(f"command {command!r}: leave out --distributed, which the launcher adds")
    return trains


def _check(kind: str, name: str, value: str) -> None:
    if name in _COUNTS and not (value.isdecimal() and int(value) >= 1):
        raise UserError(f"{kind}: {name}={value!r} must be a whole number of at least 1")
    if name == "name" and not _NAME.fullmatch(value):
        raise UserError(f"{kind}: name={value!r} must be up to 40 small letters, digits and hyphens, a letter first")
    if not _WORD.fullmatch(value):
        raise UserError(f"{kind}: {name}={value!r} may hold letters, digits and ./:@+=,_- only")
