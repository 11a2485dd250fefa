"""Computes attention by horizon with Pallas kernels for NVIDIA GPUs; `smallr.models.attention` defines the result.

FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2): a program holds one tile of queries and walks the key tiles in
which its row has a visible pair, by a list made of the horizons before the kernel starts; for the gradients of keys and
values it holds a key tile and walks queries. The backward pass is two kernels, of 7 products a tile rather than 5, and
needs no atomic additions, so that gradients are the same in every run. Tiles are small: those see less that is hidden.

Lowered by Pallas' Triton backend, which runs on all generations since Ampere, and which JAX 0.11 announces to remove
at some time. Its Mosaic GPU backend has no general product: a kernel for it would be one generation's.

Dimension letters: B rows, T tokens padded to tiles, H heads, K kv heads, G = H / K, D head_dim padded to a power of two;
t tokens of a tile, n = T / t.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from smallr.models.linear import precision
from smallr.models.tiles import MASKED, padded, tile_lists, visible_tiles

SMALLEST = 16  # tokens of a tile: the least side of a product
LARGEST = {2: 64, 4: 32}  # by bytes of a number: what registers hold; float32 products are not the tensor cores'
TILE_BYTES = 16 * 2**10  # of one operand: the backward pass holds four and fetches two, in 96 KiB on the chip


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
    length, dim = q.shape[1], q.shape[3]
    tile = _tile(q)
    q, k, v = (_whole(x, tile) for x in (q, k, v))
    groups = q.shape[2] // k.shape[2]
    out, lse = _call(
        functools.partial(_forward_kernel, tile=tile, softcap=softcap, scale=scale, windowed=window is not None),
        _rule(horizon, positions, tile, window),
        inputs=[(q, _tiles_of(q, tile)), *((x, _row_of(x, groups)) for x in (k, v))],
        outputs=[(x, _tiles_of(x, tile)) for x in (q, jax.ShapeDtypeStruct(q.shape[:3], jnp.float32))],
        heads=q.shape[2],
        interpret=interpret,
    )
    return out[:, :length, :, :dim], lse[:, :length]


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
    length, dim = q.shape[1], q.shape[3]
    tile = _tile(q)
    q, k, v, dout, lse, delta = (_whole(x, tile) for x in (q, k, v, dout, lse, delta))
    groups = q.shape[2] // k.shape[2]
    options = {"tile": tile, "softcap": softcap, "scale": scale, "windowed": window is not None}
    of_queries, of_keys = (q, dout, lse, delta), (k, v)
    (dq,) = _call(
        functools.partial(_query_gradient_kernel, **options),
        _rule(horizon, positions, tile, window),
        inputs=[(x, _tiles_of(x, tile)) for x in of_queries] + [(x, _row_of(x, groups)) for x in of_keys],
        outputs=[(q, _tiles_of(q, tile))],
        heads=q.shape[2],
        interpret=interpret,
    )
    dk, dv = _call(
        functools.partial(_key_gradient_kernel, **options),
        _rule(horizon, positions, tile, window, by_key=True),
        inputs=[(x, _group_of(x, groups)) for x in of_queries] + [(x, _tiles_of(x, tile)) for x in of_keys],
        outputs=[(x, _tiles_of(x, tile)) for x in of_keys],
        heads=k.shape[2],
        interpret=interpret,
    )
    return tuple(x[:, :length, :, :dim] for x in (dq, dk, dv))


# ---- Kernels -------------------------------------------------------------------------------------------------


def _forward_kernel(q, k, v, *refs, tile, softcap, scale, windowed):
    *rule, out, lse = refs
    i, query = pl.program_id(0), q[...]

    def step(j, state):
        top, total, mixed = state
        key, value = _at(k, j, tile), _at(v, j, tile)
        visible = _visible(rule, i, j, tile, windowed)
        scores = jnp.where(visible, _scores(_dot(query, key, transposed=True), scale, softcap), MASKED)
        # `new` never falls below MASKED / 2: exp(MASKED - new) is 0 even where a query sees nothing in this tile.
        new = jnp.maximum(top, scores.max(1))
        weights, shrink = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        return new, total * shrink + weights.sum(1), mixed * shrink[:, None] + _dot(weights.astype(value.dtype), value)

    start = jnp.full((tile,), MASKED / 2, jnp.float32), jnp.zeros((tile,), jnp.float32)
    top, total, mixed = _walk(rule, step, (*start, jnp.zeros(query.shape, jnp.float32)))
    total = jnp.maximum(total, 1e-30)
    out[...] = (mixed / total[:, None]).astype(out.dtype)
    lse[...] = top + jnp.log(total)


def _query_gradient_kernel(q, dout, lse, delta, k, v, *refs, tile, softcap, scale, windowed):
    *rule, dq = refs
    i, query, dmixed, sums, shift = pl.program_id(0), q[...], dout[...], lse[...], delta[...]

    def step(j, total):
        key, value = _at(k, j, tile), _at(v, j, tile)
        visible = _visible(rule, i, j, tile, windowed)
        scores = _scores(_dot(query, key, transposed=True), scale, softcap)
        weights = jnp.exp(jnp.where(visible, scores, MASKED) - sums[:, None])
        dscores = weights * (_dot(dmixed, value, transposed=True) - shift[:, None]) * _slope(scores, scale, softcap)
        return total + _dot(dscores.astype(key.dtype), key)

    dq[...] = _walk(rule, step, jnp.zeros(query.shape, jnp.float32)).astype(dq.dtype)


def _key_gradient_kernel(q, dout, lse, delta, k, v, *refs, tile, softcap, scale, windowed):
    """Tiles are keys x queries here, so that no product needs transposed weights."""
    *rule, dk, dv = refs
    j, key, value, groups = pl.program_id(0), k[...], v[...], q.shape[1]

    def step(i, state):
        visible = _visible(rule, i, j, tile, windowed, keys_first=True)

        def head(g, state):
            dkey, dvalue = state
            query, dmixed, sums, shift = (_at(x, i, tile, g) for x in (q, dout, lse, delta))
            scores = _scores(_dot(key, query, transposed=True), scale, softcap)
            weights = jnp.exp(jnp.where(visible, scores, MASKED) - sums[None])
            dscores = weights * (_dot(value, dmixed, transposed=True) - shift[None]) * _slope(scores, scale, softcap)
            dvalue += _dot(weights.astype(dmixed.dtype), dmixed)
            return dkey + _dot(dscores.astype(query.dtype), query), dvalue

        return lax.fori_loop(0, groups, head, state)

    zeros = jnp.zeros(key.shape, jnp.float32)
    dkey, dvalue = _walk(rule, step, (zeros, zeros))
    dk[...] = dkey.astype(dk.dtype)
    dv[...] = dvalue.astype(dv.dtype)


def _walk(rule, step, state):
    """Applies `step(index, state)` for each tile of the other kind that this program's tile sees, or is seen by."""
    *_, order, count = rule
    return lax.fori_loop(0, count[pl.program_id(0)], lambda n, state: step(order[n], state), state)


def _visible(rule, i, j, tile, windowed, keys_first=False) -> Bool[Array, "t t"]:
    """Returns which queries (down) of tile i see which keys (across) of tile j; the other way around with `keys_first`."""
    horizon, positions, window = rule[:3]

    def along(x: Int[Array, "t"], axis: int) -> Int[Array, "t t"]:
        return jnp.expand_dims(x, 1 - axis)

    query_axis, key_axis = (1, 0) if keys_first else (0, 1)
    offsets = lax.iota(jnp.int32, tile)
    query, key = along(i * tile + offsets, query_axis), along(j * tile + offsets, key_axis)
    visible = (key <= query) & (query < along(_at(horizon, j, tile), key_axis))
    if windowed:
        visible &= along(_at(positions, i, tile), query_axis) - along(_at(positions, j, tile), key_axis) < window[0]
    return visible


def _at(ref, index, tile, *group):
    """Returns a tile of tokens of a row, of one head if it holds several."""
    rest = (slice(None),) * (len(ref.shape) - 1 - len(group))
    return ref[(pl.ds(index * tile, tile), *group, *rest)]


def _scores(products, scale, softcap):
    products = products * scale
    return products if softcap is None else softcap * jnp.tanh(products / softcap)


def _slope(scores, scale, softcap):
    """Returns the derivative of a score by its product."""
    return scale if softcap is None else scale * (1 - (scores / softcap) * (scores / softcap))


def _dot(a, b, transposed=False):
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=precision(a.dtype), preferred_element_type=jnp.float32)


# ---- Around the kernels --------------------------------------------------------------------------------------


def _rule(horizon, positions, tile, window, by_key=False):
    """Returns horizon, positions [B T], window [1], and of each tile the list of those that it walks [B n n], [B n]."""
    horizon, positions = padded(horizon, tile), padded(positions, tile)
    visible = visible_tiles(horizon, positions, tile, window)
    window = jnp.asarray([0 if window is None else window], jnp.int32)
    return horizon, positions, window, *tile_lists(visible.swapaxes(1, 2) if by_key else visible)


def _call(kernel, rule, inputs, outputs, heads, interpret):
    """Runs a program for each tile, head and row; `inputs` and `outputs` are arrays with their blocks."""
    batch, count = rule[-1].shape
    length = rule[0].shape[1]
    row = pl.BlockSpec((None, length), lambda i, h, b: (b, 0))
    rule_blocks = [row, row, pl.BlockSpec((1,), lambda i, h, b: (0,))]
    rule_blocks += [pl.BlockSpec((None, None, count), lambda i, h, b: (b, i, 0))]
    rule_blocks += [pl.BlockSpec((None, count), lambda i, h, b: (b, 0))]
    dim = inputs[0][0].shape[-1]
    return pl.pallas_call(
        kernel,
        grid=(count, heads, batch),
        in_specs=[block for _, block in inputs] + rule_blocks,
        out_specs=[block for _, block in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        compiler_params=None if interpret else _compiler_params(dim),
        interpret=interpret,
    )(*(x for x, _ in inputs), *rule)


def _compiler_params(dim: int) -> Any:
    """Returns compiler parameters for heads of `dim`.

    Raises:
      NotImplementedError: a JAX that has removed the Triton backend, which is why it is imported this late.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError as error:
        raise NotImplementedError(
            f"compute.attention=gpu: JAX {jax.__version__} has no Triton backend of Pallas any more; "
            "set compute.attention=xla"
        ) from error
    return triton.CompilerParams(num_warps=4 if dim <= 64 else 8, num_stages=2)


def _tiles_of(x: jax.Array | jax.ShapeDtypeStruct, tile: int) -> pl.BlockSpec:
    """Returns the program's tile and head of an array [B T H *D]."""
    return pl.BlockSpec((None, tile, None, *x.shape[3:]), lambda i, h, b: (b, i, h, *(0,) * (x.ndim - 3)))


def _row_of(x: jax.Array, groups: int) -> pl.BlockSpec:
    """Returns the row's keys or values [B T K D] of the kv head to which the program's head belongs."""
    return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda i, h, b: (b, 0, lax.div(h, groups), 0))


def _group_of(x: jax.Array, groups: int) -> pl.BlockSpec:
    """Returns the row of an array [B T H *D], in the heads that belong to the program's kv head."""
    return pl.BlockSpec((None, x.shape[1], groups, *x.shape[3:]), lambda i, h, b: (b, 0, h, *(0,) * (x.ndim - 3)))


def _tile(q: Float[Array, "B T H D"]) -> int:
    """Returns tokens of a tile, a power of two."""
    size = q.dtype.itemsize
    fitting = TILE_BYTES // (pl.next_power_of_2(q.shape[3]) * size)
    return max(SMALLEST, min(LARGEST[size], fitting, pl.next_power_of_2(q.shape[1])))


def _whole(x: Float[Array, "B L H *E"], tile: int) -> Float[Array, "B T H *D"]:
    """Returns tokens in whole tiles, and a head's dimension a power of two of at least 16; zeros change no product."""
    pads = [(0, 0), (0, -x.shape[1] % tile), (0, 0)]
    if x.ndim > 3:
        dim = max(SMALLEST, pl.next_power_of_2(x.shape[3]))
        pads.append((0, dim - x.shape[3]))
    return jnp.pad(x, pads)
