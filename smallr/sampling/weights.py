"""A decoder's parameters as decoding wants them: each layer by itself, in the compute dtype, outputs first.

A scan over stacked layers copies every layer's weights out of the stack in each step, and float32 masters under bfloat16
compute are cast in each step. In training both are small beside the work; in decoding they would be most of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from smallr.models.decoder import Decoder
from smallr.models.lora import is_adapter_path, projections
from smallr.models.projection import Turned
from smallr.models.quantized import Quantized
from smallr.sharding import named_sharding

Value = Array | Quantized | Turned


class Weights(NamedTuple):
    """Arrays; a pytree.

    Attributes:
      layers: state of one layer's Block each.
      trunk: state of the decoder without its layers and its head, float32.
      head: the unembedding in the compute dtype.
    """

    layers: tuple[nnx.State, ...]
    trunk: nnx.State
    head: Float[Array, "V D"]


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
        self._inputs = {path.removeprefix("layers."): row.inputs for path, row in projections(self.config).items()}
        self._head = jax.jit(lambda head: head.astype(self.config.dtype))
        self._splits: dict[tuple[str, ...], Callable[[Value], tuple[Value, ...]]] = {}

    def __call__(self, decoder: Decoder) -> Weights:
        """The weights, on the same shards. What needs no change is not copied: the embedding, a float32 head.

        Raises:
          ValueError: a decoder of another structure.
        """
        graphdef, stacked = nnx.split(decoder.layers)
        if decoder.config != self.config or graphdef != self.block:
            raise ValueError("the decoder has not the structure of the one that this engine was made with")
        split = [(path, variable, self._by_layer(path, variable)) for path, variable in nnx.to_flat_state(stacked)]
        layers = tuple(
            nnx.from_flat_state([(path, variable.replace(parts[layer])) for path, variable, parts in split])
            for layer in range(self.config.num_layers)
        )
        head = decoder.unembedding()
        head = head if head.dtype == self.config.dtype else self._head(head)
        return Weights(layers, nnx.split(_trunk(decoder))[1], head)

    def _by_layer(self, path: tuple[str, ...], variable: nnx.Variable) -> tuple[Value, ...]:
        if path not in self._splits:
            axes = variable.get_metadata("axes")[1:]
            inputs = self._inputs.get(".".join(path), 0)
            cast = self.config.dtype if inputs or is_adapter_path(path) else None
            self._splits[path] = jax.jit(lambda value: self._split(value, axes, inputs, cast))
        return self._splits[path](variable.get_value())

    def _split(
        self, value: Array | Quantized, axes: tuple[str | None, ...], inputs: int, dtype: str | None
    ) -> tuple[Value, ...]:
        parts = tuple(jax.tree.map(lambda x, i=layer: x[i], value) for layer in range(self.config.num_layers))
        if isinstance(value, Quantized):
            return jax.tree.map(lambda x: self._placed(x, axes), parts)
        parts = tuple(self._placed(part if dtype is None else part.astype(dtype), axes) for part in parts)
        return tuple(_turned(part, inputs) for part in parts) if inputs else parts

    def _placed(self, x: Array, axes: tuple[str | None, ...]) -> Array:
        return jax.lax.with_sharding_constraint(x, named_sharding(self.mesh, axes, x.shape))


def _turned(weight: Float[Array, "*inputs *outputs"], inputs: int) -> Turned:
    outputs = weight.shape[inputs:]
    return Turned(weight.reshape(math.prod(weight.shape[:inputs]), math.prod(outputs)).T, outputs)


def _trunk(decoder: Decoder) -> Decoder:
    """The decoder without its layers and its head; the arrays are the same."""
    trunk = nnx.merge(*nnx.split(decoder))
    del trunk.layers
    if not decoder.config.tie_embeddings:
        del trunk.head
    return trunk
