"""Measures what share of the machine's matmul peak a DPO step of smallr reaches on a CPU, and where its time goes.

    python -m benchmarks.step_share --data=gsm8k_pairs                          # GSM8K pairs of experiments.gsm8k_pairs
    python -m benchmarks.step_share --data=gsm8k_pairs --remat=dots,none        # in turns, in one process
    python -m benchmarks.step_share --data=gsm8k_pairs --profile                # one more step, by kinds of work

The peak of a shared machine drifts within minutes, so it is measured before and after each step: products of 1,024 x
1,024. The share is given twice. By seconds it is what a user gets; where other programs take cores away both sides of it
waver. By CPU seconds it hardly does, but it does not see a core that waits.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers.ours import computed_flops, config_of
from benchmarks.preference_step import prepare_pairs
from benchmarks.step_profile import print_profile
from smallr.core.cache import cache_dir
from smallr.training.trainer import Trainer

SIZE = 1024  # of the products that the peak is measured with
PEAK_SECONDS = 0.25


@dataclasses.dataclass(frozen=True)
class Rate:
    """Holds FLOP/s by the clock and by CPU seconds, both of all cores."""

    wall: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Taken:
    """Holds what one step took.

    Attributes:
      seconds, cpu: by the clock, and of all cores together.
      flops: that it computed.
      peak: of products before and after it.
      loss: of its pairs.
    """

    seconds: float
    cpu: float
    flops: float
    peak: Rate
    loss: float

    def shares(self, cores: int) -> tuple[float, float]:
        """Returns the share of the peak by seconds and by CPU seconds."""
        return self.flops / self.seconds / self.peak.wall, self.flops * cores / self.cpu / self.peak.cpu


def measure_peak(dtype: str, cores: int, seconds: float = PEAK_SECONDS) -> Rate:
    """Measures products with float32 sums: the best by the clock, the mean by CPU seconds."""
    a = jnp.full((SIZE, SIZE), 0.5, dtype)
    product(a, a).block_until_ready()
    best, count, start, cpu = float("inf"), 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        product(a, a).block_until_ready()
        best, count = min(best, time.perf_counter() - before), count + 1
    flops = 2.0 * SIZE**3
    return Rate(flops / best, flops * count * cores / (time.process_time() - cpu))


@jax.jit
def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies two matrices with float32 sums."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def take(trainer: Trainer, batch: Any, cores: int) -> Taken:
    """Takes one step, between two measurements of the peak."""
    dtype = trainer.config.compute.dtype
    before = measure_peak(dtype, cores)
    start, cpu = time.perf_counter(), time.process_time()
    metrics, _ = trainer.take(batch)
    jax.block_until_ready(trainer.state)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = measure_peak(dtype, cores)
    peak = Rate((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2)
    return Taken(seconds, cpu, computed_flops(trainer.partition.config, batch, False), peak, float(metrics["loss"]))


def row_of(remat: str, steps: Sequence[Taken], cores: int) -> str:
    """Returns a line of the table: medians over the steps."""
    median = lambda values: statistics.median(list(values))  # noqa: E731
    wall, cpu = zip(*(step.shares(cores) for step in steps), strict=True)
    return (
        f"| {remat} | {median(s.flops for s in steps) / 1e12:.2f} | {median(s.seconds for s in steps):.2f} "
        f"| {median(s.cpu for s in steps):.2f} | {median(s.flops / s.seconds for s in steps) / 1e9:.0f} "
        f"| {median(s.peak.wall for s in steps) / 1e9:.0f} | {median(wall):.0%} ({min(wall):.0%}–{max(wall):.0%}) "
        f"| {median(cpu):.0%} ({min(cpu):.0%}–{max(cpu):.0%}) |"
    )


HEADER = (
    "| remat | TFLOP computed | s/step | CPU s/step | GFLOP/s | peak | share by seconds (range) "
    "| by CPU seconds (range) |\n" + "|---" * 8 + "|"
)


def parse_args() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whatever config.model takes")
    parser.add_argument("--data", default="builtin:arithmetic/preference", help="whatever config.data.train takes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=64, help="how many pairs to take from the start of the data")
    parser.add_argument("--prompt-ratio", type=float, default=0, help="as in benchmarks.preference_step")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="dots", help="of none and dots, one after a comma")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
    parser.add_argument("--profile", action="store_true", help="profile one more step of each")
    return parser.parse_args()


def main() -> None:
    """Takes the steps in turns and prints the table."""
    args = parse_args()
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    cores = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, pairs, _ = prepare_pairs(args, folder)
        job = {"model": str(model), "pairs": str(pairs), "rows": args.rows, "row_length": args.row_length}
        job |= {"steps": args.warmup + args.steps + 1, "learning_rate": 1e-6, "lora": 0, "dtype": args.dtype}
        trainers = {}
        for remat in args.remat.split(","):
            config = config_of({**job, "reference": "cached", "compute": {"remat": remat}})
            trainers[remat] = stack.enter_context(Trainer(config, folder / remat))
            trainers[remat].prepare()
        taken = {remat: [] for remat in trainers}
        some = next(iter(trainers.values()))
        stack.enter_context(jax.set_mesh(some.mesh))
        batches = list(some.training.batches(some.mesh, 0, job["steps"]))
        for n, batch in enumerate(batches[:-1]):
            for remat in list(trainers)[:: 1 if n % 2 else -1]:
                step = take(trainers[remat], batch, cores)
                wall, cpu = step.shares(cores)
                print(f"  step {n + 1}, {remat}: {step.seconds:6.2f} s, {wall:.0%}, {cpu:.0%}", flush=True)
                taken[remat] += [step] if n >= args.warmup else []
        print("\n" + HEADER)
        for remat, steps in taken.items():
            print(row_of(remat, steps, cores))
        for remat, trainer in trainers.items() if args.profile else ():
            print(f"\n{remat}:")
            print_profile(
                trainer.program, args.rows * args.row_length, lambda trainer=trainer: trainer.take(batches[-1])
            )


if __name__ == "__main__":
    main()
