"""Computes attention behind one function, with the horizon as its whole rule.

Query q sees key k  ⇔  k ≤ q < horizon[k]  (indices into the row), and, with a window,
positions[q] - positions[k] < window. Packing, shared prompts, plain rows and padding are all this rule.

Our implementations are `attention_xla` (plain JAX), `attention_tpu` and `attention_gpu` (Pallas kernels). All walk the tiles
of the square that hold a visible pair. `attention_stock` runs kernels of others, `attention_support` says what each can do,
and `attention_choice` finds the fastest on the device at hand.

Dimension letters: B rows, T tokens, H heads, K kv heads, D head_dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from smallr.core.sharding import by_platform, context_size, is_sharded, split_axes
from smallr.models import attention_context, attention_gpu, attention_xla
from smallr.models.attention_stock import STOCK, stock_attention
from smallr.models.config import ATTENTION
from smallr.models.remat import keep_residual


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
    sequences: int = 0,
) -> Float[Array, "B T H D"]:
    """Computes softmax(scale q kᵀ) v over the visible keys; scores, softmax and sums in float32.

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
      impl: "xla", which runs on every backend; "tpu", "gpu" (NVIDIA's) or "splash" (TPUs'), kernels that other backends only
        interpret (for tests); "cudnn" (with a dense mask) and "cudnn_packed" (with prompts unshared), on NVIDIA's GPUs
        alone; "auto", our kernel on TPUs and else "xla", without a measurement.
      sequences: most completions of a row, for "cudnn_packed" and "splash"; 0: one for every 16 tokens. A row with more
        gives NaN, and so does one with three completions of a prompt.

    Returns:
      The mixed values in q's dtype. A query without any visible key gives zeros, and takes and gives no gradient.

    Raises:
      ValueError: an unknown `impl`, heads that are not a multiple of the kv heads, or rows that cannot be split over the mesh
        axis `context`.
    """
    if impl not in ATTENTION:
        raise ValueError(f"attention: the implementation {impl!r} must be one of: {', '.join(ATTENTION)}")
    if q.shape[1] % (2 * context_size()) and context_size() > 1:
        raise ValueError(
            f"attention: rows of {q.shape[1]} tokens are not 2 stretches for each of {context_size()} devices"
        )
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"attention: {heads} heads are not a multiple of {kv_heads} kv heads")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if impl not in STOCK:
        return _attend(q, k, v, horizon, positions, window, softcap, scale, impl)
    sequences = sequences or default_sequences(q.shape[1])
    kernel = functools.partial(stock_attention, impl=impl, softcap=softcap, scale=scale, sequences=sequences)
    if window is None or isinstance(window, int):  # a number stays one: shard_map would trace it
        return _per_device(functools.partial(kernel, window=window), q, k, v, horizon, positions)
    return _per_device(kernel, q, k, v, horizon, positions, window)


def default_sequences(length: int) -> int:
    """Returns for how many completions of a row of `length` tokens there is room if nothing is said."""
    return max(2, length // 16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attend(q, k, v, horizon, positions, window, softcap, scale, impl):
    return _attend_forward(q, k, v, horizon, positions, window, softcap, scale, impl)[0]


def _attend_forward(q, k, v, horizon, positions, window, softcap, scale, impl):
    ways = attention_xla.forward, _tpu_forward, attention_gpu.forward
    with jax.named_scope("attention"):
        out, lse = _by_platform(impl, ways, softcap, scale, q, k, v, horizon, positions, window)
    out, lse = keep_residual(out, "attention_out"), keep_residual(lse, "attention_lse")
    return out, (q, k, v, horizon, positions, window, out, lse)


def _attend_backward(softcap, scale, impl, residuals, dout):
    q, k, v, horizon, positions, window, out, lse = residuals
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    ways = attention_xla.backward, _tpu_backward, attention_gpu.backward
    with jax.named_scope("attention"):
        gradients = _by_platform(impl, ways, softcap, scale, q, k, v, horizon, positions, window, dout, lse, delta)
    return *gradients, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _tpu_forward(*args, **options):
    from smallr.models import attention_tpu  # only now are Pallas' TPU kernels imported, which few machines need

    return attention_tpu.forward(*args, **options)


def _tpu_backward(*args, **options):
    from smallr.models import attention_tpu

    return attention_tpu.backward(*args, **options)


def _by_platform(impl, ways, softcap, scale, q, k, *args):
    """Runs what `impl` means on the platform that the program is compiled for."""
    xla, tpu, gpu = (functools.partial(way, softcap=softcap, scale=scale) for way in ways)
    tilings = attention_xla.CPU, attention_xla.ACCELERATOR
    if context_size() > 1:  # of rows that are split no kernel knows
        way = {
            attention_xla.forward: attention_context.forward,
            attention_xla.backward: attention_context.backward,
        }[ways[0]]
        cpu, other = (functools.partial(way, softcap=softcap, scale=scale, tiling=tiling) for tiling in tilings)
        return by_platform(q, k, *args, cpu=cpu, default=other)
    cpu, other = (functools.partial(xla, tiling=tiling) for tiling in tilings)
    cpu = functools.partial(attention_xla.row_by_row, cpu)
    if split_axes("kv_heads", k.shape[2]) or not split_axes("heads", q.shape[2]):
        # Tile lists are then of a device's own rows, so the tiles of other rows cost nothing, and nothing is sent.
        cpu, other = functools.partial(_per_device, cpu), functools.partial(_per_device, other)
    tpu, gpu = functools.partial(_per_device, tpu), functools.partial(_per_device, gpu)
    ways = {
        "auto": {"cpu": cpu, "tpu": tpu, "default": other},
        "xla": {"cpu": cpu, "default": other},
        "tpu": {"tpu": tpu, "default": functools.partial(tpu, interpret=True)},
        "gpu": {"cuda": gpu, "default": functools.partial(gpu, interpret=True)},
    }
    return by_platform(q, k, *args, **ways[impl])


def _per_device(kernel, q, k, *args, **options):
    """Runs an implementation on each device's own rows and kv heads. A kernel is opaque to XLA, which would gather what it
    reads; tile lists of all rows would have to be agreed on.

    Kv heads that do not divide stay whole, and so do heads.
    """
    kernel = functools.partial(kernel, **options)
    if not is_sharded():
        return kernel(q, k, *args)
    rows = PartitionSpec(split_axes("batch", q.shape[0]) or None)
    heads = PartitionSpec(*rows, None, split_axes("kv_heads", k.shape[2]) or None)
    specs = (heads, heads, heads, rows, rows, PartitionSpec(), *(heads,) * (len(args) - 4))[: 2 + len(args)]
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(q, k, *args)
