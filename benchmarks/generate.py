"""Measures tokens/s beside transformers: `python -m benchmarks.generate --prompts=GSM8K_TEST.jsonl[.gz] [--repeats=2]`.

SmolLM2-135M in float32 or bfloat16, the same prompts, greedy, every completion of the same length. Both write in turns in
one process (A B A B), after all programs have been compiled. transformers runs as one batch with left padding, which is its fastest
way here unless `--continuous` says that its `generate_batch` is to be tried too. Times include the reading of the prompts,
of which smallr remembers nothing from one round to the next.

For smallr the share of the memory's bandwidth is printed too: the bytes of weights and cache that the decoding steps read,
by the seconds they took, over what summing a large array reaches on the same device. `--no_transformers` measures that alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from smallr.core.sharding import make_mesh
from smallr.doctor.torch_step import matmul_peak
from smallr.models.loading import ModelSource, load_decoder, open_model
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, SamplingParams
from smallr.training.flops import peak_flops

Tokens = list[list[int]]
STEPS = 8  # tokens of a slot in one program


def read_prompts(path: Path, count: int, tokenizer: Any) -> Tokens:
    """Returns the first questions of a file, in the chat template."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    chats = [[{"role": "user", "content": json.loads(line)["question"]}] for line in text.splitlines()[:count]]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def torch_model(source: ModelSource, dtype: str) -> transformers.LlamaForCausalLM:
    """Returns transformers' Llama with the same numbers, in a dtype."""
    c = source.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        max_position_embeddings=c.max_positions,
        rms_norm_eps=c.norm_eps,
        rope_theta=c.rope_theta,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    reader = source.make_reader()
    for name, shape in reader.shapes().items():
        stored = np.array(reader.read(name, (slice(None),) * len(shape)))
        model.get_parameter(name).data.copy_(torch.from_numpy(stored))
    return model.to(getattr(torch, dtype)).eval()


def padded(model: transformers.LlamaForCausalLM, prompts: Tokens, new: int) -> Tokens:
    """Generates in one batch of `generate`, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    length = {"max_new_tokens": new, "min_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        return model.generate(ids, attention_mask=mask, do_sample=False, **length)[:, width:].tolist()


def continuous(model: transformers.LlamaForCausalLM, prompts: Tokens, new: int) -> Tokens:
    """Generates by transformers' own continuous batching."""
    config = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(prompts, generation_config=config, progress_bar=False)
    return [list(outputs[name].generated_tokens) for name in sorted(outputs, key=lambda name: int(name.split("_")[-1]))]


class Ours:
    """Runs smallr's engine, and keeps what its decoding steps took."""

    def __init__(self, source: ModelSource, tokenizer: Any, decode_slots: int, dtype: str):
        mesh = make_mesh(1, 1, -1)
        with jax.set_mesh(mesh):
            self._decoder = load_decoder(source, mesh, dtype=dtype)
            self.engine = Engine(self._decoder, tokenizer, mesh, decode_slots=decode_slots, steps=STEPS)
        self.seconds, self.bytes, self.steps = 0.0, 0, 0

    def compile(self, prompts: Tokens, new: int) -> None:
        """Compiles what these prompts need: for each size of a growing cache, and for prompts read into the largest."""
        for count in (new, 2):
            self.forget()
            self(prompts, count)
        self.seconds, self.bytes, self.steps = 0.0, 0, 0

    def forget(self) -> None:
        """Drops the prompts that the cache still holds."""
        self.engine.update(self._decoder)

    def __call__(self, prompts: Tokens, new: int) -> Tokens:
        """Returns all tokens; steps in which nothing was read are timed by themselves."""
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        handles = [self.engine.submit(Request(prompt=tuple(prompt), params=params)) for prompt in prompts]
        self.engine.step()  # reads the prompts, as many as there are slots
        for written in range(STEPS, new, STEPS):
            start = time.perf_counter()
            self.engine.step()
            self.seconds += time.perf_counter() - start
            steps = min(STEPS, new - written)
            self.steps, self.bytes = self.steps + steps, self.bytes + steps * self.engine.bytes_of_a_step
        return [list(handle.result.samples[0].token_ids) for handle in handles]


def bandwidth() -> float:
    """Returns the bytes/s at which summing half a gigabyte reads it, the best of five."""
    numbers = jnp.ones(2**27, jnp.float32)
    total, best = jax.jit(jnp.sum), 0.0
    for _ in range(6):
        start = time.perf_counter()
        total(numbers).block_until_ready()
        best = max(best, numbers.nbytes / (time.perf_counter() - start))
    return best


def agreement(model: transformers.LlamaForCausalLM, prompts: Tokens, mine: Tokens, theirs: Tokens) -> None:
    """Prints how many completions are equal, and for each that is not the gap of the two likeliest tokens there."""
    equal = sum(a == b for a, b in zip(mine, theirs, strict=True))
    print(f"\n{equal} of {len(prompts)} completions equal token for token")
    for number, (prompt, a, b) in enumerate(zip(prompts, mine, theirs, strict=True)):
        place = next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), None)
        if place is None:
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + b[:place]])).logits[0, -1]
        top = torch.topk(logits, 2)
        is_tie = {a[place], b[place]} == set(top.indices.tolist())
        gap = float(top.values[0] - top.values[1])
        print(
            f"  prompt {number}: differs at token {place}; the two likeliest are {gap:.1e} apart, both theirs: {is_tie}"
        )


def main() -> None:
    """Runs all in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with `question`")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="of the Llama family")
    parser.add_argument("--dtype", default="float32", help="of both")
    parser.add_argument("--continuous", action="store_true", help="try transformers' generate_batch too")
    parser.add_argument("--no_transformers", action="store_true", help="smallr alone")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    source = open_model(args.model)
    tokenizer = source.tokenizer()
    prompts = read_prompts(args.prompts, args.count, tokenizer)
    lengths = sorted(map(len, prompts))
    print(f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, {args.new} new tokens each, {args.dtype}")
    ours = Ours(source, tokenizer, args.count, args.dtype)
    ours.compile(prompts, args.new)
    ways: dict[str, Callable[[int], Tokens]] = {"smallr": lambda new: ours(prompts, new)}
    if not args.no_transformers:
        model = torch_model(source, args.dtype)
        padded(model, prompts, 2)
        ways["transformers"] = lambda new: padded(model, prompts, new)
        if args.continuous:
            ways["transformers, continuous"] = lambda new: continuous(model, prompts, new)
    outputs: dict[str, Tokens] = {}
    for repeat in range(args.repeats):
        rates = {}
        ours.forget()
        for name, way in ways.items():
            start = time.perf_counter()
            outputs[name] = way(args.new)
            rates[name] = len(prompts) * args.new / (time.perf_counter() - start)
        line = ", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in rates.items())
        best = max((rate for name, rate in rates.items() if name != "smallr"), default=None)
        print(f"repetition {repeat}: {line}" + (f"; ratio {rates['smallr'] / best:.2f}" if best else ""), flush=True)
    reached, possible = ours.bytes / ours.seconds, bandwidth()
    print(
        f"decoding: {1e3 * ours.seconds / ours.steps:.1f} ms a step, {ours.bytes / ours.steps / 1e6:.0f} MB of weights and "
        f"cache a step, {reached / 1e9:.1f} of {possible / 1e9:.1f} GB/s, a share of {reached / possible:.0%}"
    )
    if not args.no_transformers:
        ours_peak, theirs_peak = peak_flops(args.dtype) / 1e9, matmul_peak(args.dtype) / 1e9
        print(f"matmul peaks in {args.dtype}: smallr {ours_peak:.0f}, transformers {theirs_peak:.0f} GFLOP/s")
        agreement(model, prompts, outputs["smallr"], outputs["transformers"])


if __name__ == "__main__":
    main()
