"""Runs new tokens of many sequences through the decoder, over a cache of the tokens before them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smallr.core.sharding import named_sharding
from smallr.models import cached_attention
from smallr.models.cached_attention import LayerCache
from smallr.models.config import DecoderConfig
from smallr.models.decoder import layer_inputs
from smallr.models.projection import products_of_rows
from smallr.sampling.weights import Weights

NOWHERE = 2**30  # an index beyond every capacity: nothing is written
MOST_LAYERS = 6  # of a call: more compile for longer, fewer are called more often, 0.3 ms of a CPU each time
KEY_AXES = ("batch", "kv_heads", "head_dim", None)
VALUE_AXES = ("batch", "kv_heads", None, "head_dim")

Cache = tuple[LayerCache, ...]  # of each layer


@dataclasses.dataclass(frozen=True)
class Forward:
    """Holds the decoder as a function of `Weights`; it is hashable, so that programs are found by it.

    Attributes:
      config, block, trunk: see `Packer`.
      critic: another decoder that reads the same tokens, or None. Its hidden states stand behind the policy's and its
        layers' caches behind the policy's layers', so that whatever moves caches and states moves both.
    """

    config: DecoderConfig
    block: nnx.GraphDef
    trunk: nnx.GraphDef
    critic: Forward | None = None

    @property
    def configs(self) -> tuple[DecoderConfig, ...]:
        """Returns the configs of the decoders that run."""
        return (self.config,) if self.critic is None else (self.config, self.critic.config)

    def states(self, hidden: Float[Array, "S E"]) -> tuple[Float[Array, "S D"], Float[Array, "S C"] | None]:
        """Splits hidden states into the policy's and the critic's."""
        if self.critic is None:
            return hidden, None
        return hidden[:, : self.config.d_model], hidden[:, self.config.d_model :]

    def extend(
        self, weights: Weights, cache: Cache, *new: Int[Array, "..."] | None
    ) -> tuple[Float[Array, "R P E"], Cache]:
        """Computes hidden states of new tokens and the cache with them, of the policy and the critic; see `_extend`."""
        if self.critic is None:
            return self._extend(weights, cache, *new)
        count = self.config.num_layers
        states, after = self._extend(weights, cache[:count], *new)
        more, critic_after = self.critic.extend(weights.critic, cache[count:], *new)
        return jnp.concatenate([states, more], axis=-1), after + critic_after

    def _extend(
        self,
        weights: Weights,
        cache: Cache,
        tokens: Int[Array, "R P"],
        positions: Int[Array, "R P"],
        index: Int[Array, "R P"],
        longest: Int[Array, "R 1"],
        slots: Int[Array, "R"] | None,
    ) -> tuple[Float[Array, "R P D"], Cache]:
        """Computes hidden states of the new tokens after the final norm, and the cache with their keys and values.

        Args:
          weights: as `Packer` makes them.
          cache: of the tokens before.
          tokens: the new ones, one behind the other.
          positions: theirs in their sequences; of what is no token, any that exists.
          index: where they go in the cache: the position, or NOWHERE for what is no token.
          longest: the largest position of each prompt (see `rope_tables`).
          slots: decode slot of each row; None where the rows are the slots.
        """
        x, after, count = self._embedded(weights.trunk, tokens, positions), (), self.layers_of_a_call
        for first in range(0, len(cache), count):
            part = weights.layers[first : first + count], cache[first : first + count], np.int32(first)
            x, written = self._layers(x, *part, positions, index, longest, slots)
            after += written
        return self._normed(weights.trunk, x), after

    @property
    def layers_of_a_call(self) -> int:
        """Returns how many layers are one program, which serves all others too."""
        count = self.config.num_layers
        return max(size for size in range(1, MOST_LAYERS + 1) if count % size == 0)

    @functools.cached_property
    def _embedded(self) -> Callable[..., Float[Array, "R P D"]]:
        """Returns the compiled embedding of tokens at their positions."""
        return jax.jit(lambda state, *tokens: nnx.merge(self.trunk, state).embedded(*tokens))

    @functools.cached_property
    def _normed(self) -> Callable[..., Float[Array, "R P D"]]:
        """Returns the compiled norm of what leaves the layers."""
        return jax.jit(lambda state, x: nnx.merge(self.trunk, state).final_norm(x).astype(self.config.dtype))

    @functools.cached_property
    def _layers(self) -> Callable[..., tuple[Float[Array, "R P D"], Cache]]:
        """Returns some layers as a program, in which a layer is traced and lowered once."""

        @jax.jit
        def run_layer(
            x: Float[Array, "R P D"],
            state: nnx.State,
            before: LayerCache,
            layer: Int[Array, ""],
            positions: Int[Array, "R P"],
            index: Int[Array, "R P"],
            longest: Int[Array, "R 1"],
            slots: Int[Array, "R"] | None,
        ) -> tuple[Float[Array, "R P D"], LayerCache]:
            of_layer, pattern = layer_inputs(self.config, positions, None, jnp.maximum(longest, positions))
            written = []

            def attend(q, k, v, **rule):
                written.append(cached_attention.write(before, k, v, index, slots))
                seen = written[0] if slots is None else cached_attention.rows_of(written[0], slots)
                return cached_attention.attend(q, seen, positions, **rule)

            inputs = of_layer(jax.tree.map(lambda each: each[layer], pattern))
            x = nnx.merge(self.block, state)(x, inputs._replace(attend=attend))
            return x, written[0]

        def run(
            x: Float[Array, "R P D"],
            states: Sequence[nnx.State],
            cache: Cache,
            first: Int[Array, ""],
            *rest: Array | None,
        ) -> tuple[Float[Array, "R P D"], Cache]:
            after = []
            for number, (state, before) in enumerate(zip(states, cache, strict=True)):
                x, written = run_layer(x, state, before, first + number, *rest)
                after.append(written)
            return x, tuple(after)

        return jax.jit(run, donate_argnums=(0, 2))

    def logits(self, head: Float[Array, "V D"], hidden: Float[Array, "S D"]) -> Float[Array, "S V"]:
        """Applies the head to hidden states, in float32."""
        out = products_of_rows(hidden, head)
        cap = self.config.final_softcap
        return out if cap is None else cap * jnp.tanh(out / cap)


def state_sharding(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of what programs are given and give back.

    On one device they give it back as whole, whatever it was split over; so it begins, or they would be compiled twice.
    """
    return NamedSharding(mesh, PartitionSpec()) if mesh.size == 1 else named_sharding(mesh, axes, shape)


def empty_cache(configs: Sequence[DecoderConfig], slots: int, capacity: int, mesh: Mesh) -> Cache:
    """Makes a cache of zeros for some decoders: decode slots over `data` and `fsdp`, kv heads over `tensor`."""

    def layer(config: DecoderConfig) -> LayerCache:
        heads, dim = config.num_kv_heads, config.head_dim
        keys, values = (slots, heads, dim, capacity), (slots, heads, capacity, dim)
        return LayerCache(
            *(
                jnp.zeros(shape, config.dtype, device=state_sharding(mesh, axes, shape))
                for shape, axes in ((keys, KEY_AXES), (values, VALUE_AXES))
            )
        )

    return tuple(layer(config) for config in configs for _ in range(config.num_layers))
