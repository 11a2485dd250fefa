"""Computes attention by horizon with kernels of others: cuDNN's, and TPUs' splash attention.

Two of them know causal sequences alone, so rows are unshared first (`attention_unshared`). All bring their own gradients.

Dimension letters: B rows, T tokens, U tokens of a row once unshared, M sequences of a row, H heads, K kv heads, D head_dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smallr.core.sharding import by_platform
from smallr.models.attention_dense import visible_pairs
from smallr.models.attention_unshared import Unshared, unshared_attention

STOCK = ("cudnn", "cudnn_packed", "splash")
UNSHARING = ("cudnn_packed", "splash")  # of these, with room for a number of completions of a row
LANES = 128
TILE = 512  # of splash attention
# cuDNN's packed layout is reached by a private function of JAX, whose behaviour is known in these versions.
PACKED_VERSIONS = ("0.10", "0.11", "0.12")


def version() -> str:
    """Returns JAX's version without its last part."""
    return ".".join(jax.__version__.split(".")[:2])


def stock_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    window: int | Int[Array, ""] | None = None,
    *,
    impl: str,
    softcap: float | None,
    scale: float,
    sequences: int,
) -> Float[Array, "B T H D"]:
    """Computes attention with one of `STOCK`. What each cannot do stands in `attention_support`.

    Raises:
      ValueError: a window or soft-cap that the kernel does not know.
    """
    if softcap is not None and impl != "splash":
        raise ValueError(f"attention: {impl} knows no soft-cap")
    if impl == "cudnn":
        return _cudnn_dense(q, k, v, horizon, positions, window, scale)
    if window is not None and (impl == "cudnn_packed" or not isinstance(window, int)):
        raise ValueError(f"attention: {impl} knows no {'' if impl == 'cudnn_packed' else 'traced '}window")
    if impl == "cudnn_packed":
        kernel = functools.partial(_cudnn_packed, scale=scale)
    else:
        kernel = functools.partial(_splash, scale=scale, window=window, softcap=softcap)
    return unshared_attention(kernel, q, k, v, horizon, sequences)


def _cudnn_dense(q, k, v, horizon, positions, window, scale):
    """Hides pairs by a mask over the whole square: nothing is skipped, but nothing has to be rearranged."""
    length = q.shape[1]
    odd = [(0, 0), (0, length % 2)]  # with a mask, gradients want an even length
    q, k, v = (jnp.pad(x, [*odd, (0, 0), (0, 0)]) for x in (q, k, v))
    visible = visible_pairs(jnp.pad(horizon, odd), jnp.pad(positions, odd), window)
    out = jax.nn.dot_product_attention(q, k, v, mask=visible[:, None], scale=scale, implementation="cudnn")
    return jnp.where(visible.any(-1)[..., None, None], out, 0)[:, :length]


def _cudnn_packed(
    q: Float[Array, "B U H D"], k: Float[Array, "B U K D"], v: Float[Array, "B U K D"], where: Unshared, *, scale: float
) -> Float[Array, "B U H D"]:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    if version() in ("0.10", "0.11"):  # these place the keys of a sequence by the number of the queries' heads
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    exists = where.length > 0
    length, start = (jnp.where(exists, x, -1).astype(jnp.int32) for x in (where.length, where.start))
    start = jnp.pad(start, ((0, 0), (0, 1)), constant_values=-1)
    return dot_product_attention(
        q,
        k,
        v,
        q_seqlen=length,
        kv_seqlen=length,
        q_offsets=start,
        kv_offsets=start,
        scale=scale,
        mask_type=MaskType.PADDING_CAUSAL,
    )


def _splash(
    q: Float[Array, "B U H D"],
    k: Float[Array, "B U K D"],
    v: Float[Array, "B U K D"],
    where: Unshared,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Array, "B U H D"]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    size, heads = q.shape[1:3]
    tile = next(tile for tile in (TILE, TILE // 2, LANES) if size % tile == 0)
    mask = splash.CausalMask((size, size))
    if window is not None:
        mask = splash.LocalMask((size, size), (window - 1, 0), 0)
    tiles = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), tile)
    )
    # It multiplies by no scale. Positions without a token are a sequence of their own: each sees itself at least.
    q, k, v = (x.swapaxes(1, 2) for x in ((q * scale).astype(q.dtype), k, v))

    def run(interpret: bool, q: Array, k: Array, v: Array, sequence: Array) -> Array:
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * heads),
            block_sizes=tiles,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
        return jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(q, k, v, sequence)

    ways = {"tpu": functools.partial(run, False), "default": functools.partial(run, True)}
    return by_platform(q, k, v, where.sequence, **ways).swapaxes(1, 2)
