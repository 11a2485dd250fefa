"""Measures how fast the engine writes, and whether a completion depends on what is written beside it."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.sharding import Mesh

from smallr.doctor.findings import Findings
from smallr.models.config import DecoderConfig
from smallr.models.loading import ModelSource, load_decoder
from smallr.models.scratch import train_tokenizer
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, SamplingParams

PROMPT = 48  # tokens


def measure_sampling(findings: Findings, name: str, model: DecoderConfig, mesh: Mesh, slots: int, new: int) -> None:
    """Adds greedy tokens/s of `slots` completions at once, of random weights."""
    if jax.process_count() > 1:
        findings.add("sampling", name, "left out: the engine runs in one process")
        return
    tokenizer = train_tokenizer(["sampling is measured with random weights"], 300)
    with jax.set_mesh(mesh):
        decoder = load_decoder(ModelSource("random weights", model, lambda: tokenizer, None, {}), mesh)
        engine = Engine(decoder, tokenizer, mesh, decode_slots=slots, max_length=PROMPT + new)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 250, (slots, PROMPT)).tolist()
    params = SamplingParams(max_tokens=new, ignore_eos=True, temperature=0.0)
    requests = [Request(prompt=tuple(prompt), params=params) for prompt in prompts]
    engine.generate(requests, progress=False)  # compiles
    engine.update(decoder)  # forgets the prompts
    start = time.perf_counter()
    results = engine.generate(requests, progress=False)
    rate = slots * new / (time.perf_counter() - start)
    count = sum(len(result.samples[0].token_ids) for result in results)
    findings.add(
        "sampling",
        f"{name}, {slots} at once, {model.dtype}",
        f"{rate:,.0f} tokens/s, {new} new tokens each behind {PROMPT}, prompts included",
        wrong=count != slots * new,
        tokens_per_second=rate,
    )
