"""Compares the log-prob head with a dense one: `python -m benchmarks.head [--vocabularies=49152,128256] [--tokens=1504]`.

Value and gradients of the sum of log-probs of `tokens` scored tokens, with respect to hidden states and head. The dense
head keeps all logits, as a plain softmax cross-entropy does. Both are compiled, then take turns; memory is what the
compiler reports beyond arguments and results. Cost model: smallr/losses/logprobs.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from smallr.losses import token_logps


def dense(hidden: jax.Array, head: jax.Array, target: jax.Array) -> jax.Array:
    """Returns log-probs from logits [1, n, V] that exist at once."""
    logits = jnp.einsum("bnd,vd->bnv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]


def products(hidden: jax.Array, head: jax.Array, target: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the three products of a dense head alone: logits, and both gradients from them."""
    rows = head.astype(hidden.dtype)
    logits = jnp.einsum("bnd,vd->bnv", hidden, rows, preferred_element_type=jnp.float32)
    slope = logits.astype(hidden.dtype)
    states = jnp.einsum("bnv,vd->bnd", slope, rows, preferred_element_type=jnp.float32)
    return states, jnp.einsum("bnv,bnd->vd", slope, hidden, preferred_element_type=jnp.float32), target


def compiled(function: Callable, *args: jax.Array) -> jax.stages.Compiled:
    """Returns the program of a value and its gradients, or of `products`."""
    if function is products:
        return jax.jit(products).lower(*args).compile()
    total = jax.value_and_grad(lambda h, w, t: jnp.sum(function(h, w, t)), argnums=(0, 1))
    return jax.jit(total).lower(*args).compile()


def measure(dtype: str, vocabulary: int, tokens: int, width: int, repeats: int) -> str:
    """Returns a line of the table."""
    rng = np.random.default_rng(0)
    args = (
        jnp.asarray(rng.normal(size=(1, tokens, width)), dtype),
        jnp.asarray(rng.normal(size=(vocabulary, width)) * 0.05, jnp.float32),
        jnp.asarray(rng.integers(0, vocabulary, (1, tokens)), jnp.int32),
    )
    programs = {function.__name__: compiled(function, *args) for function in (token_logps, dense, products)}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for n in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            if n:
                seconds[name].append(time.perf_counter() - start)
    ours, theirs, bound = (statistics.median(seconds[name]) for name in ("token_logps", "dense", "products"))
    flops = 8 * tokens * vocabulary * width
    memory = [programs[name].memory_analysis().temp_size_in_bytes / 2**20 for name in ("token_logps", "dense")]
    return (
        f"| {vocabulary} | {dtype} | {ours:.3f} | {theirs:.3f} | {bound:.3f} | {ours / theirs:.2f} | {ours / bound:.2f} "
        f"| {flops / ours / 1e9:.0f} | {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.1%} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", default="49152,128256,151936,256000")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=1504)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{args.tokens} tokens, width {args.width}, {jax.devices()[0].device_kind}\n")
    print(
        "| V | dtype | smallr s | dense s | its products s | / dense | / products | GFLOP/s | MiB | dense MiB | share |"
    )
    print("|---" * 11 + "|")
    for vocabulary in map(int, args.vocabularies.split(",")):
        for dtype in args.dtypes.split(","):
            print(measure(dtype, vocabulary, args.tokens, args.width, args.repeats), flush=True)


if __name__ == "__main__":
    main()
