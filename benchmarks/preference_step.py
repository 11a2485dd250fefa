"""Compares the preference step with its peers: `python -m benchmarks.preference_step [--peers=trl] [--cases=default,cached]`.

Each worker is a process in an environment of its own (`--python-trl=…`), with the same float32 weights, the same pairs
in every step, AdamW, DPO with beta 0.1, and the same precision. smallr's plan says which pairs a step holds. The two of
a comparison take their steps in turn, so that whatever else the machine does falls on both, and the ratio is taken
step by step. The losses are printed side by side: if one of the first differs by more than 1e-3 (float32; bfloat16: 0.05)
the comparison is void.

Real tokens are those of chosen + rejected, each with its prompt: what a trainer without sharing has to compute.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Nats between losses of the first steps. In bfloat16 the order of additions alone moves a pair's log-ratio by tenths of a
# nat, with either program: there only a mistake in tokens, weights or masks would show.
AGREE = {"float32": 1e-3, "bfloat16": 5e-2}
AGREE_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """Says what is compared: options of both jobs, and those of one job alone."""

    both: dict[str, Any]
    ours: dict[str, Any]
    theirs: dict[str, Any]


CASES = {
    # each as it is if left alone
    "default": Case({}, {"reference": "cached"}, {"reference": "live"}),
    "live": Case({"reference": "live"}, {}, {"checkpointing": False}),
    "cached": Case({"reference": "cached"}, {}, {"checkpointing": False}),
    "lora": Case({"lora": 16}, {"reference": "cached"}, {"reference": "live"}),
    # smallr against itself: one pair a row, the prompt twice
    "padded": Case({"reference": "cached"}, {}, {"packing": False, "share_prompt": False}),
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """Describes a worker, whether it recomputes activations if left alone, and the cases that its worker does not run."""

    module: str
    checkpointing: bool = False
    lacks: tuple[str, ...] = ()


PEERS = {
    "trl": Peer("benchmarks.peers.trl", checkpointing=True),
    "tunix": Peer("benchmarks.peers.tunix", lacks=("cached", "lora")),  # scores the reference live
    "easydel": Peer("benchmarks.peers.easydel", lacks=("lora",)),
    "self": Peer("benchmarks.peers.ours"),
}

HEADER = (
    "| case | peer | dtype | smallr s/step | peer s/step | smallr tokens/s | peer tokens/s | ratio (range) "
    "| smallr GiB | peer GiB | smallr start s | peer start s | loss differs by |\n" + "|---" * 13 + "|"
)


class Worker:
    """Is the parent's end of a worker (`benchmarks.peers.protocol`)."""

    def __init__(self, python: str, module: str, job: dict[str, Any], log: Path):
        self.log = log
        self.process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        self.send(json.dumps(job))
        self.facts = self.answer()["ready"]
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.flops: list[float | None] = []
        self.needed: list[float | None] = []

    def send(self, line: str) -> None:
        """Writes a line for the worker."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Waits for a line of the worker.

        Raises:
          RuntimeError: it ended instead; the end of its log is part of the message.
        """
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def step(self) -> None:
        """Takes one step."""
        self.send("step")
        told = self.answer()
        self.seconds.append(told["seconds"])
        self.losses.append(told["loss"])
        self.flops.append(told.get("flops"))
        self.needed.append(told.get("needed"))

    def end(self) -> float:
        """Ends the worker; its peak memory in GiB."""
        self.send("end")
        peak = self.answer()["peak"]
        self.process.wait()
        return peak


def texts_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Prompt, chosen and rejected as texts, of one of three layouts: so called; a chat of LLaMA-Factory's, whose turns
    are joined; rows of `experiments.adaptive.teacher_rows`, in which the rejected side is the rationale of the row before: it has
    the right length, which is all that matters here.
    """
    if "conversations" in rows[0]:
        return [
            {"prompt": "\n\n".join(turn["value"] for turn in row["conversations"])}
            | {side: row[side]["value"] for side in ("chosen", "rejected")}
            for row in rows
        ]
    if "rationale" in rows[0]:
        told = [f"{row['rationale']} The answer is {row['answer']}." for row in rows]
        return [{"prompt": row["question"], "chosen": told[i], "rejected": told[i - 1]} for i, row in enumerate(rows)]
    return list(rows)


def prepare_pairs(args: argparse.Namespace, folder: Path) -> tuple[Path, Path, np.ndarray]:
    """Returns the model as a Hugging Face folder, the pairs as chat messages, and their lengths [pairs, 3] in tokens.

    Pairs longer than a row are left out, so that no side has to drop or cut one.
    """
    from smallr.data.sources import load_rows
    from smallr.models.loading import open_model

    model = folder / "model"
    command = [sys.executable, "-m", "smallr", "convert", f"--from={args.model}", f"--to={model}", "--dtype=float32"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tokenizer = open_model(str(model)).tokenizer()
    count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    lines, lengths = [], []
    rows = texts_of(list(load_rows(args.data, args.split)))
    prompts = [row["prompt"] for row in rows]
    for i, row in enumerate(rows):
        prompt, sides = row["prompt"], (count(row["chosen"]), count(row["rejected"]))
        extra = 1
        while args.prompt_ratio and count(prompt) < args.prompt_ratio * sum(sides) / 2:
            prompt = prompts[(i + extra) % len(prompts)] + "\n\n" + prompt
            extra += 1
        size = (count(prompt), *sides)
        if sum(size) + 64 > args.row_length:
            continue
        said = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        lines.append(json.dumps({"prompt": [{"role": "user", "content": prompt}], **said}))
        lengths.append(size)
        if len(lines) == args.pairs:
            break
    pairs = folder / "pairs.jsonl"
    pairs.write_text("\n".join(lines) + "\n")
    return model, pairs, np.asarray(lengths)


def compare(name: str, peer: str, args: argparse.Namespace, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs one case beside one peer; the row of the table."""
    case = CASES[name]
    job = {"lora": 0, "checkpointing": False, **job, **case.both}
    ours = Worker(sys.executable, "benchmarks.peers.ours", {**job, **case.ours}, folder / "ours.log")
    if ours.facts["dropped"]:
        raise RuntimeError(f"{ours.facts['dropped']} pairs do not fit in a row of {job['row_length']} tokens")
    alone = {"checkpointing": PEERS[peer].checkpointing, "groups": ours.facts["groups"]}
    python = getattr(args, f"python_{peer}", sys.executable)
    theirs = Worker(python, PEERS[peer].module, {**job, **alone, **case.theirs}, folder / f"{peer}.log")
    for n in range(job["steps"]):
        for worker in (ours, theirs) if n % 2 else (theirs, ours):
            worker.step()
        (a, b), (loss_a, loss_b) = (tuple(getattr(w, k)[-1] for w in (ours, theirs)) for k in ("seconds", "losses"))
        print(f"  step {n + 1}: {a:6.2f} s {b:6.2f} s   loss {loss_a:.5f} {loss_b:.5f}", flush=True)
    kept = slice(args.warmup, None)
    ratios = [b / a for a, b in zip(ours.seconds[kept], theirs.seconds[kept], strict=True)]
    difference = max(abs(a - b) for a, b in zip(ours.losses[:AGREE_STEPS], theirs.losses[:AGREE_STEPS], strict=True))
    return {
        "case": name,
        "peer": peer,
        "dtype": job["dtype"],
        "groups": ours.facts["groups"],
        "seconds": (ours.seconds[kept], theirs.seconds[kept]),
        "ratio": ratios,
        "start_up": (ours.facts["start_up"], theirs.facts["start_up"]),
        "whole": tuple(worker.facts["start_up"] + sum(worker.seconds) for worker in (ours, theirs)),
        "laps": ours.facts["laps"],
        "matmul_peak": (ours.facts["matmul_peak"], theirs.facts.get("matmul_peak")),
        "flops": ours.flops[kept],
        "needed": ours.needed[kept],
        "losses": (ours.losses, theirs.losses),
        "difference": difference,
        "peak": (ours.end(), theirs.end()),
    }


def row_of(result: dict[str, Any], tokens: float) -> str:
    """Returns a line of the table."""
    (a, b), (memory_a, memory_b), (start_a, start_b) = result["seconds"], result["peak"], result["start_up"]
    low, high = min(result["ratio"]), max(result["ratio"])
    void = "" if result["difference"] <= AGREE[result["dtype"]] else " VOID"
    return (
        f"| {result['case']} | {result['peer']} | {result['dtype']} | {statistics.median(a):.2f} | {statistics.median(b):.2f} "
        f"| {tokens / statistics.median(a):.0f} | {tokens / statistics.median(b):.0f} "
        f"| **{statistics.median(result['ratio']):.2f}** ({low:.2f}–{high:.2f}) "
        f"| {memory_a:.1f} | {memory_b:.1f} | {start_a:.0f} | {start_b:.0f} | {result['difference']:.0e}{void} |"
    )


def whole_run(result: dict[str, Any]) -> str:
    """Returns a line on all steps, uncounted ones and start-up included."""
    a, b = result["whole"]
    about = f"{result['case']}, {result['peer']}, {result['dtype']}"
    return f"{about}: {len(result['losses'][0])} steps and start-up: {a:.0f} s against {b:.0f} s, {b / a:.2f}"


def share_of_peak(result: dict[str, Any]) -> str:
    """Returns a line on what smallr's steps reach of the matmul peak that its process measured."""
    about = f"{result['case']}, {result['peer']}, {result['dtype']}"
    peak, _ = result["matmul_peak"]
    if peak is None or None in result["flops"]:
        return f"{about}: share of the matmul peak not known"
    flops, seconds = (statistics.median(values) for values in (result["flops"], result["seconds"][0]))
    return (
        f"{about}: {flops / 1e12:.2f} TFLOP computed a step, {flops / seconds / 1e9:.0f} GFLOP/s, "
        f"{flops / seconds / peak:.0%} of {peak / 1e9:.0f} GFLOP/s, the matmul peak measured in the run"
    )


def beside_the_peer(result: dict[str, Any]) -> str:
    """Returns a line on both matmul peaks, and on the share of its own that each reaches on the work that the pairs need.

    A library whose products are slow on a machine flatters the other: the ratio of the peaks says by how much.
    """
    about = f"{result['case']}, {result['peer']}, {result['dtype']}"
    if None in (*result["matmul_peak"], *result["needed"]):
        return f"{about}: the peer's matmul peak, or the work, is not known"
    needed = statistics.median(result["needed"])
    shares = [
        f"{name} {peak / 1e9:.0f} GFLOP/s, {needed / statistics.median(seconds) / peak:.0%} of it"
        for name, peak, seconds in zip(("smallr", "peer"), result["matmul_peak"], result["seconds"], strict=True)
    ]
    ratio = result["matmul_peak"][0] / result["matmul_peak"][1]
    return f"{about}: own matmul peaks on {needed / 1e12:.2f} needed TFLOP: {'; '.join(shares)}; peaks {ratio:.2f} : 1"


def parse_args() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whatever config.model takes")
    parser.add_argument("--data", default="builtin:arithmetic/preference", help="whatever config.data.train takes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=64, help="how many pairs to take from the start of the data")
    parser.add_argument(
        "--prompt-ratio", type=float, default=0, help="lengthen prompts to this many times a completion"
    )
    parser.add_argument("--peers", default="trl", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--cases", default="default,cached", help=f"of {', '.join(CASES)}")
    parser.add_argument("--dtypes", default="float32", help="float32,bfloat16")
    parser.add_argument("--rows", type=int, default=4, help="rows of smallr's step")
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2, help="steps that do not count")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    for peer in ("trl", "tunix", "easydel"):
        parser.add_argument(f"--python-{peer}", default=f".venv-{peer}/bin/python", help=f"the interpreter of {peer}")
    parser.add_argument("--out", type=Path, help="a file for all figures, JSON")
    return parser.parse_args()


def main() -> None:
    """Runs the comparisons and prints the table."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = Path(temporary), []
        model, pairs, lengths = prepare_pairs(args, folder)
        spread = ", ".join(
            f"{name} {int(np.median(column))} ({int(np.quantile(column, 0.1))}–{int(np.quantile(column, 0.9))})"
            for name, column in zip(("prompt", "chosen", "rejected"), lengths.T, strict=True)
        )
        print(f"{len(lengths)} pairs of {args.data}; tokens, median (10 %–90 %): {spread}")
        job = {
            "model": str(model),
            "pairs": str(pairs),
            "rows": args.rows,
            "row_length": args.row_length,
            "steps": args.steps,
            "learning_rate": args.learning_rate,
        }
        each = lengths[:, 0] * 2 + lengths[:, 1] + lengths[:, 2]
        for dtype in args.dtypes.split(","):
            for peer in args.peers.split(","):
                for name in args.cases.split(","):
                    if name in PEERS[peer].lacks:
                        print(f"{name}, {peer}: left out, its worker does not run this case", flush=True)
                        continue
                    print(f"{name}, {peer}, {dtype}", flush=True)
                    results.append(compare(name, peer, args, {**job, "dtype": dtype}, folder))
        print("\n" + HEADER)
        for result in results:
            tokens = statistics.mean(int(each[group].sum()) for group in result["groups"][args.warmup :])
            print(row_of(result, tokens))
        lines = [line(result) for line in (whole_run, share_of_peak, beside_the_peer) for result in results]
        print("", *lines, sep="\n")
        if args.out:
            args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
