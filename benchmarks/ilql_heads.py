"""Compares ILQL's heads with dense ones: `python -m benchmarks.ilql_heads [--vocabularies=50257] [--tokens=512] [--width=576]`.

Value and gradients of the whole ILQL loss of `tokens` scored tokens, with respect to hidden states and heads: one value head
and two Q heads of twice the width over the vocabulary. Their target copy gets no gradient, as in training. The dense form
computes all Q values of all tokens, of the heads and of the copy, and keeps them. Also timed are the products that a dense
form of the two Q heads cannot do without, alone: Q values, and both gradients from them. All are compiled, then take turns;
memory is what the compiler reports beyond arguments and results.

Cost model, n tokens, H heads of W units, vocabulary V. The walk does 8 n H V W operations (Q values twice, two gradients)
beside 6 of the products alone, so it takes 1.33 times their time if all else were free, and reads the table twice and writes
its gradient once: 3 H V W numbers. It holds a tile of n × chunk Q values in place of H n V.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smallr.losses.ilql import TokenValues, ilql_terms
from smallr.models.config import DecoderConfig
from smallr.models.heads import TARGET_Q, HeadOptions, Heads, Q
from smallr.training.objectives.ilql import token_values

OPTIONS = HeadOptions(values=1, q=2, target=True)
Values = Callable[[Heads, jax.Array, jax.Array], TokenValues]


def walked(heads: Heads, states: jax.Array, target: jax.Array) -> TokenValues:
    """Returns the values as training computes them."""
    return token_values(heads, states, target, 0)


def dense(heads: Heads, states: jax.Array, target: jax.Array) -> TokenValues:
    """Returns the values from all Q values of heads and copy, [2, 1, n, V] each, that exist at once."""
    q, copy = heads.q.all_values(states), heads.target_q.all_values(states)
    pick = jnp.broadcast_to(target, q.shape[:3])[..., None]
    chosen, of_copy = (jnp.take_along_axis(x, pick, axis=3)[..., 0] for x in (q, copy))
    return TokenValues(chosen, jax.nn.logsumexp(q, axis=3), jax.lax.stop_gradient(of_copy), heads.value(states)[0])


def loss_of(values: Values, graphdef: nnx.GraphDef) -> Callable:
    """Returns the program of the mean loss and its gradients, of all but the target copy."""

    def loss(online, states, copy, target, reward):
        found = values(nnx.merge(graphdef, online, copy), states, target)
        terms = ilql_terms(found, reward, jnp.zeros_like(target), target >= 0, gamma=0.999, tau=0.9)
        return jnp.mean(terms.q + terms.value + 0.01 * terms.conservative)

    return jax.value_and_grad(loss, argnums=(0, 1))


def products(table: jax.Array, units: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes Q values [2, n, V], and from as many slopes the gradients of units and table."""
    rows = table.astype(units.dtype)
    q = jnp.einsum("hnw,hvw->hnv", units, rows, preferred_element_type=jnp.float32)
    slope = q.astype(units.dtype)
    of_units = jnp.einsum("hnv,hvw->hnw", slope, rows, preferred_element_type=jnp.float32)
    return of_units, jnp.einsum("hnv,hnw->hvw", slope, units, preferred_element_type=jnp.float32)


def in_turns(programs: dict[str, tuple[Callable, Sequence]], repeats: int, clock: Callable) -> dict[str, float]:
    """Returns the median seconds of each program; one turn more comes first and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, (program, args) in programs.items():
            start = clock()
            jax.block_until_ready(program(*args))
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def measure(dtype: str, vocabulary: int, tokens: int, width: int, repeats: int, clock: Callable) -> str:
    """Returns a line of the table."""
    config = DecoderConfig.from_hf(_config(vocabulary, width), dtype=dtype)
    graphdef, copy, online = nnx.split(Heads(OPTIONS, config, nnx.Rngs(0)), nnx.PathContains(TARGET_Q), ...)
    rng = np.random.default_rng(0)
    shape = online[Q]["table"].shape  # a fresh table is zeros
    numbers = 0.02 * rng.standard_normal(shape, np.float32)
    for heads in (online[Q], copy[TARGET_Q]):
        heads["table"] = heads["table"].replace(jnp.array(numbers))
    states = jnp.asarray(rng.normal(size=(1, tokens, width)), dtype)
    target = jnp.asarray(rng.integers(0, vocabulary, (1, tokens)), jnp.int32)
    args = online, states, copy, target, jnp.asarray(rng.normal(size=(1, tokens)), jnp.float32)
    own = online[Q]["table"].get_value(), jnp.asarray(rng.normal(size=(2, tokens, 2 * width)), dtype)
    compiled = {
        "walked": jax.jit(loss_of(walked, graphdef)).lower(*args).compile(),
        "dense": jax.jit(loss_of(dense, graphdef)).lower(*args).compile(),
        "products": jax.jit(products).lower(*own).compile(),
    }
    turns = {name: (each, own if name == "products" else args) for name, each in compiled.items()}
    seconds = in_turns(turns, repeats, clock)
    ours, theirs, bound = seconds.values()
    memory = [compiled[name].memory_analysis().temp_size_in_bytes / 2**20 for name in ("walked", "dense")]
    flops = 8 * tokens * 2 * vocabulary * 2 * width
    moved = 3 * 2 * vocabulary * 2 * width * 4
    return (
        f"| {vocabulary} | {dtype} | {ours:.2f} | {theirs:.2f} | {bound:.2f} | {ours / bound:.2f} | {ours / theirs:.2f} "
        f"| {flops / ours / 1e9:.0f} | {0.75 * flops / bound / 1e9:.0f} | {moved / ours / 1e9:.1f} "
        f"| {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.1%} |"
    )


def _config(vocabulary: int, width: int) -> dict:
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    return heads | {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": width,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "max_position_embeddings": 64,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", default="50257")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--cpu_seconds", action="store_true", help="of all threads, where other programs share the cores"
    )
    args = parser.parse_args()
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    print(f"{args.tokens} tokens, width {args.width}, {jax.devices()[0].device_kind}\n")
    print(
        "| V | dtype | smallr s | dense s | products s | / products | / dense | GFLOP/s | products GFLOP/s | tables GB/s "
        "| MiB | dense MiB | share |"
    )
    print("|---" * 13 + "|")
    for vocabulary in map(int, args.vocabularies.split(",")):
        for dtype in args.dtypes.split(","):
            print(measure(dtype, vocabulary, args.tokens, args.width, args.repeats, clock), flush=True)


if __name__ == "__main__":
    main()
