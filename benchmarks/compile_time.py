"""Measures the seconds to compile the training step: `python -m benchmarks.compile_time [--layers=2,32]`.

SmolLM2-135M's sizes with other numbers of layers, each compiled in a process of its own, first without a cache, then
again with what the first left in it. Layers are scanned, so depth should cost little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time


def child(layers: int, cache: str) -> None:
    """Lowers and compiles; prints the seconds of both."""
    import dataclasses

    import jax

    from benchmarks.abstract_step import SHAPES, Pairs, abstract_step
    from smallr.config import finish, preference
    from smallr.core.sharding import make_mesh

    jax.config.update("jax_compilation_cache_dir", cache)
    model = dataclasses.replace(
        SHAPES["llama-3.2-3b"],
        vocab_size=49152,
        num_layers=layers,
        d_model=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        dtype="bfloat16",
        remat="dots",
    )
    mesh = make_mesh(1, 1, 1)
    step = abstract_step(
        model, finish(preference(), None), mesh, Pairs(rows=4, row_length=512, prompt=64, completion=64)
    )
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = step.step.lower(*step.arguments)
        middle = time.perf_counter()
        lowered.compile()
        print(json.dumps({"lower": middle - start, "compile": time.perf_counter() - middle}))


def run(layers: int, cache: str) -> dict[str, float]:
    """Returns the seconds of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.compile_time", f"--child={layers}", f"--cache={cache}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="2,32")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.cache)
        return
    print("| layers | trace s | compile s | both | again: compile s | share of the first |\n|---|---|---|---|---|---|")
    for layers in map(int, args.layers.split(",")):
        with tempfile.TemporaryDirectory() as cache:
            first, second = run(layers, cache), run(layers, cache)
        total = first["lower"] + first["compile"]
        share = second["compile"] / first["compile"]
        print(
            f"| {layers} | {first['lower']:.1f} | {first['compile']:.1f} | {total:.1f} | {second['compile']:.2f} | {share:.0%} |"
        )


if __name__ == "__main__":
    main()
