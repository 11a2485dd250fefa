"""Computes attention by horizon in plain JAX; `smallr.models.attention` defines the result.

FlashAttention (arXiv 2205.14135, algorithms 1 and 4) over those tiles of the square that hold a visible pair: no [T, T]
exists, the half above the diagonal costs nothing, and neither do the keys of other examples, or a chosen completion for
the rejected queries. A tile of queries takes several of its key tiles side by side: a CPU computes products with a few
hundred keys at up to twice the speed of those with 64, and one part is mostly the whole list, so that little is rescaled.
How many there are is known only at run time, and a shape is not: so there is a branch for each number (`lax.switch`).

Dimension letters: B rows, T tokens in whole tiles, H heads, K kv heads, G = H / K queries per kv head, D head_dim;
t tokens of a query tile, q = G × t; n key tiles of s tokens, w of them side by side, k = w × s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from smallr.models.linear import precision, transpose_minor
from smallr.models.tiles import MASKED, padded, tile_lists, visible_tiles


class Tiling(NamedTuple):
    """Holds the tokens of a query tile, a multiple of those of a key tile, and the most key tiles that are taken at once."""

    queries: int
    keys: int
    most: int

    def of(self, length: int) -> Tiling:
        """Returns the tiling for rows that may be shorter than a tile."""
        keys = min(self.keys, length)
        return self._replace(keys=keys, queries=keys * min(self.queries // self.keys, -(-length // keys)))


CPU = Tiling(128, 64, 8)  # the scores of a few heads stay in a core's cache
ACCELERATOR = Tiling(512, 512, 1)  # few, large steps


class Rule(NamedTuple):
    """Holds what decides visibility, and for each query tile the list of key tiles that it sees, taken in `parts` of `width`."""

    horizon: Int[Array, "B n s"]
    positions: Int[Array, "B n s"]
    window: int | Int[Array, ""] | None
    lists: Int[Array, "tiles n"]  # the first `counts` of them are seen
    counts: Int[Array, "tiles"]
    parts: Int[Array, "tiles"]
    width: Int[Array, "tiles"]
    query_tiles: Int[Array, "tiles"]  # which tiles of the row they are


class _Part(NamedTuple):
    """Holds key tiles that are taken side by side: which, and whether they are more than a filling."""

    tiles: Int[Array, "w"]
    real: Bool[Array, "w"]


def forward(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L K D"],
    v: Float[Array, "B L K D"],
    horizon: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    window: int | Int[Array, ""] | None,
    *,
    tiling: Tiling,
    softcap: float | None,
    scale: float,
    tiles: Int[Array, "tiles"] | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
    """Returns the mixed values in q's dtype, and the float32 log-sum-exp of the scores.

    With `tiles` the queries are these tiles of the row alone, in whole tiles; keys are those of the whole row.
    """
    length, kv_heads, tiling = q.shape[1], k.shape[2], tiling.of(k.shape[1])
    groups = q.shape[2] // kv_heads
    rule = _of_tiles(make_rule(horizon, positions, window, tiling), tiles)
    q, k, v = (_whole(x, tiling.queries) for x in (q, k, v))
    k, v = _in_tiles(k, tiling.keys), _in_tiles(v, tiling.keys)

    def step(i, outputs):
        query = _queries(q, i, tiling.queries, kv_heads)

        def add(c, state):
            top, total, mixed = state

            def of(part):
                scores = _scores(_dot("bkqd,bksd->bkqs", query, _side_by_side(k, part)), scale, softcap)
                scores = _masked(scores, _bias(rule, i, part, tiling.queries), groups, query_axis=2)
                # top never falls below MASKED / 2: exp(MASKED - top) is 0 even where a query sees nothing of the part.
                new = jnp.maximum(top, scores.max(-1))
                weights, shrink = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
                added = _dot("bkqs,bksd->bkqd", weights.astype(v.dtype), _side_by_side(v, part))
                return new, total * shrink + weights.sum(-1), mixed * shrink[..., None] + added

            return _by_width(rule, i, c, tiling.most, of)

        rows = query.shape[:-1]
        start = jnp.full(rows, MASKED / 2), jnp.zeros(rows), jnp.zeros(query.shape)
        top, total, mixed = lax.fori_loop(0, rule.parts[i], add, start)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        results = mixed / total[..., None], (top + jnp.log(total))[..., None]
        return tuple(_put_queries(x, i, new, tiling.queries) for x, new in zip(outputs, results, strict=True))

    start = jnp.zeros(q.shape, q.dtype), jnp.zeros((*q.shape[:-1], 1))
    out, lse = lax.fori_loop(0, len(rule.counts), step, start)
    return out[:, :length], lse[:, :length, :, 0]


def backward(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L K D"],
    v: Float[Array, "B L K D"],
    horizon: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    window: int | Int[Array, ""] | None,
    dout: Float[Array, "B L H D"],
    lse: Float[Array, "B L H"],
    delta: Float[Array, "B L H"],
    *,
    tiling: Tiling,
    softcap: float | None,
    scale: float,
    tiles: Int[Array, "tiles"] | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L K D"], Float[Array, "B L K D"]]:
    """Gradients of q, k and v from recomputed scores; `delta` is the sum over D of out * dout. `tiles` as in `forward`:
    the gradients of keys are then float32, since those of other queries are to be added.

    Scores are keys × queries here, and the queries' gradient is built as [D, q], so that every product has its contracted
    axis where a CPU wants it (see `transpose_minor`) and only the keys are transposed.
    """
    length, kv_heads, tiling = q.shape[1], k.shape[2], tiling.of(k.shape[1])
    groups, keys = q.shape[2] // kv_heads, k.shape[1]
    rule = _of_tiles(make_rule(horizon, positions, window, tiling), tiles)
    q, k, v, dout, lse, delta = (_whole(x, tiling.queries) for x in (q, k, v, dout, lse[..., None], delta[..., None]))
    k, v = _in_tiles(k, tiling.keys), _in_tiles(v, tiling.keys)

    def step(i, gradients):
        query, dmixed, lses, deltas = (_queries(x, i, tiling.queries, kv_heads) for x in (q, dout, lse, delta))
        lses, deltas = lses.swapaxes(-1, -2), deltas.swapaxes(-1, -2)

        def of(part):
            key, value = _side_by_side(k, part), _side_by_side(v, part)
            bias = _bias(rule, i, part, tiling.queries, keys_first=True)
            raw = _scores(_dot("bksd,bkqd->bksq", key, query), scale, softcap)
            weights = jnp.exp(_masked(raw, bias, groups, query_axis=3) - lses)
            dscores = weights * (_dot("bksd,bkqd->bksq", value, dmixed) - deltas) * scale
            dscores, weights = _uncapped(dscores, raw, softcap).astype(q.dtype), weights.astype(q.dtype)
            dkey, dvalue = _dot("bksq,bkqd->bksd", dscores, query), _dot("bksq,bkqd->bksd", weights, dmixed)
            dquery = _dot("bkds,bksq->bkdq", transpose_minor(key), dscores)
            return dquery, *(_one_by_one(x, tiling) for x in (dkey, dvalue))

        def add(c, state):
            dquery, *totals = state
            added, *parts = _by_width(rule, i, c, tiling.most, of)

            def put(j, totals):
                tile = rule.lists[i, c * rule.width[i] + j]
                return [_put(x, tile, _at(x, tile) + _at(part, j)) for x, part in zip(totals, parts, strict=True)]

            # XLA unrolls a loop of one trip; for a count a GPU would wait.
            return dquery + added, *lax.fori_loop(0, rule.width[i] if tiling.most > 1 else 1, put, totals)

        start = jnp.zeros(query.swapaxes(-1, -2).shape)
        dquery, dk, dv = lax.fori_loop(0, rule.parts[i], add, (start, *gradients[1:]))
        return _put_queries(gradients[0], i, dquery.swapaxes(-1, -2), tiling.queries), dk, dv

    start = jnp.zeros(q.shape, q.dtype), jnp.zeros(k.shape), jnp.zeros(v.shape)
    dq, dk, dv = lax.fori_loop(0, len(rule.counts), step, start)
    dtype = q.dtype if tiles is None else jnp.float32
    return dq[:, :length], *(x.reshape(len(x), -1, *x.shape[3:])[:, :keys].astype(dtype) for x in (dk, dv))


def row_by_row(
    way: Callable[..., Any],
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L K D"],
    v: Float[Array, "B L K D"],
    horizon: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    window: int | Int[Array, ""] | None,
    *rest: Array,
) -> Any:
    """Runs `forward` or `backward` on a row after the other, each by tile lists of its own.

    Lists of several rows are a union: a row would compute tiles that only others need, and its last bits would depend on
    them. On a CPU, whose cores a row keeps busy, this is also faster.
    """

    def one(arrays: tuple[Array, ...]) -> Any:
        q, k, v, horizon, positions, *rest = (x[None] for x in arrays)
        return jax.tree.map(lambda x: x[0], way(q, k, v, horizon, positions, window, *rest))

    horizon, positions = (jnp.broadcast_to(x, q.shape[:2]) for x in (horizon, positions))  # one rule may be of all rows
    return lax.map(one, (q, k, v, horizon, positions, *rest))


def _uncapped(dscores: Array, scores: Array, softcap: float | None) -> Array:
    """Returns the gradient of scores before their soft-cap, from that of `scores` behind it."""
    return dscores if softcap is None else dscores * (1 - (scores / softcap) ** 2)


# ---- Which key tiles a query tile takes, and what it sees of them --------------------------------------------


def make_rule(
    horizon: Int[Array, "B L"], positions: Int[Array, "B L"], window: int | Int[Array, ""] | None, tiling: Tiling
) -> Rule:
    """Lists for each query tile the key tiles in which any row may have a visible pair."""
    horizon, positions = padded(horizon, tiling.queries), padded(positions, tiling.queries)
    visible = visible_tiles(horizon, positions, tiling.keys, window).any(0)
    visible = visible.reshape(-1, tiling.queries // tiling.keys, len(visible)).any(1)
    lists, counts = tile_lists(visible)
    parts = -(-counts // tiling.most)
    width = -(-counts // jnp.maximum(parts, 1))
    lists = jnp.pad(lists, ((0, 0), (0, tiling.most)))  # the last part may reach beyond the list
    return Rule(
        *(_in_tiles(x, tiling.keys) for x in (horizon, positions)),
        window,
        lists,
        counts,
        parts,
        width,
        jnp.arange(len(counts)),
    )


def _of_tiles(rule: Rule, tiles: Int[Array, "some"] | None) -> Rule:
    """Returns the rule for some query tiles alone; None: for all."""
    if tiles is None:
        return rule
    names = ("lists", "counts", "parts", "width", "query_tiles")
    return rule._replace(**{name: getattr(rule, name)[tiles] for name in names})


def _by_width(rule: Rule, i: Int[Array, ""], c: Int[Array, ""], most: int, of: Callable[[_Part], Any]) -> Any:
    """Applies `of` to part c of query tile i's list, compiled for each width that a part can have."""

    def branch(width: int) -> Any:
        indices = c * width + jnp.arange(width)
        return of(_Part(lax.dynamic_slice_in_dim(rule.lists[i], c * width, width), indices < rule.counts[i]))

    widths = range(1, 1 + min(most, rule.horizon.shape[1]))
    return lax.switch(rule.width[i] - 1, [functools.partial(branch, width) for width in widths])


def _bias(rule: Rule, i: Int[Array, ""], part: _Part, tokens: int, keys_first: bool = False) -> Float[Array, "B t k"]:
    """Returns 0 where the `tokens` of query tile i see the keys of a part, else MASKED; [B k t] with `keys_first`."""
    query_axis, key_axis = (2, 1) if keys_first else (1, 2)
    size = rule.horizon.shape[2]

    def of_keys(x: Int[Array, "B w s"]) -> Int[Array, "B t k"]:
        return jnp.expand_dims(x.reshape(len(x), -1), query_axis)

    def of_queries(x: Int[Array, "B t"]) -> Int[Array, "B t k"]:
        return jnp.expand_dims(x, key_axis)

    start = rule.query_tiles[i] * tokens
    query = of_queries(start + jnp.arange(tokens)[None])
    key = of_keys((part.tiles[:, None] * size + jnp.arange(size))[None])
    horizon = of_keys(jnp.where(part.real[:, None], rule.horizon[:, part.tiles], 0))
    visible = (key <= query) & (query < horizon)
    if rule.window is not None:
        positions = rule.positions.reshape(len(rule.positions), -1)
        ours = of_queries(lax.dynamic_slice_in_dim(positions, start, tokens, 1))
        visible &= ours - of_keys(rule.positions[:, part.tiles]) < rule.window
    return jnp.where(visible, 0.0, MASKED)


def _masked(
    scores: Float[Array, "B K *pairs"], bias: Float[Array, "B *pairs_of_one"], groups: int, query_axis: int
) -> Float[Array, "B K *pairs"]:
    """Adds a bias that the queries of a group share; `query_axis` of the scores is theirs."""
    shape = scores.shape
    grouped = *shape[:query_axis], groups, shape[query_axis] // groups, *shape[query_axis + 1 :]
    return (scores.reshape(grouped) + jnp.expand_dims(bias, (1, query_axis))).reshape(shape)


# ---- Tiles of arrays -----------------------------------------------------------------------------------------


def _whole(x: Float[Array, "B L N D"], tile: int) -> Float[Array, "B T N D"]:
    """Pads with zeros to whole tiles."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile), (0, 0), (0, 0)))


def _in_tiles(x: Shaped[Array, "B T *rest"], tile: int) -> Shaped[Array, "B n s *rest"]:
    return x.reshape(len(x), -1, tile, *x.shape[2:])


def _queries(x: Float[Array, "B T H D"], i: Int[Array, ""], tokens: int, kv_heads: int) -> Float[Array, "B K q D"]:
    """Returns a tile of queries, those of a kv head's group behind each other."""
    x = lax.dynamic_slice_in_dim(x, i * tokens, tokens, 1)
    x = x.reshape(len(x), tokens, kv_heads, -1, x.shape[-1]).transpose(0, 2, 3, 1, 4)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _put_queries(
    x: Float[Array, "B T H D"], i: Int[Array, ""], new: Float[Array, "B K q D"], tokens: int
) -> Float[Array, "B T H D"]:
    """Inverts `_queries`."""
    new = new.reshape(*new.shape[:2], -1, tokens, new.shape[-1]).transpose(0, 3, 1, 2, 4)
    return lax.dynamic_update_slice_in_dim(x, new.reshape(len(x), tokens, *x.shape[2:]).astype(x.dtype), i * tokens, 1)


def _side_by_side(x: Float[Array, "B n s K D"], part: _Part) -> Float[Array, "B K k D"]:
    """Returns the key tiles of a part."""
    x = x[:, part.tiles].transpose(0, 3, 1, 2, 4)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _one_by_one(x: Float[Array, "B K k D"], tiling: Tiling) -> Float[Array, "B most s K D"]:
    """Inverts `_side_by_side`, with zeros behind: branches must agree in shape."""
    x = x.reshape(*x.shape[:2], -1, tiling.keys, x.shape[-1]).transpose(0, 2, 3, 1, 4)
    return jnp.pad(x, ((0, 0), (0, tiling.most - x.shape[1]), (0, 0), (0, 0), (0, 0)))


def _at(x: Float[Array, "B n s K D"], tile: Int[Array, ""]) -> Float[Array, "B s K D"]:
    return lax.dynamic_index_in_dim(x, tile, 1, keepdims=False)


def _put(x: Float[Array, "B n s K D"], tile: Int[Array, ""], new: Float[Array, "B s K D"]) -> Float[Array, "B n s K D"]:
    return lax.dynamic_update_index_in_dim(x, new, tile, 1)


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _scores(products, scale, softcap):
    products = products * scale
    return products if softcap is None else softcap * jnp.tanh(products / softcap)
