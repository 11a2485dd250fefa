"""Whole runs for tests: smoke configs in this process or in one that can be killed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from smallr.evals.in_training import open_benchmark
from smallr.methods.adaptive.labels import labelled_rows
from smallr.training.trainer import Trainer

ROOT = Path(__file__).parents[1]


def smoke(name: str, **changes: Any) -> ConfigDict:
    """`configs/<name>.py:smoke` with dotted fields changed; `name` may be FILE:ARGUMENT."""
    file, _, argument = name.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(f"{argument},smoke" if argument else "smoke")
    config.update_from_flattened_dict(changes)
    return config


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains in this process, as `python -m smallr.train` does; the report."""
    with Trainer(config, workdir) as trainer:
        trainer.benchmark = open_benchmark(config, trainer.mesh)
        if "labels" in config:
            trainer.load_data(*labelled_rows(config))
        return trainer.fit()


def on_devices(name: str, workdir: Path, fields: dict[str, Any]) -> str:
    """The program of a smoke run, for the fixture `eight_devices`."""
    return f"from tests.runs import *; train(smoke({name!r}, **{fields!r}), Path({str(workdir)!r}))"


def command(config: str, workdir: Path, *overrides: str) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "smallr.train", f"--config={config}", f"--workdir={workdir}", *overrides]


def overrides(fields: dict[str, Any]) -> list[str]:
    """Dotted fields as flags of a command line."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def environment(devices: int = 1, **extra: str) -> dict[str, str]:
    """Environment of a run on simulated CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **extra}


def run(
    config: str, workdir: Path, *overrides: str, devices: int = 1, check: bool = True
) -> subprocess.CompletedProcess:
    """Runs to the end; with `check` a failure shows what the run printed."""
    done = subprocess.run(
        command(config, workdir, *overrides),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def metrics(workdir: Path, split: str = "train") -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of a split."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def final_arrays(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint, or of that of a step, read straight from the disk."""
    import orbax.checkpoint as ocp

    if step is None:
        step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    folder = workdir / "checkpoints" / str(step) / "state"
    reader = ocp.PyTreeCheckpointer()
    names = reader.metadata(folder).item_metadata.tree
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    return reader.restore(folder, restore_args=as_numpy)
