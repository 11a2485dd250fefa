"""Starts a run as far as a config can be checked, for the support matrix."""

from __future__ import annotations

from types import SimpleNamespace

from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from smallr.core.sharding import MESH_AXES
from smallr.training import checks, publishing
from tests.tiny import CONFIG


def start(config: ConfigDict, names: set[str]) -> None:
    """Checks a run with these features: its config, and what it would export.

    Raises:
      UserError: it cannot be had.
    """
    sizes = (1, 1 + ("mesh" in names), 1, 1 + ("context" in names))
    checks.check_run(config, AbstractMesh(sizes, MESH_AXES))
    if "folders" in names:
        with config.unlocked():
            config.model = "owner/model"
        publishing.check(config, SimpleNamespace(config=CONFIG))
