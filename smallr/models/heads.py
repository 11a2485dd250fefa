"""Adds heads beside the language-model head: values of states, and Q values of every token of the vocabulary.

A decoder with heads has them at `decoder.heads`, so that they are saved, resumed and put on a mesh as its own parameters
are. Each head is a small network on the hidden state after the final norm: width D -> W -> its outputs, with ReLU between.
The last products begin at zero, so fresh heads say 0 of everything. A target copy holds the Q heads alone; it is moved by
`follow`, and no gradient reaches it.

The Q heads' outputs are as wide as the vocabulary and have no bias. For a batch they are never computed for all tokens at
once: `losses.logprobs.head_scores(q.units(hidden), q.table[...], target)` walks the vocabulary in chunks and gives the Q
value of each target, the log-sum-exp and the log-prob.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from smallr.core.errors import UserError
from smallr.core.sharding import constrain, named_sharding
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.linear import linear
from smallr.models.parameters import normal, param

HEADS, Q, TARGET_Q = "heads", "q", "target_q"  # names of modules, and so of parameters
_UP_AXES = ("embed", None, "mlp")


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Says which heads a decoder has.

    Attributes:
      values: number of value heads.
      q: number of Q heads.
      width: hidden units of a head, as a multiple of the decoder's width.
      target: whether the Q heads have a target copy.
      target_mixing: share of the Q heads in the target copy after each step (Polyak averaging); 1 copies them.

    Raises:
      UserError: no head, or a number out of its bounds.
    """

    values: int = 1
    q: int = 0
    width: int = 2
    target: bool = False
    target_mixing: float = 0.005

    def __post_init__(self) -> None:
        if min(self.values, self.q) < 0 or not self.values + self.q:
            raise UserError(f"config.heads: values={self.values}, q={self.q}: at least one head, and none negative")
        if self.width < 1:
            raise UserError(f"config.heads.width: {self.width} must be at least 1")
        if self.target and not self.q:
            raise UserError("config.heads.target: a target copy holds Q heads, but config.heads.q is 0")
        if not 0 <= self.target_mixing <= 1:
            raise UserError(f"config.heads.target_mixing: {self.target_mixing} is not in [0, 1]")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> HeadOptions:
        """Reads `config.heads`, a config or the dict of a saved one."""
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})


class _Hidden(nnx.Module):
    """Computes the first layer of several heads, side by side."""

    def __init__(self, count: int, width: int, config: DecoderConfig, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.up = param(normal(rngs), (config.d_model, count, width), _UP_AXES)
        self.up_bias = param(jnp.zeros, (count, width), (None, "mlp"))

    def units(self, hidden: Float[Array, "B N D"]) -> Float[Array, "H B N W"]:
        """Computes the hidden units of each head, in the compute dtype."""
        units = linear(hidden, self.up[...], self.up_bias[...], dtype=self.dtype, axes=_UP_AXES)
        return jnp.moveaxis(jax.nn.relu(units), 2, 0)


class ValueHeads(_Hidden):
    """Computes values of states, one number a head."""

    def __init__(self, count: int, width: int, config: DecoderConfig, rngs: nnx.Rngs):
        super().__init__(count, width, config, rngs)
        self.down = param(jnp.zeros, (count, width), (None, "mlp"))
        self.down_bias = param(jnp.zeros, (count,), (None,))

    def __call__(self, hidden: Float[Array, "B N D"]) -> Float[Array, "H B N"]:
        """Computes the values, float32."""
        units = self.units(hidden).astype(jnp.float32)
        values = jnp.einsum("hbnw,hw->hbn", units, self.down[...], precision=lax.Precision.HIGHEST)
        return constrain(values + self.down_bias[...][:, None, None], None, "batch", "tokens")


class QHeads(_Hidden):
    """Computes values of actions: of every token of the vocabulary as the next one."""

    def __init__(self, count: int, width: int, config: DecoderConfig, rngs: nnx.Rngs):
        super().__init__(count, width, config, rngs)
        self.table = param(jnp.zeros, (count, config.vocab_size, width), (None, "vocab", "embed"))

    def units(self, hidden: Float[Array, "B N D"]) -> Float[Array, "H B N W"]:
        """Computes what the table is multiplied by: whole on every device, since the vocabulary is what is split."""
        return constrain(super().units(hidden), None, "batch", "tokens", "activation_embed")

    def all_values(self, hidden: Float[Array, "B N D"]) -> Float[Array, "H B N V"]:
        """Computes the Q values of all tokens, float32: for decoding, where there are few positions."""
        units = self.units(hidden)
        table = self.table[...].astype(units.dtype)
        return jnp.einsum("hbnw,hvw->hbnv", units, table, preferred_element_type=jnp.float32)


class Heads(nnx.Module):
    """Holds all heads of a decoder; `value`, `q` and `target_q` are there as the options say."""

    def __init__(self, options: HeadOptions, config: DecoderConfig, rngs: nnx.Rngs):
        width = options.width * config.d_model
        if options.values:
            self.value = ValueHeads(options.values, width, config, rngs)
        if options.q:
            self.q = QHeads(options.q, width, config, rngs)
        if options.target:
            self.target_q = QHeads(options.q, width, config, rngs)


def attach_heads(decoder: Decoder, options: HeadOptions, seed: int, mesh: Mesh) -> None:
    """Gives a decoder fresh heads, split over the mesh; the target copy equals the Q heads."""

    def build() -> nnx.State:
        return nnx.state(Heads(options, decoder.config, nnx.Rngs(seed)))

    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Heads(options, decoder.config, nnx.Rngs(seed))))
    state = jax.jit(build, out_shardings=_shardings(abstract, mesh))()
    if options.target:
        state[TARGET_Q] = jax.tree.map(jnp.copy, state[Q])
    decoder.heads = nnx.merge(graphdef, state)


def fill_heads(decoder: Decoder, read: Callable[[str], Float[np.ndarray, "..."]], mesh: Mesh) -> None:
    """Replaces the parameters of a decoder's heads by what `read` gives for their dotted paths below `heads`."""
    graphdef, state = nnx.split(decoder.heads)
    leaves = [
        (path, leaf.replace(jax.device_put(read(".".join(path)), sharding.get_value())))
        for (path, leaf), (_, sharding) in zip(
            nnx.to_flat_state(state), nnx.to_flat_state(_shardings(state, mesh)), strict=True
        )
    ]
    decoder.heads = nnx.merge(graphdef, nnx.from_flat_state(leaves))


def _shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    return jax.tree.map(
        lambda leaf: leaf.replace(named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape)),
        state,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


def is_head_path(path: tuple[str, ...]) -> bool:
    """Returns whether a parameter belongs to a head, target copies included."""
    return path[0] == HEADS


def is_target_path(path: tuple[str, ...]) -> bool:
    """Returns whether a parameter belongs to a target copy."""
    return path[:2] == (HEADS, TARGET_Q)


def split_targets(params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Splits parameters into those that gradients train and target copies; the latter are empty where there are none."""
    flat = nnx.to_flat_state(params)
    if not any(is_target_path(path) for path, _ in flat):
        return params, nnx.State({})
    online = [(path, leaf) for path, leaf in flat if not is_target_path(path)]
    return nnx.from_flat_state(online), nnx.from_flat_state(
        [(path, leaf) for path, leaf in flat if is_target_path(path)]
    )


def join_targets(online: nnx.State, targets: nnx.State) -> nnx.State:
    """Undoes `split_targets`."""
    return nnx.merge_state(online, targets) if jax.tree.leaves(targets) else online


def follow(targets: nnx.State, online: nnx.State, mixing: float) -> nnx.State:
    """Moves target copies towards their heads: mixing * head + (1 - mixing) * target (Polyak averaging).

    Args:
      targets: as `split_targets` gives them.
      online: likewise.
      mixing: 1 copies the heads to the bit.
    """
    heads = dict(nnx.to_flat_state(online))
    leaves = []
    for path, target in nnx.to_flat_state(targets):
        head = heads[(HEADS, Q, *path[2:])].get_value()
        moved = head if mixing == 1 else target.get_value() + mixing * (head - target.get_value())
        leaves.append((path, target.replace(moved)))
    return nnx.from_flat_state(leaves)
