"""Lays the training state out over a mesh: parameters by their logical axes, the optimizer's state as its parameters.

With `config.optimizer.shard_over_data` each array of the optimizer's state is split over the mesh axis `data` too, where the
parameters are copies (ZeRO, arXiv 1910.02054, section 5.1: stage 1).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smallr.core.sharding import named_sharding
from smallr.training.matrices import View, Views, views


def param_sharding(params: nnx.State, mesh: Mesh, over_data: bool = False) -> nnx.State:
    """Returns the NamedSharding of each parameter, or of arrays like them that are also split over `data`."""

    def sharding(leaf: nnx.Variable) -> nnx.Variable:
        value = leaf.get_value()
        if isinstance(value, optax.MaskedNode):  # the state of a group has nothing for the parameters of the others
            return leaf
        found = named_sharding(mesh, leaf.get_metadata("axes"), value.shape)
        return leaf.replace(spread_over_data(found, value.shape) if over_data else found)

    return jax.tree.map(sharding, params, is_leaf=_is_variable)


def optimizer_sharding(opt_state: Any, params: nnx.State, mesh: Mesh, over_data: bool = False) -> Any:
    """Returns the NamedSharding of each array of an optimizer's state.

    Args:
      opt_state: the shapes.
      params: those that the optimizer updates, or their shapes.
      mesh: of the devices.
      over_data: whether the state is split over the mesh axis `data` too.
    """
    found = views(params)

    def sharding(path: tuple, leaf: Any) -> Any:
        if _is_variable(leaf):
            return param_sharding(leaf, mesh, over_data)
        spec = _spec(path, leaf.shape, found, mesh)
        whole = NamedSharding(mesh, spec)
        return spread_over_data(whole, leaf.shape) if over_data and spec != PartitionSpec() else whole

    return jax.tree_util.tree_map_with_path(sharding, opt_state, is_leaf=_is_variable)


def _spec(path: tuple, shape: tuple[int, ...], found: Views, mesh: Mesh) -> PartitionSpec:
    """Returns how an array of the state is split: as the matrix that it is of, or as the axes of it that it has."""
    names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
    view = next((found[name] for name in names if name in found), None)
    if view is None:
        return PartitionSpec()
    entries = _of_shape(view, shape, names, tuple(view.spec(mesh)))
    return PartitionSpec(*(e if _divides(mesh, e, size) else None for e, size in zip(entries, shape, strict=True)))


def _of_shape(view: View, shape: tuple[int, ...], names: list, entries: tuple) -> tuple:
    """Returns the entries of the axes that an array has left of its matrix; none of what only holds a place."""
    seen = view.seen
    if len(shape) == len(seen) and shape != (1,):
        return entries  # of its shape, or with scales of blocks along one axis
    if len(shape) != len(seen) - 1:
        return (None,) * len(shape)
    # Adafactor's means: of rows over the longest axis, of columns over the one before.
    order = np.argsort(seen)  # as optax does, so that of equal axes the same one is taken
    gone = int(order[-1] if "v_row" in names else order[-2])
    return entries[:gone] + entries[gone + 1 :]


def spread_over_data(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Splits an array over the mesh axis `data` besides, along its first axis that divides; one without stays whole."""
    mesh, entries = sharding.mesh, [*sharding.spec, *(None,) * (len(shape) - len(sharding.spec))]
    for axis, entry in enumerate(entries):
        names = (*_names(entry), "data")
        if _divides(mesh, names, shape[axis]):
            entries[axis] = names if len(names) > 1 else names[0]
            return NamedSharding(mesh, PartitionSpec(*entries))
    return sharding


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _divides(mesh: Mesh, entry: Any, size: int) -> bool:
    return size % math.prod(mesh.shape[name] for name in _names(entry)) == 0


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
