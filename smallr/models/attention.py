"""Computes attention behind one function, with the horizon as its whole rule.

Query q sees key k  ⇔  k ≤ q < horizon[k]  (indices into the row), and, with a window,
positions[q] - positions[k] < window. Packing, shared prompts, plain rows and padding are all this rule.

The implementations are `attention_xla` (plain JAX), `attention_tpu` and `attention_gpu` (Pallas kernels). All walk the tiles of
the square that hold a visible pair.

Dimension letters: B rows, T tokens, H heads, K kv heads, D head_dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from smallr.core.sharding import context_size, is_sharded, split_axes
from smallr.models import attention_context, attention_gpu, attention_tpu, attention_xla
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
      impl: "xla", which runs on every backend; "tpu" or "gpu" (NVIDIA's), kernels that other backends only interpret
        (for tests); "auto", the kernel on TPUs and else "xla".

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
    return _attend(q, k, v, horizon, positions, window, softcap, q.shape[3] ** -0.5 if scale is None else scale, impl)


def describe(impl: str, backend: str) -> str:
    """Says in words what `impl` runs on a backend of JAX ("cpu", "gpu", "tpu")."""
    chosen = ("tpu" if backend == "tpu" else "xla") if impl == "auto" else impl
    note = "" if chosen in ("xla", backend) else f", interpreted on the {backend}: slow, for tests alone"
    return chosen + (" (auto)" if impl == "auto" else "") + note


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attend(q, k, v, horizon, positions, window, softcap, scale, impl):
    return _attend_forward(q, k, v, horizon, positions, window, softcap, scale, impl)[0]


def _attend_forward(q, k, v, horizon, positions, window, softcap, scale, impl):
    ways = attention_xla.forward, attention_tpu.forward, attention_gpu.forward
    out, lse = _by_platform(impl, ways, softcap, scale, q, k, v, horizon, positions, window)
    out, lse = keep_residual(out, "attention_out"), keep_residual(lse, "attention_lse")
    return out, (q, k, v, horizon, positions, window, out, lse)


def _attend_backward(softcap, scale, impl, residuals, dout):
    q, k, v, horizon, positions, window, out, lse = residuals
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    ways = attention_xla.backward, attention_tpu.backward, attention_gpu.backward
    gradients = _by_platform(impl, ways, softcap, scale, q, k, v, horizon, positions, window, dout, lse, delta)
    return *gradients, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _by_platform(impl, ways, softcap, scale, q, k, *args):
    """Runs what `impl` means on the platform that the program is compiled for; see also `describe`."""
    xla, tpu, gpu = (functools.partial(way, softcap=softcap, scale=scale) for way in ways)
    if context_size() > 1:
        of_context = {
            attention_xla.forward: attention_context.forward,
            attention_xla.backward: attention_context.backward,
        }
        xla = functools.partial(of_context[ways[0]], softcap=softcap, scale=scale)
    cpu, other = (functools.partial(xla, tiling=tiling) for tiling in (attention_xla.CPU, attention_xla.ACCELERATOR))
    tpu, gpu = functools.partial(_per_device, tpu), functools.partial(_per_device, gpu)
    if context_size() > 1:  # of rows that are split no kernel knows
        return lax.platform_dependent(q, k, *args, cpu=cpu, default=other)
    ways = {
        "auto": {"cpu": cpu, "tpu": tpu, "default": other},
        "xla": {"cpu": cpu, "default": other},
        "tpu": {"tpu": tpu, "default": functools.partial(tpu, interpret=True)},
        "gpu": {"cuda": gpu, "default": functools.partial(gpu, interpret=True)},
    }
    return lax.platform_dependent(q, k, *args, **ways[impl])


def _per_device(kernel, q, k, *args, **options):
    """Runs a kernel on each device's own rows and kv heads: it is opaque to XLA, which would gather what it reads.

    Kv heads that do not divide stay whole, and so do heads.
    """
    kernel = functools.partial(kernel, **options)
    if not is_sharded():
        return kernel(q, k, *args)
    rows = PartitionSpec(split_axes("batch", q.shape[0]) or None)
    heads = PartitionSpec(*rows, None, split_axes("kv_heads", k.shape[2]) or None)
    specs = (heads, heads, heads, rows, rows, PartitionSpec(), *(heads,) * (len(args) - 4))
    return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(q, k, *args)
