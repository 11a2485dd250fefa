"""Shows parameters to optimizers as the matrices that layers multiply with, under their dotted paths.

Layers are scanned, so a parameter holds all of them: q is [L, D, H, head_dim]. An optimizer that works on matrices is shown
[L, D, H × head_dim], and treats each layer by itself. What is no matrix of a layer keeps its shape: embeddings, heads,
norms, biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from smallr.core.sharding import partition_spec

VECTORS = ("scale", "bias")  # how the names of norm weights and biases end


@dataclasses.dataclass(frozen=True)
class View:
    """Describes a parameter.

    Attributes:
      shape: of the parameter.
      axes: its logical axes; None for each where they are not known.
      inputs: how many of a layer's axes are contracted; 0: the parameter is no matrix of layers.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int = 0

    @property
    def stacked(self) -> bool:
        """Returns whether the first axis is that of the layers."""
        return self.axes[:1] == ("layers",)

    @property
    def seen(self) -> tuple[int, ...]:
        """Returns the shape that an optimizer sees: [layers, inputs, outputs] of a matrix."""
        return tuple(math.prod(self.shape[i] for i in group) for group in self._groups())

    @property
    def block_axis(self) -> int:
        """Returns the axis of what is seen along which neighbours may share a scale: one that FSDP does not split."""
        return 1 if self.axes[-1] == "embed" else 2

    def spec(self, mesh: Mesh) -> PartitionSpec:
        """Returns how what is seen is split over a mesh, as the parameter is."""
        entries = partition_spec(self.axes, self.shape, mesh)
        return PartitionSpec(*(next((entries[i] for i in group if entries[i]), None) for group in self._groups()))

    def _groups(self) -> list[range]:
        """Returns the axes of the parameter behind each axis that is seen."""
        count = len(self.shape)
        if not self.inputs:
            return [range(i, i + 1) for i in range(count)]
        return [range(1), range(1, 1 + self.inputs), range(1 + self.inputs, count)]


Views = Mapping[str, View]


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _entries(tree: Any) -> list[tuple[str, Any]]:
    """Returns parameters (with their metadata, if they have some) by their dotted paths, in the tree's order."""
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in found]


def views(params: Any) -> Views:
    """Returns the view of each parameter."""
    return {path: _view(path, leaf) for path, leaf in _entries(params)}


def _view(path: str, leaf: Any) -> View:
    shape = tuple(leaf.shape)
    axes = tuple(leaf.get_metadata().get("axes", ())) if _is_variable(leaf) else ()
    axes = axes or (None,) * len(shape)
    if axes[:1] != ("layers",) or len(shape) < 3 or path.endswith(VECTORS):
        return View(shape, axes)
    # A weight has the model's width on one side, a factor of an adapter its rank: an axis alone.
    first = axes[1] == "embed" or axes[-1] not in ("embed", None)
    return View(shape, axes, inputs=1 if first else len(shape) - 2)


def seen(tree: Any, found: Views) -> dict[str, Array]:
    """Returns the arrays of a tree like the parameters, as an optimizer sees them."""
    arrays = ((path, leaf.get_value() if _is_variable(leaf) else leaf) for path, leaf in _entries(tree))
    return {path: array.reshape(found[path].seen) for path, array in arrays}


def unseen(arrays: Mapping[str, Array], like: Any) -> Any:
    """Inverts `seen`: puts arrays into a tree like the parameters."""
    leaves, structure = jax.tree.flatten(like, is_leaf=_is_variable)
    paths = [path for path, _ in _entries(like)]
    given = zip(paths, leaves, strict=True)
    shaped = [(leaf, arrays[path].reshape(leaf.shape)) for path, leaf in given]
    return jax.tree.unflatten(
        structure, [leaf.replace(array) if _is_variable(leaf) else array for leaf, array in shaped]
    )


def on_matrices(make: Callable[[Views], optax.GradientTransformation]) -> optax.GradientTransformation:
    """Builds an optimizer that sees parameters as a flat mapping of arrays; `make` gets their views."""

    def init(params: Any) -> Any:
        found = views(params)
        return make(found).init(seen(params, found))

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        found = views(params)
        new, state = make(found).update(seen(updates, found), state, seen(params, found))
        return unseen(new, updates), state

    return optax.GradientTransformation(init, update)
