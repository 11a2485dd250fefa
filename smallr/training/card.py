"""Writes the README.md of an exported model: what it is and how it was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smallr import __version__
from smallr.data.rows import GAPS
from smallr.data.sources import is_builtin
from smallr.training.saved import SavedRun


def model_card(title: str, base: str, dtype: str, run: SavedRun | None, library: str = "transformers") -> str:
    """Returns the card as Markdown with the hub's front matter.

    Args:
      title: name of the folder.
      base: the model that training began from, as `config.model` names it.
      dtype: of the weights.
      run: the run; None for a model that was only converted.
      library: the hub's name of what loads the folder: transformers or peft.
    """
    header = [f"library_name: {library}", "pipeline_tag: text-generation", "tags: [smallr]"]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists():
        header.append(f"base_model: {base}")
    lines = ["---", *header, "---", "", f"# {title}", ""]
    lines.append(f"`{base}`{' trained' if run else ', converted'} with smallr {__version__}; weights in {dtype}.")
    if run is not None:
        lines += ["", *_training(run)]
    return "\n".join([*lines, ""])


def _training(run: SavedRun) -> list[str]:
    config, versions = run.config, ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    lines = [
        "## Training",
        "",
        f"- objective: {config['objective']['name']}",
        *(f"- data: {source}" for source in _sources(config["data"])),
        f"- steps: {run.checkpoint.step}",
        f"- software: {versions}",
    ]
    if run.metrics:
        shown = ("loss", "grad_norm", "learning_rate", "accuracy", "margin", "nll_answer", "nll_rationale")
        values = ", ".join(f"{name} {run.metrics[name]:.4g}" for name in shown if name in run.metrics)
        lines.append(f"- last logged step {run.metrics['step']}: {values}")
    if run.report.get("before") and run.report.get("after"):
        lines += ["", "Held-out examples, before and after training:", "", *_comparison(run)]
    text = json.dumps(config, indent=2, sort_keys=True)
    return [*lines, "", "## Configuration", "", "```json", text, "```"]


def _comparison(run: SavedRun) -> list[str]:
    before, after = run.report["before"], run.report["after"]
    names = [name for name in after if name in before and (name.partition("/")[2] in ("", *GAPS))]
    rows = [f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in names]
    return ["| metric | before | after |", "|---|---|---|", *rows]


def _sources(data: Mapping[str, Any]) -> list[str]:
    """Returns the training data that a run took: source, part and weight."""
    entries = [{"path": data["train"]}] if isinstance(data["train"], str) else data["train"]
    found = []
    for entry in entries:
        default = data["builtin"]["train"] if is_builtin(entry["path"]) else "train"
        weight = f", weight {entry['weight']}" if "weight" in entry else ""
        found.append(f"`{entry['path']}`, split `{entry.get('split') or data['train_split'] or default}`{weight}")
    return found
