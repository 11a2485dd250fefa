"""Keeps the devices' side of the decode slots: the keys and values of their tokens, and the hidden state at the last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from smallr.models.cached_attention import TILE
from smallr.sampling.forward import Cache, Forward, empty_cache, state_sharding
from smallr.sampling.programs import Programs


class SlotCache:
    """Holds cache and hidden states, as long as the longest sequence needs. Programs are given both, and give both back.

    Attributes:
      cache: of each layer.
      hidden: of each slot, behind its last token.
    """

    def __init__(self, forward: Forward, programs: Programs, slots: int, mesh: Mesh):
        shape = (slots, sum(config.d_model for config in forward.configs))
        self._programs = programs
        with jax.set_mesh(mesh):
            self.cache: Cache = empty_cache(forward.configs, slots, capacity(1), mesh)
            sharding = state_sharding(mesh, ("batch", None), shape)
            self.hidden: Float[Array, "S E"] = jnp.zeros(shape, forward.config.dtype, device=sharding)

    @property
    def state(self) -> tuple[Cache, Float[Array, "S E"]]:
        """Returns what a program is given."""
        return self.cache, self.hidden

    def take(self, cache: Cache, hidden: Float[Array, "S E"]) -> None:
        """Takes what a program gave back."""
        self.cache, self.hidden = cache, hidden

    def fork(self, source: int, target: int) -> None:
        """Copies a slot over another one."""
        self.take(*self._programs.fork(*self.state, np.int32(source), np.int32(target)))

    def fit(self, length: int, shrink: bool) -> bool:
        """Makes room for sequences of this length, and not much more if it may shrink; returns whether it has shrunk."""
        need, now = capacity(length), self.cache[0].capacity
        if need > now or (shrink and need < now):
            self.cache = self._programs.resize(self.cache, need)
        return self.cache[0].capacity < now


def capacity(length: int) -> int:
    """Returns the smallest size of the cache for this many tokens: 2, 3, 4, 6, 8, 12, 16 … tiles."""
    tiles = -(-length // TILE)
    size = 2
    while size < tiles:
        size = size + size // 2 if size & (size - 1) == 0 else (size // 3) * 4
    return size * TILE
