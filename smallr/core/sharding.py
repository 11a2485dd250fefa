"""Maps logical axes to mesh axes in one table.

Parameters and activations carry logical axis names ("embed", "heads", …). The table says on which mesh
axes each is split. A parameter's names are in its `axes` metadata: `nnx.Param(value, axes=("vocab", "embed"))`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from smallr.core.errors import UserError

CONTEXT = "context"
MESH_AXES = ("data", "fsdp", "tensor", CONTEXT)

# Logical axis -> mesh axis or axes. `None`: never split.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "tokens": CONTEXT,
    "scored": ("data", "fsdp", CONTEXT),  # the scored tokens of all rows, one behind the other
    "lookup_batch": "data",  # of an array whose width is split over fsdp and context
    "lookup_tokens": None,
    "layers": None,
    "embed": ("fsdp", CONTEXT),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "activation_embed": None,
}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> Mesh:
    """Makes a mesh over all devices of all processes; one size may be -1 and takes what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor, context]
    count = jax.device_count()
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"config.mesh: sizes {dict(zip(MESH_AXES, sizes, strict=True))} must be positive, at most one -1"
        )
    if -1 in sizes:
        known = int(np.prod([size for size in sizes if size > 0]))
        sizes[sizes.index(-1)] = max(count // known, 1)
    if int(np.prod(sizes)) != count:
        shape = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(f"config.mesh: {shape} needs {int(np.prod(sizes))} devices, but there are {count}")
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int] | None = None, mesh: Mesh | None = None
) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes.

    With `shape` and `mesh`, a dimension that its mesh axes do not divide stays whole (3 kv heads on
    tensor=2 are replicated) rather than failing.

    Raises:
      UserError: an unknown logical axis, or two dimensions that claim one mesh axis.
    """
    taken: dict[str, str] = {}
    entries: list[tuple[str, ...] | str | None] = []
    for dim, axis in enumerate(axes):
        if axis is not None and axis not in RULES:
            raise UserError(f"logical axis {axis!r} in {tuple(axes)} must be one of: {', '.join(RULES)}")
        target = None if axis is None else RULES[axis]
        names = () if target is None else (target,) if isinstance(target, str) else target
        if mesh is not None:  # an axis of one device splits nothing
            names = tuple(name for name in names if name != CONTEXT or mesh.shape.get(name, 1) > 1)
        for name in names:
            if name in taken:
                raise UserError(
                    f"logical axes {taken[name]!r} and {axis!r} of {tuple(axes)} both claim mesh axis {name!r}"
                )
            taken[name] = str(axis)
        if names and shape is not None and mesh is not None:
            parts = int(np.prod([mesh.shape[name] for name in names]))
            if shape[dim] % parts:
                names = ()
        entries.append(None if not names else names[0] if len(names) == 1 else names)
    return PartitionSpec(*entries)


def named_sharding(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
    """Returns `partition_spec` bound to a mesh."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh))


def context_size() -> int:
    """Returns over how many devices the tokens of a row are split here."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh is None or mesh.empty else mesh.shape.get(CONTEXT, 1)


def is_sharded() -> bool:
    """Returns whether the program is for more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh is not None and not mesh.empty and mesh.size > 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation's layout inside a jitted program; without a mesh (`jax.set_mesh`) it does nothing."""
    if not is_sharded():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def by_platform(*args: Any, **ways: Callable) -> Any:
    """Runs the way of the platform that the program is for, as `jax.lax.platform_dependent` does.

    Where the mesh (`jax.set_mesh`) says whether that is a CPU or a TPU, no other way is traced, which takes as long as
    tracing the one that is used. GPUs are of two platforms, which a mesh does not tell apart.

    Args:
      *args: what each way takes.
      **ways: by platform (cpu, tpu, cuda, rocm), and `default`.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = getattr(device, "platform", None)
    if platform in ("cpu", "tpu"):
        return ways.get(platform, ways["default"])(*args)
    return jax.lax.platform_dependent(*args, **ways)


def split_axes(axis: str, size: int) -> tuple[str, ...]:
    """Returns the mesh axes over which a dimension of this logical axis and size is split here; none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty:
        return ()
    entry = partition_spec((axis,), (size,), mesh)[0]
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return tuple(name for name in names if mesh.shape[name] > 1)


def parts(axis: str, size: int) -> int:
    """Returns into how many parts a dimension of this logical axis and size is split here; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[name] for name in split_axes(axis, size))
