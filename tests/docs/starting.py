"""Starts a run as far as a config can be checked, for the support matrix."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
from flax import nnx
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from smallr.core.sharding import MESH_AXES, make_mesh
from smallr.models.decoder import Decoder
from smallr.training import checks, publishing
from smallr.training.policy import prepare_policy
from tests.tiny import CONFIG

OF_PARAMETERS = {"lora", "qlora", "soft", "freeze", "heads", "window"}  # what decides how parameters are split


@functools.cache
def _decoder(window: int | None) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(Decoder(dataclasses.replace(CONFIG, window=window), rngs=nnx.Rngs(0)))


def start(config: ConfigDict, names: set[str]) -> None:
    """Checks a run with these features: its config, what it would export, and how its parameters are split.

    Raises:
      UserError: it cannot be had.
    """
    sizes = (1, 2, 1) if "mesh" in names else (1, 1, 1)
    checks.check_run(config, AbstractMesh(sizes, MESH_AXES))
    if "folders" in names:
        with config.unlocked():
            config.model = "owner/model"
        publishing.check(config, SimpleNamespace(config=CONFIG))
    if len(names & OF_PARAMETERS) == 2:
        if "lora" in config:
            config.lora.target = r"attention\.q$"  # one kind of projection compiles faster than seven
        graphdef, state = _decoder(4 if "window" in names else None)
        mesh = make_mesh(1, 1, 1)
        with jax.set_mesh(mesh):
            prepare_policy(nnx.merge(graphdef, state), config, mesh)
