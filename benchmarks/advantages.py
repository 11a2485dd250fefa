"""Measures decoding with advantages beside plain sampling: `python -m benchmarks.advantages [--model=gpt2] [--slots=32]`.

SmolLM2-135M, or a model of GPT-2's sizes with random weights, writes `new` tokens behind short prompts, greedy, in four ways
that take turns: plain; with Q heads of which `rows` rows are distinct, as after training on completions that have so many
different tokens; with Q heads all of whose rows are distinct; and with the former heads over a decoder of their own, as after
training the trunk too. Prompts are read, and the first eight tokens drawn, before the clock starts. Cost model:
smallr/sampling/advantages.py; printed are the bytes that a step reads and the rate that they alone would allow, relative to
plain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.loading import load_decoder, open_model
from smallr.sampling.advantages import AdvantageHeads, add_advantages, pack_heads
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, SamplingParams

SMOLLM2 = "smollm2-135m-instruct"
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
STEPS = 8  # tokens of a slot in one program
PROMPT = 16  # tokens


def make_decoder(name: str, mesh: Mesh, dtype: str) -> Decoder:
    """Returns SmolLM2, or random weights in GPT-2's sizes."""
    if name == "gpt2":
        return Decoder(DecoderConfig.from_hf(GPT2, dtype=dtype), rngs=nnx.Rngs(0))
    return load_decoder(open_model(name), mesh, dtype=dtype)


def make_heads(config: DecoderConfig, distinct: int, mesh: Mesh) -> AdvantageHeads:
    """Returns two random heads of twice the width; tokens beyond the first `distinct` share a row."""
    rng, width = np.random.default_rng(0), 2 * config.d_model
    up, bias = rng.normal(size=(config.d_model, 2, width)), np.zeros((2, width))
    table = np.zeros((2, config.vocab_size, width), np.float32)
    table[:, :distinct] = rng.standard_normal((2, distinct, width), np.float32) * 1e-3
    return pack_heads(up.astype(np.float32), bias, table, beta=1.0, dtype=config.dtype, mesh=mesh)


class Way:
    """Decodes by one engine, and keeps the seconds of its decoding steps."""

    def __init__(self, engine: Engine, clock: Callable[[], float]):
        self.engine, self.clock, self.seconds = engine, clock, []

    def __call__(self, slots: int, new: int) -> None:
        """Writes `new` tokens in every slot; the step that reads the prompts is not timed."""
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        rng = np.random.default_rng(0)
        prompts = rng.integers(100, 20000, (slots, PROMPT)).tolist()
        handles = [self.engine.submit(Request(prompt=tuple(prompt), params=params)) for prompt in prompts]
        self.engine.step()
        while not all(handle.result for handle in handles):
            start = self.clock()
            self.engine.step()
            self.seconds.append((self.clock() - start) / STEPS)


def measure(ways: Mapping[str, Way], slots: int, new: int, repeats: int) -> None:
    """Prints the table."""
    for turn in range(repeats + 1):
        for way in ways.values():
            way.engine.forget()
            way(slots, new)
            if not turn:
                way.seconds.clear()  # compiled now
    plain = ways["plain"]
    base, read = statistics.median(plain.seconds), plain.engine.bytes_of_a_step
    print("| | MB a step | plain / this | ms a step | tokens/s | of plain |\n" + "|---" * 6 + "|")
    for name, way in ways.items():
        seconds, own = statistics.median(way.seconds), way.engine.bytes_of_a_step
        print(
            f"| {name} | {own / 1e6:.0f} | {read / own:.2f} | {1e3 * seconds:.1f} | {slots / seconds:.0f} "
            f"| {base / seconds:.2f} |"
        )


def main() -> None:
    """Measures one model in one dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="or gpt2: random weights in its sizes")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--new", type=int, default=40, help="tokens of each completion, a multiple of 8")
    parser.add_argument("--rows", type=int, default=10000, help="distinct rows of a trained table")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ways", default="plain,distinct,whole,trained")
    parser.add_argument(
        "--cpu_seconds", action="store_true", help="of all threads, where other programs share the cores"
    )
    args = parser.parse_args()
    if args.new % STEPS or args.new < 2 * STEPS:
        parser.error(
            f"--new={args.new} must be a multiple of {STEPS}, at least {2 * STEPS}: the first {STEPS} are not timed"
        )
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    mesh = make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        decoder = make_decoder(args.model, mesh, args.dtype)
        options: dict[str, dict] = {"plain": {}}
        for name, rows in (("distinct", args.rows), ("whole", decoder.config.vocab_size)):
            if name in args.ways or name == "distinct":
                options[name] = {"hook": add_advantages, "hook_shared": make_heads(decoder.config, rows, mesh)}
        options["trained"] = options["distinct"] | {"critic": decoder}
        tokenizer = open_model(SMOLLM2).tokenizer()
        common = {"decode_slots": args.slots, "steps": STEPS, "max_length": PROMPT + args.new + STEPS}
        ways = {
            name: Way(Engine(decoder, tokenizer, mesh, **common, **options[name]), clock)
            for name in args.ways.split(",")
        }
        print(
            f"{args.model}, {args.dtype}, {args.slots} slots, {args.rows} distinct rows, {jax.devices()[0].device_kind}\n"
        )
        measure(ways, args.slots, args.new, args.repeats)


if __name__ == "__main__":
    main()
