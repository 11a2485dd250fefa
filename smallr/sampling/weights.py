"""Arranges a decoder's parameters for decoding: each layer by itself, in the compute dtype, outputs first.

A scan over stacked layers copies every layer's weights out of the stack in each step, and float32 masters under bfloat16
compute are cast in each step. In training both are small beside the work; in decoding they would be most of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smallr.core.sharding import named_sharding
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.lora import is_adapter_path, projections
from smallr.models.projection import FUSED, FusedIntoFirst, TransposedWeight
from smallr.models.quantized import Quantized
from smallr.models.weights import THREADS, StoredParameters, aligned

Path = tuple[str, ...]
_EMBED, _HEAD = ("embed", "table"), ("head", "table")
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

    def read(self, decoder: Decoder, stored: StoredParameters | None, layers: int | None = None) -> Weights:
        """Returns the weights of a model's file: what `__call__` makes of its decoder, bit for bit, on one device.

        A layer's weights are written in their places, outputs first as most files have them: there is never a stack of
        all layers, and nothing is turned round twice.

        Args:
          decoder: with shapes in the place of arrays.
          stored: the parameters in the file; None gives zeros, which cost no memory.
          layers: so many of the first ones; None for all.
        """
        flat = self._flat(decoder)
        groups = self._groups(flat)

        def layer(number: int) -> nnx.State:
            parts = {path: each for group in groups for path, each in self._read_group(group, flat, stored, number)}
            return nnx.from_flat_state([(path, variable.replace(parts[path])) for path, variable in flat.items()])

        with ThreadPoolExecutor(THREADS) as pool:
            states = tuple(pool.map(layer, range(layers or self.config.num_layers)))
        tables = dict(nnx.to_flat_state(nnx.split(_trunk(decoder))[1]))
        if not self.config.tie_embeddings:
            tables[_HEAD] = decoder.head.table
        arrays = {path: _read_table(path, each.shape, stored) for path, each in tables.items()}
        placed = {path: each.replace(self._put(arrays[path], each)) for path, each in tables.items()}
        path = _EMBED if self.config.tie_embeddings else _HEAD
        head = placed[path].get_value()
        if head.dtype != self.config.dtype:
            head = self._put(_cast(arrays[path], self.config.dtype, is_zero=stored is None), tables[path])
        trunk = nnx.from_flat_state([(path, each) for path, each in placed.items() if path != _HEAD])
        return Weights(states, trunk, head)

    def _read_group(
        self, group: tuple[Path, ...], flat: Mapping[Path, nnx.Variable], stored: StoredParameters | None, layer: int
    ) -> Iterable[tuple[Path, Value]]:
        """Returns for each path of a group its value in one layer."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        names = [".".join(("layers", *path)) for path in group]
        rows = projections(self.config)
        if names[0] not in rows:
            value = aligned(flat[group[0]].shape[1:], np.float32)
            if stored is not None:
                value[...] = stored.read(names[0], layer)
            return [(group[0], jax.device_put(value, whole))]
        outputs = tuple(flat[path].shape[1 + rows[name].inputs :] for path, name in zip(group, names, strict=True))
        counts = [math.prod(shape) for shape in outputs]
        inputs = math.prod(flat[group[0]].shape[1 : 1 + rows[names[0]].inputs])
        value = aligned((sum(counts), inputs), jnp.dtype(self.config.dtype))
        if stored is not None:
            for name, part in zip(names, np.split(value, np.cumsum(counts)[:-1]), strict=True):
                part[...] = stored.read_rows(name, layer)
        first = TransposedWeight(jax.device_put(value, whole), outputs)
        return zip(group, (first, *(FusedIntoFirst(),) * (len(group) - 1)), strict=True)

    def _put(self, value: np.ndarray, variable: nnx.Variable) -> Array:
        return jax.device_put(value, named_sharding(self.mesh, variable.get_metadata("axes"), value.shape))

    def compile(self, decoder: Decoder) -> None:
        """Compiles what makes `Weights` of a decoder that has shapes in the place of arrays."""

        def shape(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
            sharding = named_sharding(self.mesh, variable.get_metadata("axes"), variable.shape)
            return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

        flat = self._flat(decoder)
        for group in self._groups(flat):
            self._arranger(group, flat).lower(tuple(shape(flat[path]) for path in group), np.int32(0)).compile()
        table = (decoder.embed if self.config.tie_embeddings else decoder.head).table
        self._head(jax.device_put(aligned(table.shape, table.dtype), shape(table).sharding))

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


def _read_table(path: Path, shape: tuple[int, ...], stored: StoredParameters | None) -> np.ndarray:
    return aligned(shape, np.float32) if stored is None else stored.read_table(".".join(path))


def _cast(value: np.ndarray, dtype: str, *, is_zero: bool) -> np.ndarray:
    out = aligned(value.shape, jnp.dtype(dtype))
    if not is_zero:
        out[...] = value
    return out


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
