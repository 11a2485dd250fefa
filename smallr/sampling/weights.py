"""Arranges a decoder's parameters for decoding: each layer by itself, in the compute dtype, outputs first.

A scan over stacked layers copies every layer's weights out of the stack in each step, and float32 masters under bfloat16
compute are cast in each step. In training both are small beside the work; in decoding they would be most of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from smallr.core.sharding import named_sharding
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.lora import is_adapter_path, projections
from smallr.models.projection import FUSED, FusedIntoFirst, TransposedWeight
from smallr.models.quantized import Quantized
from smallr.models.weights import is_variable

Path = tuple[str, ...]
Value = Array | Quantized | TransposedWeight | FusedIntoFirst


class Weights(NamedTuple):
    """Holds a decoder's arrays for decoding; a pytree.

    Attributes:
      layers: state of one layer's Block each.
      trunk: state of the decoder without its layers and its head, float32.
      head: the unembedding in the compute dtype; None of a decoder that is run for its hidden states alone.
      critic: of the decoder that a hook reads beside the policy; None if there is none.
    """

    layers: tuple[nnx.State, ...]
    trunk: nnx.State
    head: Float[Array, "V D"] | None
    critic: Weights | None = None


class Packer:
    """Makes `Weights` of decoders of one structure, by programs that are compiled once.

    Attributes:
      block: graphdef of a layer.
      trunk: graphdef of the decoder without its layers and its head; it embeds tokens and norms what leaves the layers.
    """

    def __init__(self, decoder: Decoder, mesh: Mesh):
        self.config, self.mesh = decoder.config, mesh
        self.block = nnx.split(decoder.layers)[0]
        self.trunk = nnx.split(_trunk(decoder))[0]

    def __call__(self, decoder: Decoder) -> Weights:
        """Returns the weights, on the same shards. What needs no change is not copied: the embedding, a float32 head.

        Raises:
          ValueError: a decoder of another structure.
        """
        flat = self._flat(decoder)
        parts = {path: each for group in self._groups(flat) for path, each in self._by_layer(group, flat)}
        layers = tuple(
            nnx.from_flat_state([(path, variable.replace(parts[path][layer])) for path, variable in flat.items()])
            for layer in range(self.config.num_layers)
        )
        return Weights(layers, nnx.split(_trunk(decoder))[1], self._head(decoder.unembedding()))

    def compile(self, decoder: Decoder) -> Weights:
        """Compiles what makes `Weights` of a decoder that has shapes in the place of arrays.

        Returns:
          Zeros with the shapes and on the shards of the weights, of the first layer alone.
        """

        def placed(variable: nnx.Variable) -> NamedSharding:
            return named_sharding(self.mesh, variable.get_metadata("axes"), variable.shape)

        flat = self._flat(decoder)
        shapes = {
            path: jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=placed(variable))
            for path, variable in flat.items()
        }
        parts = {}
        for group in self._groups(flat):
            program = self._arranger(group, flat).lower(tuple(shapes[path] for path in group), np.int32(0)).compile()
            parts |= zip(group, jax.tree.map(_zeros, program.out_info, program.output_shardings), strict=True)
        layer = nnx.from_flat_state([(path, variable.replace(parts[path])) for path, variable in flat.items()])
        trunk = nnx.split(_trunk(decoder))[1]
        trunk = jax.tree.map(lambda v: v.replace(_zeros(v, placed(v))), trunk, is_leaf=is_variable)
        table = decoder.embed if self.config.tie_embeddings else decoder.head
        return Weights((layer,), trunk, self._head(_zeros(table.table, placed(table.table))))

    def with_adapters(self, weights: Weights, decoder: Decoder) -> Weights:
        """Returns the weights with the adapters of a decoder in the place of their own; all else is the same arrays.

        Raises:
          ValueError: a decoder of another structure.
        """
        flat = {path: variable for path, variable in self._flat(decoder).items() if is_adapter_path(path)}
        parts = {path: each for path in flat for _, each in self._by_layer((path,), flat)}
        layers = tuple(
            nnx.from_flat_state(
                [
                    (path, variable.replace(parts[path][layer]) if path in parts else variable)
                    for path, variable in nnx.to_flat_state(state)
                ]
            )
            for layer, state in enumerate(weights.layers)
        )
        return weights._replace(layers=layers)

    def _head(self, table: Float[Array, "V D"]) -> Float[Array, "V D"]:
        return table if table.dtype == self.config.dtype else table.astype(self.config.dtype)

    def _flat(self, decoder: Decoder) -> dict[Path, nnx.Variable]:
        """Returns the parameters of all layers by their paths."""
        graphdef, stacked = nnx.split(decoder.layers)
        if decoder.config != self.config or graphdef != self.block:
            raise ValueError("the decoder has not the structure of the one that this engine was made with")
        return dict(nnx.to_flat_state(stacked))

    def _groups(self, flat: Mapping[Path, nnx.Variable]) -> list[tuple[Path, ...]]:
        """Groups the paths of projections that are fused.

        Weights whose rows are sharded are not fused: concatenated, their rows would be split elsewhere.
        """
        groups = {path: (path,) for path in flat}
        modules = {path[:-1] for path in flat} if self.mesh.shape["tensor"] == 1 else set()
        for module in modules:
            for names in FUSED:
                group = tuple((*module, name) for name in names)
                if all(path in flat and not isinstance(flat[path].get_value(), Quantized) for path in group):
                    groups |= dict.fromkeys(group, group)
        return list(dict.fromkeys(groups.values()))

    def _by_layer(
        self, group: tuple[Path, ...], flat: Mapping[Path, nnx.Variable]
    ) -> Iterable[tuple[Path, tuple[Value, ...]]]:
        """Yields for each path of a group its values in each layer."""
        arrange = self._arranger(group, flat)
        stacked = tuple(flat[path].get_value() for path in group)
        layers = [arrange(stacked, layer) for layer in np.arange(self.config.num_layers, dtype=np.int32)]
        return zip(group, zip(*layers, strict=True), strict=True)

    def _arranger(self, group: tuple[Path, ...], flat: Mapping[Path, nnx.Variable]) -> Callable[..., tuple[Value, ...]]:
        axes = tuple(flat[path].get_metadata("axes")[1:] for path in group)
        return _arranger(self.config, self.mesh, group, axes)


def _zeros(like: Any, sharding: NamedSharding) -> Array:
    """Returns zeros. On a CPU they cost no memory: it is not copied where it begins at a multiple of 64 bytes."""
    size = math.prod(like.shape) * like.dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return jax.device_put(memory[start : start + size].view(like.dtype).reshape(like.shape), sharding)


@functools.lru_cache(maxsize=256)
def _arranger(
    config: DecoderConfig, mesh: Mesh, group: tuple[Path, ...], axes: tuple[tuple[str | None, ...], ...]
) -> Callable[[tuple[Array | Quantized, ...], np.int32], tuple[Value, ...]]:
    """Returns the program that gives a layer its values of a group; packers of one structure share it.

    The layer is an argument: a program that gave all layers theirs took seconds to compile.
    """
    inputs = {path.removeprefix("layers."): row.inputs for path, row in projections(config).items()}

    def arranged(stacked: tuple[Array | Quantized, ...], layer: Int[Array, ""]) -> tuple[Value, ...]:
        values = [
            _of_layer(config, mesh, path, inputs.get(".".join(path), 0), own, value, layer)
            for path, own, value in zip(group, axes, stacked, strict=True)
        ]
        if len(group) == 1:
            return tuple(values)
        rows = jnp.concatenate([each.rows for each in values])
        first = TransposedWeight(rows, tuple(each.outputs[0] for each in values))
        return first, *((FusedIntoFirst(),) * (len(group) - 1))

    return jax.jit(arranged)


def _of_layer(
    config: DecoderConfig,
    mesh: Mesh,
    path: Path,
    inputs: int,
    axes: tuple[str | None, ...],
    stacked: Array | Quantized,
    layer: Int[Array, ""],
) -> Value:
    def placed(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, named_sharding(mesh, axes, x.shape))

    value = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), stacked)
    if isinstance(value, Quantized):
        return jax.tree.map(placed, value)
    if inputs or is_adapter_path(path):
        value = value.astype(config.dtype)
    value = placed(value)
    return _transposed(value, inputs) if inputs else value


def _transposed(weight: Float[Array, "*inputs *outputs"], inputs: int) -> TransposedWeight:
    outputs = weight.shape[inputs:]
    return TransposedWeight(weight.reshape(math.prod(weight.shape[:inputs]), math.prod(outputs)).T, (outputs,))


def _trunk(decoder: Decoder) -> Decoder:
    """Returns the decoder without its layers and its head; the arrays are the same."""
    trunk = nnx.merge(*nnx.split(decoder))
    del trunk.layers
    if not decoder.config.tie_embeddings:
        del trunk.head
    return trunk
