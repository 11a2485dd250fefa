"""Measures memory and step time of full fine-tuning, LoRA and QLoRA: `python -m benchmarks.lora [--model=NAME] [--steps=5]`.

Each method is a process of its own that trains CogPO on the same batch. They take their steps in turn, so that whatever
else the machine does falls on all of them; times are medians, and the ratios those of medians.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = {
    "full": ("cogpo", None),
    "LoRA": ("cogpo_lora", "float32"),
    "QLoRA int8": ("cogpo_lora", "int8"),
    "QLoRA int4": ("cogpo_lora", "int4"),
    "QLoRA nf4": ("cogpo_lora", "nf4"),
}
MIB = 2**20


def config_of(method: str, model: str, reference: str) -> Any:
    """Returns the configuration of a method."""
    file, base = METHODS[method]
    config = importlib.import_module(f"configs.{file}").get_config()
    config.model, config.objective.reference = model, reference
    config.data.train_split, config.data.eval = "train[:16]", ""
    config.epochs, config.steps = 0, 100
    if base:
        config.lora.base = base
    return config


def resident() -> float:
    """Returns the MiB of this process in memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def tell(content: dict[str, float]) -> None:
    """Writes a line of JSON for the parent."""
    print(json.dumps(content), flush=True)


def child(method: str, model: str, reference: str) -> None:
    """Prepares a run, tells what it holds, then takes a step for each line of stdin; "end" compares log-probs."""
    import jax

    from smallr.training.trainer import Trainer

    def size(tree: Any) -> float:
        return sum(x.nbytes for x in jax.tree.leaves(tree)) / MIB

    config = config_of(method, model, reference)
    with tempfile.TemporaryDirectory() as workdir, Trainer(config, workdir) as trainer, jax.set_mesh(trainer.mesh):
        trainer.prepare()
        batch = next(trainer.training.batches(trainer.mesh, 0, 1))
        memory, frozen = trainer.program.memory_analysis(), trainer.partition.frozen
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        tell(
            {
                "weights": size(trainer.params) + size(frozen),
                "held": size(trainer.state) + size(frozen),
                "compiled": (held - memory.alias_size_in_bytes) / MIB,
                "temporary": memory.temp_size_in_bytes / MIB,
            }
        )
        for line in sys.stdin:
            if line.strip() == "end":
                break
            start = time.perf_counter()
            metrics, _ = trainer.take(batch)
            jax.block_until_ready(metrics)
            tell({"seconds": time.perf_counter() - start, "resident": resident()})
        tell(differences(trainer, batch, model))


def differences(trainer: Any, batch: Any, model: str) -> dict[str, float]:
    """Returns the differences of the log-probs under the frozen base from those under the float32 weights."""
    import jax
    import numpy as np
    from flax import nnx

    from smallr.models.loading import load_decoder, open_model
    from smallr.training.forward import score

    if not trainer.partition.digest:
        return {"token": 0.0, "completion": 0.0}
    compute, mesh = trainer.config.compute, trainer.mesh
    graphdef, weights = nnx.split(
        load_decoder(open_model(model), mesh, dtype=compute.dtype, remat=compute.remat, attention=compute.attention)
    )
    policy, chunk = trainer.partition.policy, compute.logp_chunk
    ours = jax.jit(lambda frozen: score(policy.base_decoder(frozen), batch, chunk).logps)(trainer.partition.frozen)
    theirs = jax.jit(lambda weights: score(nnx.merge(graphdef, weights), batch, chunk).logps)(weights)
    used, completion = np.asarray(batch.role > 0), np.asarray(batch.completion)
    change = np.where(used, np.asarray(ours) - np.asarray(theirs), 0)
    sums = [
        change[row][used[row] & (completion[row] == n)].sum()
        for row in range(len(change))
        for n in np.unique(completion[row][used[row]])
    ]
    return {"token": float(np.abs(change[used]).mean()), "completion": float(np.abs(sums).mean())}


def start(method: str, model: str, reference: str) -> subprocess.Popen:
    """Starts the process of a method."""
    options = (f"--child={method}", f"--model={model}", f"--reference={reference}")
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.lora", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def answer(process: subprocess.Popen, word: str = "") -> dict[str, float]:
    """Sends a line, if any, and waits for one of JSON; what else a run prints is passed over."""
    if word:
        process.stdin.write(word + "\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"{' '.join(process.args)} ended with {process.wait()}; its message is above")


def main() -> None:
    """Runs all methods and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each method, after one untimed")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="they are all in memory at once; ratios are to the first"
    )
    parser.add_argument("--reference", default="cached", help="cached | live")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.model, args.reference)
        return
    methods = args.methods.split(",")
    if unknown := set(methods) - METHODS.keys():
        parser.error(f"--methods: {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    processes, reports = {}, {}
    for method in methods:  # one after the other: each needs both cores to compile
        processes[method] = start(method, args.model, args.reference)
        reports[method] = answer(processes[method])
    steps = {method: [] for method in methods}
    for n in range(args.steps + 1):
        for method, process in processes.items():
            measured = answer(process, "step")
            if n:
                steps[method].append(measured)
    print(f"{args.model}, reference {args.reference}, {args.steps} steps; memory in MiB\n")
    print(
        "| | weights | weights + optimizer | a step, by the compiler | of it temporary | resident | s a step | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    first = statistics.median(step["seconds"] for step in steps[methods[0]])
    for method, report in reports.items():
        seconds = statistics.median(step["seconds"] for step in steps[method])
        report["resident"] = statistics.median(step["resident"] for step in steps[method])
        columns = ("weights", "held", "compiled", "temporary", "resident")
        numbers = " | ".join(f"{report[column]:.0f}" for column in columns)
        print(f"| {method} | {numbers} | {seconds:.2f} | {seconds / first:.2f} |")
    print("\n| base | a token's log-prob differs by, nats | a completion's |\n|---|---|---|")
    for method, process in processes.items():
        changed = answer(process, "end")
        if method != "full":
            print(f"| {METHODS[method][1]} | {changed['token']:.4f} | {changed['completion']:.3f} |")
        process.wait()


if __name__ == "__main__":
    main()
