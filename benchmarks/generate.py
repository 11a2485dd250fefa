"""Tokens/s beside transformers: `python -m benchmarks.generate --prompts=GSM8K_TEST.jsonl[.gz] [--repeats=2]`.

SmolLM2-135M in float32, the same prompts, greedy, every completion of the same length. Both write in turns in one process
(A B A B), after one round that is not timed. transformers runs as one batch with left padding, which is its fastest way
here unless `--continuous` says that its `generate_batch` is to be tried too. Times include the reading of the prompts.
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
import numpy as np
import torch
import transformers

from smallr.models.loading import ModelSource, load_decoder, open_model
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, SamplingParams
from smallr.sharding import make_mesh

Tokens = list[list[int]]


def read_prompts(path: Path, count: int, tokenizer: Any) -> Tokens:
    """The first questions of a file, in the chat template."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    chats = [[{"role": "user", "content": json.loads(line)["question"]}] for line in text.splitlines()[:count]]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def torch_model(source: ModelSource) -> transformers.LlamaForCausalLM:
    """transformers' Llama with the same float32 numbers."""
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
    return model.float().eval()


def padded(model: transformers.LlamaForCausalLM, prompts: Tokens, new: int) -> Tokens:
    """One batch of `generate`, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    length = {"max_new_tokens": new, "min_new_tokens": new, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        return model.generate(ids, attention_mask=mask, do_sample=False, **length)[:, width:].tolist()


def continuous(model: transformers.LlamaForCausalLM, prompts: Tokens, new: int) -> Tokens:
    """transformers' own continuous batching."""
    config = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(prompts, generation_config=config, progress_bar=False)
    return [list(outputs[name].generated_tokens) for name in sorted(outputs, key=lambda name: int(name.split("_")[-1]))]


def engine_of(source: ModelSource, tokenizer: Any, slots: int) -> Engine:
    """smallr's engine."""
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        return Engine(load_decoder(source, mesh), tokenizer, mesh, slots=slots)


def ours(engine: Engine, prompts: Tokens, new: int) -> Tokens:
    """smallr's tokens."""
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    results = engine.generate([Request(prompt=tuple(prompt), params=params) for prompt in prompts], progress=False)
    return [list(result.samples[0].token_ids) for result in results]


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
    parser.add_argument("--warm", type=int, help="tokens of the round that is not timed; default: all")
    parser.add_argument("--continuous", action="store_true", help="try transformers' generate_batch too")
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    source = open_model("smollm2-135m-instruct")
    tokenizer = source.tokenizer()
    prompts = read_prompts(args.prompts, args.count, tokenizer)
    lengths = sorted(map(len, prompts))
    print(f"{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, {args.new} new tokens each, float32")
    model, engine = torch_model(source), engine_of(source, tokenizer, args.count)
    ways: dict[str, Callable[[int], Tokens]] = {
        "transformers": lambda new: padded(model, prompts, new),
        "smallr": lambda new: ours(engine, prompts, new),
    }
    if args.continuous:
        ways["transformers, continuous"] = lambda new: continuous(model, prompts, new)
    ways["transformers"](2)
    ways["smallr"](args.warm or args.new)  # compiles
    outputs: dict[str, Tokens] = {}
    for repeat in range(args.repeats):
        rates = {}
        for name, way in ways.items():
            start = time.perf_counter()
            outputs[name] = way(args.new)
            rates[name] = len(prompts) * args.new / (time.perf_counter() - start)
        best = max(rate for name, rate in rates.items() if name != "smallr")
        print(
            f"repetition {repeat}: " + ", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in rates.items()), end=""
        )
        print(f"; ratio {rates['smallr'] / best:.2f}", flush=True)
    agreement(model, prompts, outputs["smallr"], outputs["transformers"])


if __name__ == "__main__":
    main()
