"""Computes attention by horizon with Pallas kernels for TPUs; `smallr.models.attention` defines the result.

FlashAttention (arXiv 2205.14135, algorithms 1 and 4) over a list of tiles. The list is made of the horizons before the
kernel starts: those pairs of a query tile and a key tile in which the row has a visible pair, so that the half above
the diagonal, the keys of other examples and the chosen completion of rejected queries cost next to nothing. It reaches the
kernel as prefetched scalars, which say what to copy to on-chip memory for which step.

Scores stand as keys x queries: statistics of queries are then rows, which lie along the lanes, and every product is in
one of the two orders that the matrix unit takes as they are. Outputs are written as [D, T] for the same reason.

Dimension letters: B rows, T tokens padded to tiles, H heads, K kv heads, G = H / K, D head_dim; t tokens of a tile,
S steps of the list.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from smallr.models.linear import precision
from smallr.models.tiles import MASKED, padded, visible_tiles

TILE = 512  # as in splash attention's defaults: large products, and scores of a tile are 1 MiB
LANES = 128
ACTIVE, FIRST, LAST = 1, 2, 4  # of a step: it counts, it begins an output tile, it ends one


class _Steps(NamedTuple):
    """Holds the list of tiles of each row, padded with its last one, for the scalar unit."""

    query: Int[Array, "B S"]
    key: Int[Array, "B S"]
    flags: Int[Array, "B S"]
    window: Int[Array, "1"]


def forward(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    window: int | Int[Array, ""] | None,
    *,
    softcap: float | None,
    scale: float,
    interpret: bool = False,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B T H"]]:
    """Returns the mixed values in q's dtype, and the float32 log-sum-exp of the scores.

    `interpret` runs the kernel's operations on any backend.
    """
    length, heads = q.shape[1:3]
    tile = _tile(length)
    q, k, v = _by_head(q, tile, k.shape[2]), _by_head(k, tile), _by_head(v, tile).swapaxes(-1, -2)
    rule = padded(horizon, tile), padded(positions, tile)
    steps = _steps(*rule, tile, window)
    batch, kv_heads, groups, tokens, dim = q.shape
    out, lse = _call(
        functools.partial(_forward_kernel, softcap=softcap, scale=scale, windowed=window is not None),
        steps,
        inputs=[(q, "queries"), (k, "keys"), (v, "keys last"), *_rule_inputs(rule)],
        outputs=[
            ((batch, kv_heads, groups, dim, tokens), q.dtype, "queries last"),
            ((batch, kv_heads, groups, tokens), jnp.float32, "queries last"),
        ],
        scratch=[(groups, tile), (groups, tile), (groups, dim, tile)],
        products=2,
        interpret=interpret,
    )
    return _by_token(out.swapaxes(-1, -2), length, heads), _by_token(lse[..., None], length, heads)[..., 0]


def backward(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    window: int | Int[Array, ""] | None,
    dout: Float[Array, "B T H D"],
    lse: Float[Array, "B T H"],
    delta: Float[Array, "B T H"],
    *,
    softcap: float | None,
    scale: float,
    interpret: bool = False,
) -> tuple[Float[Array, "B T H D"], Float[Array, "B T K D"], Float[Array, "B T K D"]]:
    """Gradients of q, k and v; `delta` is the sum over D of out * dout."""
    length, heads = q.shape[1:3]
    kv_heads, tile = k.shape[2], _tile(length)
    q, dout = _by_head(q, tile, kv_heads), _by_head(dout, tile, kv_heads)
    lse, delta = (_by_head(x[..., None], tile, kv_heads)[..., 0] for x in (lse, delta))
    k, v = _by_head(k, tile), _by_head(v, tile)
    rule = padded(horizon, tile), padded(positions, tile)
    batch, _, groups, tokens, dim = q.shape
    options = {"softcap": softcap, "scale": scale, "windowed": window is not None}
    inputs = [(q, "queries"), (k, "keys"), (v, "keys"), (dout, "queries")]
    inputs += [(lse, "queries last"), (delta, "queries last"), *_rule_inputs(rule)]
    (dq,) = _call(
        functools.partial(_query_gradient_kernel, **options),
        _steps(*rule, tile, window),
        inputs=[*inputs, (k.swapaxes(-1, -2), "keys last")],
        outputs=[((batch, kv_heads, groups, dim, tokens), q.dtype, "queries last")],
        scratch=[(groups, dim, tile)],
        products=3,
        interpret=interpret,
    )
    dk, dv = _call(
        functools.partial(_key_gradient_kernel, **options),
        _steps(*rule, tile, window, by_key=True),
        inputs=inputs,
        outputs=[(k.shape, k.dtype, "keys"), (v.shape, v.dtype, "keys")],
        scratch=[(tile, dim), (tile, dim)],
        products=4,
        interpret=interpret,
    )
    dk, dv = (_by_token(x[:, :, None], length, kv_heads) for x in (dk, dv))
    return _by_token(dq.swapaxes(-1, -2), length, heads), dk, dv


# ---- Kernels -------------------------------------------------------------------------------------------------


def _forward_kernel(*refs, softcap, scale, windowed):
    step, (q, k, v, *rule, out, lse, top, total, mixed) = _here(*refs[:4]), refs[4:]
    flags = step.flags

    @pl.when(flags & FIRST > 0)
    def _():
        top[...] = jnp.full(top.shape, MASKED / 2)
        total[...] = jnp.zeros(total.shape)
        mixed[...] = jnp.zeros(mixed.shape)

    @pl.when(flags & ACTIVE > 0)
    def _():
        visible = _visible(step, rule, windowed)
        for g in range(q.shape[0]):
            scores = jnp.where(visible, _scores(k[...], q[g], scale, softcap), MASKED)
            old = top[g : g + 1]
            # `new` never falls below MASKED / 2: exp(MASKED - new) is 0 even where a query sees nothing in this tile.
            new = jnp.maximum(old, scores.max(0, keepdims=True))
            weights, shrink = jnp.exp(scores - new), jnp.exp(old - new)
            top[g : g + 1] = new
            total[g : g + 1] = total[g : g + 1] * shrink + weights.sum(0, keepdims=True)
            mixed[g] = mixed[g] * shrink + _dot(v[...], weights.astype(v.dtype))

    @pl.when(flags & LAST > 0)
    def _():
        sums = jnp.maximum(total[...], 1e-30)
        lse[...] = top[...] + jnp.log(sums)
        for g in range(q.shape[0]):
            out[g] = (mixed[g] / sums[g : g + 1]).astype(out.dtype)


def _query_gradient_kernel(*refs, softcap, scale, windowed):
    step, (q, k, v, dout, lse, delta, *rule, k_columns, dq, total) = _here(*refs[:4]), refs[4:]
    flags = step.flags

    @pl.when(flags & FIRST > 0)
    def _():
        total[...] = jnp.zeros(total.shape)

    @pl.when(flags & ACTIVE > 0)
    def _():
        visible = _visible(step, rule, windowed)
        for g in range(q.shape[0]):
            _, dscores = _recomputed(q[g], k, v, dout[g], lse[g : g + 1], delta[g : g + 1], visible, scale, softcap)
            total[g] += _dot(k_columns[...], dscores.astype(q.dtype))

    @pl.when(flags & LAST > 0)
    def _():
        dq[...] = total[...].astype(dq.dtype)


def _key_gradient_kernel(*refs, softcap, scale, windowed):
    step, (q, k, v, dout, lse, delta, *rule, dk, dv, dk_total, dv_total) = _here(*refs[:4]), refs[4:]
    flags = step.flags

    @pl.when(flags & FIRST > 0)
    def _():
        dk_total[...] = jnp.zeros(dk_total.shape)
        dv_total[...] = jnp.zeros(dv_total.shape)

    @pl.when(flags & ACTIVE > 0)
    def _():
        visible = _visible(step, rule, windowed)
        for g in range(q.shape[0]):
            weights, dscores = _recomputed(
                q[g], k, v, dout[g], lse[g : g + 1], delta[g : g + 1], visible, scale, softcap
            )
            dv_total[...] += _dot(weights.astype(q.dtype), dout[g])
            dk_total[...] += _dot(dscores.astype(q.dtype), q[g])

    @pl.when(flags & LAST > 0)
    def _():
        dk[...] = dk_total[...].astype(dk.dtype)
        dv[...] = dv_total[...].astype(dv.dtype)


def _recomputed(q, k, v, dout, lse, delta, visible, scale, softcap):
    """Returns weights and the gradient of q kᵀ, both float32 [keys, queries]."""
    scores = _scores(k[...], q, scale, softcap)
    weights = jnp.exp(jnp.where(visible, scores, MASKED) - lse)
    dscores = weights * (_dot(v[...], dout, transposed=True) - delta) * scale
    return weights, dscores if softcap is None else dscores * (1 - (scores / softcap) ** 2)


def _scores(k, q, scale, softcap):
    scores = _dot(k, q, transposed=True) * scale
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _dot(a, b, transposed=False):
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _here(query, key, flags, window) -> _Steps:
    """Returns the scalars of this step."""
    index = pl.program_id(0), pl.program_id(2)
    return _Steps(query[index], key[index], flags[index], window[0])


def _visible(step, rule, windowed):
    """Returns which keys (down) which queries (across) of this step's tiles see."""
    horizon, query_positions, key_positions = rule
    tile = horizon.shape[-1]
    key = step.key * tile + lax.broadcasted_iota(jnp.int32, (tile, tile), 0)
    query = step.query * tile + lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
    visible = (key <= query) & (query < _column(horizon))
    if windowed:
        visible &= query_positions[...] - _column(key_positions) < step.window
    return visible


def _column(row):
    """Transposes [1, t] to [t, 1]; the transposition unit takes whole registers."""
    return jnp.broadcast_to(row[...], (LANES, row.shape[-1])).T[:, :1]


# ---- Around the kernels --------------------------------------------------------------------------------------


def _steps(horizon, positions, tile, window, by_key=False) -> _Steps:
    """Lists each row's visible tiles, one query tile (or key tile) after the other.

    The diagonal always belongs to them, so that each output tile is written.
    """
    visible = visible_tiles(horizon, positions, tile, window)
    count = visible.shape[1]
    visible |= jnp.eye(count, dtype=bool)
    if by_key:
        visible = visible.swapaxes(1, 2)
    visible = visible.reshape(len(visible), -1)
    size = count * (count + 1) // 2
    # A stable sort puts the visible ones in front, in order.
    order = jnp.argsort(~visible, axis=1, stable=True)[:, :size].astype(jnp.int32)
    total = visible.sum(1, keepdims=True)
    step = jnp.arange(size)
    order = jnp.where(step < total, order, jnp.take_along_axis(order, total - 1, axis=1))
    major, minor = order // count, order % count
    changes = major[:, 1:] != major[:, :-1]
    edge = jnp.ones_like(major[:, :1], bool)
    first = jnp.concatenate([edge, changes], axis=1)
    last = jnp.concatenate([changes, edge], axis=1) | (step == total - 1)
    flags = jnp.where(step < total, ACTIVE + FIRST * first + LAST * last, 0).astype(jnp.int32)
    pair = (minor, major) if by_key else (major, minor)
    return _Steps(*pair, flags, jnp.asarray([0 if window is None else window], jnp.int32))


def _call(kernel, steps, inputs, outputs, scratch, products, interpret):
    """Runs a kernel over rows, kv heads and steps.

    Args:
      kernel: gets the four arrays of `steps`, then inputs, outputs and scratch, each with its tile alone.
      steps: the list.
      inputs: arrays with a name for how their tiles follow the steps (see `_block`).
      outputs: shape, dtype and such a name.
      scratch: shapes of float32 accumulators.
      products: of [t, t] and D in a step, for XLA's schedule.
      interpret: as in `forward`.
    """
    q = inputs[0][0]
    batch, kv_heads, groups, length, dim = q.shape
    tile = _tile(length)
    pairs = batch * kv_heads * groups * steps.query.shape[1]
    cost = pl.CostEstimate(
        flops=2 * products * pairs * tile * tile * dim,
        transcendentals=pairs * tile * tile,
        bytes_accessed=pairs * tile * dim * q.dtype.itemsize * 4,
    )
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(batch, kv_heads, steps.query.shape[1]),
            in_specs=[_block(x.shape, name, tile) for x, name in inputs],
            out_specs=[_block(shape, name, tile) for shape, _, name in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
    )(*steps, *(x for x, _ in inputs))


def _block(shape: tuple[int, ...], name: str, tile: int) -> pl.BlockSpec:
    """Returns the tile of an array [B, K, …] or [B, 1, T] that a step reads or writes.

    `name`: whose tile it is, "queries" or "keys"; " last" if tokens are the last axis, not the last but one.
    """
    axis = len(shape) - (1 if name.endswith("last") else 2)
    follows = 0 if name.startswith("queries") else 1
    per_head = len(shape) > 3
    block = [None, None if per_head else 1, *shape[2:]]
    block[axis] = tile

    def index(row, head, step, *scalars):
        at = [row, head if per_head else 0, *(0 for _ in shape[2:])]
        at[axis] = scalars[follows][row, step]
        return tuple(at)

    return pl.BlockSpec(tuple(block), index)


def _rule_inputs(rule):
    horizon, positions = (x[:, None] for x in rule)
    return [(horizon, "keys last"), (positions, "queries last"), (positions, "keys last")]


def _tile(length: int) -> int:
    return min(TILE, -(-length // LANES) * LANES)


def _by_head(x: Float[Array, "B T H D"], tile: int, kv_heads: int | None = None) -> Float[Array, "B K *G T D"]:
    """Puts heads in front of tokens, in groups if `kv_heads` is given; tokens padded with zeros to whole tiles."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile), (0, 0), (0, 0))).swapaxes(1, 2)
    return x if kv_heads is None else x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def _by_token(x: Float[Array, "B K G T D"], length: int, heads: int) -> Float[Array, "B T H D"]:
    return x.reshape(x.shape[0], heads, *x.shape[3:]).swapaxes(1, 2)[:, :length]
