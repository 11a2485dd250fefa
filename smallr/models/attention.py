"""Attention behind one function, with the horizon as its whole rule.

Query q sees key k  ⇔  k ≤ q < horizon[k]  (indices into the row), and, with a window,
positions[q] - positions[k] < window. Packing, shared prompts, plain rows and padding are all this rule.

The `xla` implementation is FlashAttention (arXiv 2205.14135, algorithms 1 and 4) as a loop over those tiles
of the square that hold a visible pair: no [T, T] exists, the half above the diagonal costs nothing, and
neither do the keys of other examples, or a chosen branch for the rejected queries.

Dimension letters: B rows, T tokens, H heads, K kv heads, G = H / K queries per kv head, D head_dim;
n tiles along T, s keys of a tile, q = G × s queries of a tile. A "blocked" array has the n tiles in front.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from smallr.models import attention_gpu, attention_tpu
from smallr.models.config import ATTENTION
from smallr.models.linear import precision, transpose_minor
from smallr.models.remat import keep_residual
from smallr.models.tiles import MASKED, padded, visible_tiles
from smallr.sharding import is_sharded, split_axes

CPU_TILE = 128  # the scores of a few heads stay in a core's cache
ACCELERATOR_TILE = 512  # few, large steps


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Float[Array, "B T H D"]:
    """softmax(scale q kᵀ) v over the visible keys; scores, softmax and sums in float32.

    Args:
      q: queries after the rotary embedding; their H heads are K groups.
      k: keys after the rotary embedding, of q's dtype, not repeated for the heads of a group.
      v: values, likewise.
      horizon: first query index that no longer sees this key; 0 for padding.
      positions: position within the example; read only with a window.
      window: None, or a query sees positions at most window - 1 back. May be traced: layers with different windows
        are one scanned program.
      softcap: None, or scores become softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118, section 2).
      scale: None for 1 / √D.
      impl: "xla", which runs on every backend; "tpu" or "gpu" (NVIDIA's), kernels that other backends only interpret
        (for tests); "auto", the kernel on TPUs and else "xla".

    Returns:
      The mixed values in q's dtype. A query without any visible key gives zeros, and takes and gives no gradient.

    Raises:
      ValueError: an unknown `impl`, or heads that are not a multiple of the kv heads.
    """
    if impl not in ATTENTION:
        raise ValueError(f"attention: unknown implementation {impl!r}; known: {', '.join(ATTENTION)}")
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"attention: {heads} heads are not a multiple of {kv_heads} kv heads")
    return _attend(q, k, v, horizon, positions, window, softcap, q.shape[3] ** -0.5 if scale is None else scale, impl)


def describe(impl: str, backend: str) -> str:
    """In words what `impl` runs on a backend of JAX ("cpu", "gpu", "tpu")."""
    chosen = ("tpu" if backend == "tpu" else "xla") if impl == "auto" else impl
    note = "" if chosen in ("xla", backend) else f", interpreted on the {backend}: slow, for tests alone"
    return chosen + (" (auto)" if impl == "auto" else "") + note


class _Rule(NamedTuple):
    """What decides visibility, blocked; and the tiles that hold a visible pair."""

    horizon: Int[Array, "n B s"]
    positions: Int[Array, "n B s"]
    pairs: Int[Array, "pairs"]  # query tile * n + key tile
    count: Int[Array, ""]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attend(q, k, v, horizon, positions, window, softcap, scale, impl):
    return _attend_forward(q, k, v, horizon, positions, window, softcap, scale, impl)[0]


def _attend_forward(q, k, v, horizon, positions, window, softcap, scale, impl):
    ways = _forward_tiles, attention_tpu.forward, attention_gpu.forward
    out, lse = _by_platform(impl, ways, softcap, scale, q, k, v, horizon, positions, window)
    out, lse = keep_residual(out, "attention_out"), keep_residual(lse, "attention_lse")
    return out, (q, k, v, horizon, positions, window, out, lse)


def _attend_backward(softcap, scale, impl, residuals, dout):
    q, k, v, horizon, positions, window, out, lse = residuals
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    ways = _backward_tiles, attention_tpu.backward, attention_gpu.backward
    gradients = _by_platform(impl, ways, softcap, scale, q, k, v, horizon, positions, window, dout, lse, delta)
    return *gradients, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _by_platform(impl, ways, softcap, scale, q, k, *args):
    """Runs what `impl` means on the platform that the program is compiled for; see also `describe`."""
    tiles, tpu, gpu = (functools.partial(way, softcap=softcap, scale=scale) for way in ways)
    cpu, other = (functools.partial(tiles, tile=min(tile, q.shape[1])) for tile in (CPU_TILE, ACCELERATOR_TILE))
    tpu, gpu = functools.partial(_per_device, tpu), functools.partial(_per_device, gpu)
    ways = {
        "auto": {"cpu": cpu, "tpu": tpu, "default": other},
        "xla": {"cpu": cpu, "default": other},
        "tpu": {"tpu": tpu, "default": functools.partial(tpu, interpret=True)},
        "gpu": {"cuda": gpu, "default": functools.partial(gpu, interpret=True)},
    }
    return lax.platform_dependent(q, k, *args, **ways[impl])


def _per_device(kernel, q, k, *args, **options):
    """A kernel is opaque to XLA, which would gather what it reads: each device computes its own rows and kv heads.

    Kv heads that do not divide stay whole, and so do heads.
    """
    kernel = functools.partial(kernel, **options)
    if not is_sharded():
        return kernel(q, k, *args)
    rows = PartitionSpec(split_axes("batch", q.shape[0]) or None)
    heads = PartitionSpec(*rows, None, split_axes("kv_heads", k.shape[2]) or None)
    specs = (heads, heads, heads, rows, rows, PartitionSpec(), *(heads,) * (len(args) - 4))
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(q, k, *args)


def _forward_tiles(q, k, v, horizon, positions, window, *, tile, softcap, scale):
    """Returns out [B T H D] in q's dtype and the log-sum-exp [B T H] float32."""
    _, length, heads, _ = q.shape
    groups = heads // k.shape[2]
    rule = _rule(horizon, positions, tile, window)
    queries, keys, values = _blocked(q, tile, groups), _blocked(k, tile), _blocked(v, tile)

    def step(place, state):
        top, total, mixed = state
        i, j = jnp.divmod(rule.pairs[place], len(queries))
        bias = _bias(rule, i, j, tile, window)[:, None, None]
        scores = _scores(_dot("bkqd,bksd->bkqs", _at(queries, i), _at(keys, j)), scale, softcap)
        scores = (scores.reshape(*scores.shape[:2], groups, tile, tile) + bias).reshape(scores.shape)
        old_top = _at(top, i)
        # top never falls below MASKED / 2: exp(MASKED - top) is 0 even where a query sees nothing in this tile.
        new_top = jnp.maximum(old_top, scores.max(-1))
        weights = jnp.exp(scores - new_top[..., None])
        shrink = jnp.exp(old_top - new_top)
        added = _dot("bkqs,bksd->bkqd", weights.astype(v.dtype), _at(values, j))
        return (
            _put(top, i, new_top),
            _put(total, i, _at(total, i) * shrink + weights.sum(-1)),
            _put(mixed, i, _at(mixed, i) * shrink[..., None] + added),
        )

    rows = queries.shape[:-1]
    start = jnp.full(rows, MASKED / 2), jnp.zeros(rows), jnp.zeros(queries.shape)
    top, total, mixed = lax.fori_loop(0, rule.count, step, start)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    lse = (top + jnp.log(total))[..., None]
    return _unblocked(mixed / total[..., None], length, groups).astype(q.dtype), _unblocked(lse, length, groups)[..., 0]


def _backward_tiles(q, k, v, horizon, positions, window, dout, lse, delta, *, tile, softcap, scale):
    """Gradients of q, k and v from recomputed scores.

    Tiles are keys × queries here, and the queries' gradient is built as [D, q], so that every product has
    its contracted axis where a CPU wants it (see `transpose_minor`) and only the keys are transposed, once.
    """
    _, length, heads, _ = q.shape
    groups = heads // k.shape[2]
    rule = _rule(horizon, positions, tile, window)
    queries, keys, values = _blocked(q, tile, groups), _blocked(k, tile), _blocked(v, tile)
    douts = _blocked(dout, tile, groups)
    lses, deltas = (_blocked(x[..., None], tile, groups)[..., 0] for x in (lse, delta))
    key_columns = transpose_minor(keys)

    def step(place, state):
        dq, dk, dv = state
        i, j = jnp.divmod(rule.pairs[place], len(queries))
        query, key, value, dmixed = _at(queries, i), _at(keys, j), _at(values, j), _at(douts, i)
        bias = _bias(rule, i, j, tile, window, keys_first=True)[:, None, :, None]
        raw = _scores(_dot("bksd,bkqd->bksq", key, query), scale, softcap)
        scores = (raw.reshape(*raw.shape[:3], groups, tile) + bias).reshape(raw.shape)
        weights = jnp.exp(scores - _at(lses, i)[:, :, None])
        dweights = _dot("bksd,bkqd->bksq", value, dmixed)
        dscores = weights * (dweights - _at(deltas, i)[:, :, None]) * scale
        if softcap is not None:
            dscores *= 1 - (raw / softcap) ** 2
        dscores, weights = dscores.astype(q.dtype), weights.astype(q.dtype)
        return (
            _put(dq, i, _at(dq, i) + _dot("bkds,bksq->bkdq", _at(key_columns, j), dscores)),
            _put(dk, j, _at(dk, j) + _dot("bksq,bkqd->bksd", dscores, query)),
            _put(dv, j, _at(dv, j) + _dot("bksq,bkqd->bksd", weights, dmixed)),
        )

    start = jnp.zeros(queries.swapaxes(-1, -2).shape), jnp.zeros(keys.shape), jnp.zeros(values.shape)
    dq, dk, dv = lax.fori_loop(0, rule.count, step, start)
    dq = _unblocked(dq.swapaxes(-1, -2), length, groups)
    return dq.astype(q.dtype), _unblocked(dk, length).astype(k.dtype), _unblocked(dv, length).astype(v.dtype)


def _rule(
    horizon: Int[Array, "B T"], positions: Int[Array, "B T"], tile: int, window: int | Int[Array, ""] | None
) -> _Rule:
    """Blocks the rule, and lists the tiles in which any row may have a visible pair."""
    horizon, positions = padded(horizon, tile), padded(positions, tile)
    active = visible_tiles(horizon, positions, tile, window).any(0)
    count = len(active)
    horizon, positions = (x.reshape(len(x), count, tile).swapaxes(0, 1) for x in (horizon, positions))
    (pairs,) = jnp.nonzero(active.ravel(), size=count * (count + 1) // 2, fill_value=0)
    return _Rule(horizon, positions, pairs, active.sum())


def _bias(
    rule: _Rule,
    i: Int[Array, ""],
    j: Int[Array, ""],
    tile: int,
    window: int | Int[Array, ""] | None,
    keys_first: bool = False,
) -> Float[Array, "B t s"]:
    """0 where the queries of tile i see the keys of tile j, else MASKED; [B s t] with `keys_first`."""
    query_axis, key_axis = (2, 1) if keys_first else (1, 2)

    def along(axis: int, x: Int[Array, "B t"]) -> Int[Array, "B t s"]:
        return jnp.expand_dims(x, 3 - axis)

    offsets = jnp.arange(tile)[None]
    query, key = along(query_axis, i * tile + offsets), along(key_axis, j * tile + offsets)
    mask = (key <= query) & (query < along(key_axis, _at(rule.horizon, j)))
    if window is not None:
        mask &= along(query_axis, _at(rule.positions, i)) - along(key_axis, _at(rule.positions, j)) < window
    return jnp.where(mask, 0.0, MASKED)


def _at(x, i):
    return lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x, i, value):
    return lax.dynamic_update_index_in_dim(x, value, i, 0)


def _blocked(x: Float[Array, "B T H D"], tile: int, groups: int = 1) -> Float[Array, "n B K q D"]:
    """Splits T into tiles, padded with zeros, and puts the queries of a kv head's group behind each other."""
    batch, length, heads, dim = x.shape
    count = -(-length // tile)
    x = jnp.pad(x, ((0, 0), (0, count * tile - length), (0, 0), (0, 0)))
    x = x.reshape(batch, count, tile, heads // groups, groups, dim).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(count, batch, heads // groups, groups * tile, dim)


def _unblocked(x: Float[Array, "n B K q D"], length: int, groups: int = 1) -> Float[Array, "B T H D"]:
    """Inverse of `_blocked`."""
    count, batch, kv_heads, rows, dim = x.shape
    x = x.reshape(count, batch, kv_heads, groups, rows // groups, dim).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, -1, kv_heads * groups, dim)[:, :length]


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _scores(products, scale, softcap):
    products = products * scale
    return products if softcap is None else softcap * jnp.tanh(products / softcap)
