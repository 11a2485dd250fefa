"""Adds adapters by LoRA (arXiv 2106.09685): y = x W + scale * dropout(x) A B, with W frozen and B = 0 at the start.

An adapter is a module beside the weight of its projection: `layers.attention.q` has `layers.attention.q_lora` with
parameters `a` [layers, *inputs, rank] and `b` [layers, rank, *outputs]. The product W + scale A B is never formed in
training; `merged` forms it for an export.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from smallr.core.errors import UserError
from smallr.core.sharding import named_sharding
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.families import FAMILIES, Tensor
from smallr.models.linear import linear
from smallr.models.projection import adapter_name
from smallr.models.quantized import FORMATS, Quantized, quantize
from smallr.models.weights import Convert


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Says which projections have adapters, and what kind.

    Attributes:
      rank: columns of A.
      alpha: the adapters' product is scaled by alpha / rank.
      dropout: of the adapters' inputs, in training steps alone.
      rslora: scale by alpha / sqrt(rank) instead (arXiv 2312.03732).
      target: regular expression, searched in the paths of the projections ("layers.attention.q").

    Raises:
      UserError: a value out of its range.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    target: str = "."

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"config.lora.rank must be at least 1, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"config.lora.dropout must be at least 0 and below 1, not {self.dropout}")
        try:
            re.compile(self.target)
        except re.error as error:
            raise UserError(f"config.lora.target: {self.target!r} is no regular expression ({error})") from error

    @property
    def scale(self) -> float:
        """Returns what A B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class DropoutKey(nnx.Variable):
    """Holds raw key data of each layer's dropout, [layers, 2]; there in training steps alone."""


class Adapter(nnx.Module):
    """Computes what is added to one projection; it holds all layers, and is called on the slice of one."""

    def __init__(self, a: nnx.Param, b: nnx.Param, lora: LoRA):
        self.a, self.b = a, b
        self.scale, self.dropout = lora.scale, lora.dropout

    def __call__(
        self, x: Float[Array, "*batch *inputs"], *, dtype: jnp.dtype | str, inputs: int
    ) -> Float[Array, "*batch *outputs"]:
        """Returns scale * dropout(x) A B, float32; the products are in `dtype`."""
        x = x.astype(dtype)
        key = getattr(self, "key", None)
        if key is not None:
            keep = jax.random.bernoulli(jax.random.wrap_key_data(key[...]), 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0).astype(dtype)
        low = linear(x, self.a[...], dtype=dtype, inputs=inputs)
        return self.scale * linear(low, self.b[...], dtype=dtype).astype(jnp.float32)


def projections(config: DecoderConfig) -> dict[str, Tensor]:
    """Returns the decoder's projections by their dotted paths, with their rows of the family's table."""
    rows = {row.param: row for row in FAMILIES[config.family].tensors if row.exists(config)}
    return {path: row for path, row in rows.items() if row.layout in ("linear", "conv1d") and row.stacked}


def targets(config: DecoderConfig, lora: LoRA) -> dict[str, Tensor]:
    """Returns the projections that have an adapter.

    Raises:
      UserError: none has.
    """
    known = projections(config)
    found = {path: row for path, row in known.items() if re.search(lora.target, path)}
    if not found:
        raise UserError(f"config.lora.target: {lora.target!r} is found in none of {', '.join(known)}")
    return found


def attach(decoder: Decoder, lora: LoRA, seed: int, mesh: Mesh) -> None:
    """Puts fresh adapters beside the projections that `lora.target` names: B = 0, A as PEFT begins it.

    A is uniform within 1 / sqrt(inputs) on either side (He et al., arXiv 1502.01852, with a = sqrt(5), as PEFT and
    the authors' code have it).
    """
    for index, (path, row) in enumerate(targets(decoder.config, lora).items()):
        module, name = _owner(decoder, path)
        weight = getattr(module, name)
        axes, shape = weight.get_metadata("axes"), weight.shape
        cut = 1 + row.inputs
        bound = 1 / math.sqrt(math.prod(shape[1:cut]))
        key = jax.random.fold_in(jax.random.key(seed), index)

        a_axes, b_axes = (*axes[:cut], None), (axes[0], None, *axes[cut:])
        a_shape, b_shape = (*shape[:cut], lora.rank), (shape[0], lora.rank, *shape[cut:])
        a = _uniform(a_shape, bound, named_sharding(mesh, a_axes, a_shape))(key)
        b = jnp.zeros(b_shape, device=named_sharding(mesh, b_axes, b_shape))
        setattr(module, adapter_name(name), Adapter(nnx.Param(a, axes=a_axes), nnx.Param(b, axes=b_axes), lora))


def fill(decoder: Decoder, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Replaces a and b of the adapters at these projections' paths; they stay on their shards."""
    for path, values in pairs.items():
        module, name = _owner(decoder, path)
        adapter = getattr(module, adapter_name(name))
        for variable, value in zip((adapter.a, adapter.b), values, strict=True):
            variable.set_value(jax.device_put(value, variable.get_value().sharding))


def free_layers(decoder: Decoder) -> None:
    """Frees the weights of all layers but the adapters, of which shapes stay: for a decoder that only holds adapters."""
    for path, variable in nnx.iter_graph(decoder.layers):
        if isinstance(variable, nnx.Variable) and not is_adapter_path(path):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variable.get_value())
            variable.set_value(shapes)


@functools.cache
def _uniform(shape: tuple[int, ...], bound: float, sharding: NamedSharding) -> Callable[[Array], Array]:
    """Returns the program that draws numbers within the bound; projections of one shape share it."""
    return jax.jit(lambda key: jax.random.uniform(key, shape, jnp.float32, -bound, bound), out_shardings=sharding)


def add_dropout_keys(decoder: Decoder) -> None:
    """Gives every adapter with dropout a place for its key; without one it does not drop."""
    for adapter in adapters(decoder):
        if adapter.dropout:
            adapter.key = DropoutKey(jnp.zeros((adapter.a.shape[0], 2), jnp.uint32))


def adapters(decoder: Decoder) -> Iterator[Adapter]:
    """Returns all adapters of a decoder."""
    return (module for _, module in nnx.iter_graph(decoder) if isinstance(module, Adapter))


def quantize_projections(decoder: Decoder, format: str, mesh: Mesh) -> None:
    """Quantises the weights of all projections that are not yet, one after the other; they stay split over the mesh.

    Raises:
      UserError: an unknown format, or qwix is missing.
    """
    quantise = quantiser(decoder.config, format, mesh)
    for path in projections(decoder.config):
        module, name = _owner(decoder, path)
        setattr(module, name, quantise(tuple(path.split(".")), getattr(module, name)))


def quantiser(config: DecoderConfig, format: str, mesh: Mesh) -> Convert:
    """Returns what quantises a parameter if it is a projection of the decoder, a layer at a time.

    Raises:
      UserError: an unknown format.
    """
    if format not in FORMATS:
        raise UserError(f"config.lora.base: {format!r} must be one of: {', '.join(FORMATS)}")
    rows = projections(config)

    def convert(path: tuple[str, ...], variable: nnx.Variable) -> nnx.Variable:
        row, value = rows.get(".".join(path)), variable.get_value()
        if format == "float32" or row is None or isinstance(value, Quantized):
            return variable

        def layer(weight: Float[Array, "..."]) -> Quantized:
            return jax.tree.map(lambda x: x[0], quantize(weight[None], format, row.inputs))

        every = functools.partial(jax.lax.map, layer)
        axes = variable.get_metadata("axes")
        placed = jax.tree.map(lambda leaf: named_sharding(mesh, axes, leaf.shape), jax.eval_shape(every, value))
        return variable.replace(jax.block_until_ready(jax.jit(every, out_shardings=placed)(value)))

    return convert


def is_adapter_path(path: tuple[str, ...]) -> bool:
    """Returns whether a parameter belongs to an adapter."""
    return len(path) > 1 and path[-2].endswith(adapter_name(""))


def merged(
    weight: Float[np.ndarray, "layers *inputs *outputs"],
    a: Float[np.ndarray, "layers *inputs rank"],
    b: Float[np.ndarray, "layers rank *outputs"],
    scale: float,
) -> Float[np.ndarray, "layers *inputs *outputs"]:
    """Returns W + scale A B, layer by layer."""
    out = np.array(weight, np.float32)
    for layer in range(len(out)):
        out[layer] += scale * np.tensordot(a[layer], b[layer], 1)
    return out


def _owner(decoder: Decoder, path: str) -> tuple[nnx.Module, str]:
    """Returns the module that holds the parameter at a dotted path, and its name there."""
    *parts, name = path.split(".")
    module = decoder
    for part in parts:
        module = getattr(module, part)
    return module, name
