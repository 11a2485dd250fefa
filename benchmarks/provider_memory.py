"""Measures the memory of COLLATE's providers while they write: `python -m benchmarks.provider_memory [--model=NAME] [--rank=16]`.

Three ways, a process each: one provider with adapters, three of them beside one base, and three whole models at once. Told
are the bytes of all live arrays of JAX, of the adapters that wait in the host's memory, and what the process holds (RSS).
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.lora import MIB, resident, tell

WAYS = {"adapters, S = 1": 1, "adapters, S = 3": 3, "whole models, S = 3": 3}
PROMPTS = ["How many legs have three cats?", "What is 17 + 25?"]


def make_providers(folder: Path, model: str, rank: int) -> list[Path]:
    """Trains three runs with adapters beside a model, one step each; their sizes are those of longer runs."""
    from smallr.methods.collate.config import base, training_config
    from smallr.training.trainer import Trainer

    fields = base()
    fields.lora.rank = rank
    config = training_config(fields, "provider")
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 4
    with config.unlocked():
        config.model, config.batch.rows, config.batch.row_length = model, 1, 64
        config.epochs, config.steps = 0, 1
    runs = [folder / f"provider{number}" for number in range(3)]
    for run in runs:
        with Trainer(config, run) as trainer:
            trainer.load_data(rows)
            trainer.fit()
    return runs


def child(way: str, model: str, rank: int, runs: list[Path]) -> None:
    """Has the providers of a way write, and tells what is held then."""
    import jax

    from smallr.methods.collate.writer import Writer
    from smallr.models.lora import LoRA

    whole = way.startswith("whole")
    writers = [Writer(dtype="bfloat16", decode_slots=2, lora=None if whole else LoRA(rank, 32.0))]
    if whole:
        writers += [Writer(dtype="bfloat16", decode_slots=2) for _ in range(2)]
    options = {"seed": 0, "round": 0, "sampling": {"max_tokens": 4}}
    with tempfile.TemporaryDirectory() as name:
        for number, run in enumerate(runs[: WAYS[way]]):
            (Path(name) / str(number)).mkdir()
            writer, start = (writers[number], Path(model)) if whole else (writers[0], run)
            writer.complete(Path(name) / str(number), start, PROMPTS, options)
    gc.collect()
    kept = [] if whole else [size for key, size in writers[0].num_bytes.items() if key != "base"]
    live = sum(array.nbytes for array in jax.live_arrays())
    tell({"live": live / MIB, "kept": sum(kept) / MIB, "rss": resident()})


def main() -> None:
    """Measures all ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--runs", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        child(options.way, options.model, options.rank, [Path(run) for run in options.runs.split(",")])
        return
    with tempfile.TemporaryDirectory() as name:
        runs = ",".join(map(str, make_providers(Path(name), options.model, options.rank)))
        print("| providers | live arrays, MiB | adapters on the host, MiB | RSS, MiB |\n| --- | --- | --- | --- |")
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.provider_memory", f"--model={options.model}"]
            command += [f"--rank={options.rank}", f"--way={way}", f"--runs={runs}"]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            found = json.loads(told)
            print(f"| {way} | {found['live']:.0f} | {found['kept']:.0f} | {found['rss']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
