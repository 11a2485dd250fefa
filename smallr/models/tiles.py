"""Finds the tiles of the (query, key) square that hold a visible pair, for all implementations of attention.

Dimension letters: B rows, T tokens, a multiple of the tile t; n = T / t.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

MASKED = -1e30  # of a hidden score; finite, so that a query without a visible key gives zeros and no NaN


def padded(x: Int[Array, "B L"], tile: int) -> Int[Array, "B T"]:
    """Pads with zeros to whole tiles: a horizon of 0 is seen by no query."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile)))


def visible_tiles(
    horizon: Int[Array, "B T"], positions: Int[Array, "B T"], tile: int, window: int | Int[Array, ""] | None
) -> Bool[Array, "B n n"]:
    """Returns whether the row may have a visible pair in a tile of queries (second axis) and keys (third axis).

    It is True for every tile that has one. With a window it can be True for a tile that has none: only the nearest
    positions of the two tiles are compared.
    """
    horizon, positions = (x.reshape(x.shape[0], -1, tile) for x in (horizon, positions))
    index = jnp.arange(horizon.shape[1])
    query, key = index[:, None], index[None, :]
    visible = (key <= query) & (horizon.max(2)[:, None, :] > query * tile)
    if window is not None:
        visible &= positions.min(2)[:, :, None] - positions.max(2)[:, None, :] < window
    return visible


def tile_lists(visible: Bool[Array, "*tiles n"]) -> tuple[Int[Array, "*tiles n"], Int[Array, "*tiles"]]:
    """Lists for each entry the visible ones of the last axis in order, then others; and counts the visible ones."""
    return jnp.argsort(~visible, axis=-1, stable=True).astype(jnp.int32), visible.sum(-1, dtype=jnp.int32)
