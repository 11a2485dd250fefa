"""Configs from Python: by name, by file or of a run, with fields changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from smallr.cli import config_files, fields


def load_config(name: str | os.PathLike[str], **changes: Any) -> ConfigDict:
    """Returns a config with fields changed.

    Examples:
      >>> config = load_config("dpo:smoke", steps=8, optimizer={"learning_rate": 1e-6})
      >>> config.steps, config.optimizer.learning_rate
      (8, 1e-06)
      >>> load_config("dpo", **{"batch.rows": 16}, lora={"rank": 8}).lora.rank
      8
      >>> load_config("dpo", lr=1e-6)
      Traceback (most recent call last):
      smallr.core.errors.UserError: config.lr: no such field; did you mean optimizer.learning_rate?

    Args:
      name: as on the command line: a config of smallr (`smallr configs` lists them), a file, or the workdir of a run,
        whose own config is returned.
      **changes: fields. A group takes a mapping of its fields; a dotted path is a field too. `lora` adds the fields of
        LoRA. An `objective` with a `name` replaces the config's, so that one of your own can be set.

    Raises:
      UserError: no such config, no such field, or a value of another type.
    """
    spec = os.fspath(name)
    config = config_files.of_run(spec) if config_files.is_run(spec) else config_files.load(spec)[0]
    if "lora" not in config and any(path.partition(".")[0] == "lora" for path in changes):
        config = fields.with_lora(config)
    objective = changes.get("objective")
    if isinstance(objective, Mapping) and "name" in objective:
        with config.unlocked():
            config.objective = ConfigDict(dict(changes.pop("objective")))
    for path, value in changes.items():
        fields.set_value(config, path, value)
    return config
