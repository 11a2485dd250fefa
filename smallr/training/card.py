"""Writes the README.md of an exported model: what it is, where it comes from and how it was trained.

A card is made to be published, so no path of this machine is in it: of a local file it says the name alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from smallr import __version__
from smallr.data.rows import GAPS
from smallr.data.sources import is_builtin
from smallr.models.loading import ModelSource
from smallr.models.names import SMOLLM2, TINY, is_hub_id
from smallr.models.peft import CONFIG, base_of
from smallr.training.metrics import read_metrics
from smallr.training.saved import SavedRun, run_config

_ON_HUB = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct", TINY: ""}  # names of the built-in models; empty: not there
_SHOWN = ("loss", "grad_norm", "learning_rate", "accuracy", "margin", "nll_answer", "nll_rationale")
_LICENCE_KEYS = ("license", "license_name", "license_link")
_FILE = re.compile(r"\.(jsonl?|parquet|csv|txt|gguf|arrow|py)(\.gz)?$")


@dataclasses.dataclass(frozen=True)
class Training:
    """Holds what a card says of a run at one of its steps.

    Attributes:
      config: of the run, as a nested dict.
      step: finished steps.
      line: the last training metrics logged up to that step.
      before: metrics of the held-out rows before the first step; empty if they are not known.
      after: the same at `step`.
      benchmark: metrics of `config.benchmark` at `step`; likewise.
    """

    config: Mapping[str, Any]
    step: int
    line: Mapping[str, float] = dataclasses.field(default_factory=dict)
    before: Mapping[str, float] = dataclasses.field(default_factory=dict)
    after: Mapping[str, float] = dataclasses.field(default_factory=dict)
    benchmark: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, run: SavedRun) -> Training:
        """Returns what the files of a saved run say."""
        known = cls.at(run.workdir, run.config, run.checkpoint.step, run.report.get("before") or {})
        return dataclasses.replace(known, after=run.report.get("after") or known.after)

    @classmethod
    def at(cls, workdir: Path, config: Mapping[str, Any], step: int, before: Mapping[str, float]) -> Training:
        """Returns what the metrics of a workdir say of a step."""
        lines = [line for line in read_metrics(workdir) if line["step"] <= step]
        last = {line["split"]: line for line in lines}
        measured = {
            split: {name: value for name, value in line.items() if name not in ("step", "time", "split")}
            for split, line in last.items()
            if line["step"] == step
        }
        return cls(config, step, last.get("train", {}), before, measured.get("eval", {}), measured.get("benchmark", {}))


def model_card(title: str, source: ModelSource, dtype: str, training: Training | None) -> str:
    """Returns the card of a whole model: Markdown with the hub's front matter.

    Args:
      title: name of the model.
      source: of the model that is exported.
      dtype: of the weights.
      training: how it was trained; None for a model that was only converted.
    """
    return _card(title, source, dtype, training, "transformers", "")


def adapter_card(title: str, source: ModelSource, dtype: str, training: Training, base: str = "") -> str:
    """Returns the card of adapters.

    Args:
      title: name of the model.
      source: of the base.
      dtype: of the adapters.
      training: how they were trained.
      base: by which PEFT finds the base; its name is in the front matter if it is a hub id.
    """
    return _card(title, source, dtype, training, "peft", base if is_hub_id(base) else "")


def _card(title: str, source: ModelSource, dtype: str, training: Training | None, library: str, base: str) -> str:
    name = training.config["model"] if training else source.name
    base = base or hub_base(name)
    header = ModelCardData(
        library_name=library,
        pipeline_tag="text-generation",
        tags=["smallr"],
        base_model=base or None,
        datasets=_datasets(training.config["data"]) if training else None,
        **licence(source),
    )
    lines = ["---", header.to_yaml().strip(), "---", "", f"# {title}", ""]
    how = " trained" if training else ", converted"
    lines.append(f"`{base or without_paths(name)}`{how} with smallr {__version__}; weights in {dtype}.")
    if header.license is None:
        lines += ["", "The licence of the base model is not known here; it applies to this model as well."]
    if training is not None:
        lines += ["", *_training(training)]
    return "\n".join([*lines, ""])


def hub_base(name: str) -> str:
    """Returns the hub's name of the model that a chain of runs, adapters and exports began from; empty if it has none."""
    path = Path(name).expanduser()
    if (config := run_config(path)) is not None:
        return hub_base(config["model"])
    if (path / CONFIG).is_file():
        return hub_base(base_of(path))
    if name in _ON_HUB:
        return _ON_HUB[name]
    if path.exists():
        base = _front_matter(path).get("base_model") or ""
        return base[0] if isinstance(base, list) else str(base)
    return name if is_hub_id(name) else ""


def licence(source: ModelSource) -> dict[str, str]:
    """Returns the fields of the front matter that name the licence; empty if it is not known."""
    if source.license:
        return {"license": source.license.lower()}
    known = _front_matter(source.folder) if source.folder else {}
    return {key: known[key] for key in _LICENCE_KEYS if key in known}


def without_paths(value: Any) -> Any:
    """Returns a nested value in which every path of this machine is the name of its file or folder."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    if "/" not in text or "\n" in text or "://" in text or is_builtin(text):
        return False
    try:
        return text.startswith(("/", "./", "../", "~")) or bool(_FILE.search(text)) or Path(text).exists()
    except OSError:  # too long to be a path
        return False


def _front_matter(folder: Path) -> dict[str, Any]:
    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one that is not in the hub's form
        return {}


def _datasets(data: Mapping[str, Any]) -> list[str] | None:
    """Returns the hub's names of the data sets that a run was trained on."""
    names = [entry["path"] for entry in _entries(data)]
    return [name for name in names if is_hub_id(name) and not _is_path(name)] or None


def _training(training: Training) -> list[str]:
    config, versions = training.config, ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "optax"))
    public = without_paths(config)
    lines = [
        "## Training",
        "",
        f"- objective: {config['objective']['name']}",
        *(f"- data: {source}" for source in _sources(config["data"])),
        f"- steps: {training.step}",
        f"- software: {versions}",
    ]
    if line := training.line:
        values = ", ".join(f"{name} {line[name]:.4g}" for name in _SHOWN if name in line)
        lines.append(f"- last logged step {line['step']}: {values}")
    if training.after:
        lines += ["", *_heldout(training)]
    if training.benchmark:
        name = public["benchmark"]["name"]
        lines += ["", f"Benchmark {name} at step {training.step}:", "", *_table({"": training.benchmark})]
    text = json.dumps(public, indent=2, sort_keys=True)
    return [*lines, "", "## Configuration", "", "```json", text, "```"]


def _heldout(training: Training) -> list[str]:
    before, after = training.before, training.after
    shown = {name: value for name, value in after.items() if name.partition("/")[2] in ("", *GAPS)}
    if not before:
        return [f"Held-out examples at step {training.step}:", "", *_table({"": shown})]
    shown = {name: value for name, value in shown.items() if name in before}
    columns = {"before": {name: before[name] for name in shown}, "after": shown}
    return ["Held-out examples, before and after training:", "", *_table(columns)]


def _table(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Makes a Markdown table of metrics; a single column without a name is headed "value"."""
    names = next(iter(columns.values()))
    rows = [f"| {name} | {' | '.join(f'{column[name]:.4f}' for column in columns.values())} |" for name in names]
    head = " | ".join(name or "value" for name in columns)
    return [f"| metric | {head} |", "|---" * (1 + len(columns)) + "|", *rows]


def _sources(data: Mapping[str, Any]) -> list[str]:
    """Returns the training data that a run took: source, part and weight, without paths."""
    found = []
    for entry in _entries(data):
        default = data["builtin"]["train"] if is_builtin(entry["path"]) else "train"
        weight = f", weight {entry['weight']}" if "weight" in entry else ""
        split = entry.get("split") or data["train_split"] or default
        found.append(f"`{without_paths(entry['path'])}`, split `{split}`{weight}")
    return found


def _entries(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the sources of the training rows, one or a mixture's."""
    return [{"path": data["train"]}] if isinstance(data["train"], str) else list(data["train"])
