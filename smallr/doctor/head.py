"""Compares the chunked log-prob head with a dense one: numbers, seconds and memory."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from smallr.core.timing import best_seconds
from smallr.doctor.findings import Findings
from smallr.losses import token_logps

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of log-probs and gradients, relative to their norm
MIB = 2**20


def dense_logps(hidden: jax.Array, head: jax.Array, target: jax.Array) -> jax.Array:
    """Returns log-probs from logits [1, n, V] that exist at once."""
    precise = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
    weights = head.astype(hidden.dtype)
    logits = jnp.einsum("bnd,vd->bnv", hidden, weights, precision=precise, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]


def measure_head(findings: Findings, dtype: str, tokens: int, width: int, vocabulary: int) -> None:
    """Adds value and gradients of the head beside a dense one's."""
    keys = jax.random.split(jax.random.key(0), 3)
    args = (
        jax.random.normal(keys[0], (1, tokens, width)).astype(dtype),
        jax.random.normal(keys[1], (vocabulary, width)) * 0.05,
        jax.random.randint(keys[2], (1, tokens), 0, vocabulary),
    )
    programs = {name: _compiled(head, *args) for name, head in (("chunked", token_logps), ("dense", dense_logps))}
    error = max(_distance(*pair) for pair in zip(programs["chunked"](*args), programs["dense"](*args), strict=True))
    seconds = {name: best_seconds(program, *args) for name, program in programs.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    findings.add(
        "head",
        f"{tokens:,} tokens x {vocabulary:,} words, {dtype}",
        f"{1e3 * seconds['chunked']:.1f} ms and {memory['chunked'] / MIB:,.0f} MiB, dense {1e3 * seconds['dense']:.1f} ms and "
        f"{memory['dense'] / MIB:,.0f} MiB; {error:.1e} from the dense one",
        wrong=not error <= TOLERANCE[dtype],
        seconds=seconds,
        bytes=memory,
        error=error,
    )


def _compiled(head: Callable, *args: jax.Array) -> jax.stages.Compiled:
    def run(hidden: jax.Array, weights: jax.Array, target: jax.Array) -> tuple[jax.Array, ...]:
        logps, pull = jax.vjp(lambda h, w: head(h, w, target), hidden, weights)
        return logps, *pull(jnp.ones_like(logps))

    return jax.jit(run).lower(*args).compile()


def _distance(a: jax.Array, b: jax.Array) -> float:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
