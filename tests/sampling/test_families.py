"""Every family through the cache: the tokens of transformers, and the logits of a full forward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.core.sharding import make_mesh
from smallr.models.cached_attention import TILE
from smallr.sampling.forward import Forward, empty_cache
from smallr.sampling.requests import Request, SamplingParams
from smallr.sampling.weights import Packer
from tests.models.families.checks import logits_of
from tests.sampling.models import FAMILIES, decoder, engine, greedy

pytestmark = pytest.mark.parity

PROMPTS = [np.random.default_rng(n).integers(1, 101, length).tolist() for n, length in enumerate((1, 7, 40))]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family):
    requests = [
        Request(prompt=tuple(prompt), params=SamplingParams(max_tokens=30, ignore_eos=True)) for prompt in PROMPTS
    ]
    for prompt, result in zip(PROMPTS, engine(family).generate(requests, progress=False), strict=True):
        assert result.error is None
        assert list(result.samples[0].token_ids) == greedy(family, prompt, 30)
        assert result.samples[0].finish_reason == "length"


@pytest.mark.parametrize("family", ["gemma3 two bases", "gpt2 positions", "qwen2 biases"])
def test_logits_through_the_cache_are_those_of_a_full_forward_pass(family):
    """Read in pieces of 8, 1 and 5 tokens into the second of three slots, with windows long passed."""
    model = decoder(family)
    tokens = np.random.default_rng(0).integers(1, 101, (1, 40))
    packer = Packer(model, make_mesh(1, 1, 1))
    forward, weights = Forward(model.config, packer.block, packer.trunk), packer(model)
    cache, extend, head = (
        empty_cache((model.config,), 3, TILE, make_mesh(1, 1, 1)),
        jax.jit(forward.extend),
        jax.jit(forward.logits),
    )
    logits, start = [], 0
    for length in (8, 8, 1, 1, 5, 8, 1, 8):
        index = jnp.arange(start, start + length)[None]
        piece = jnp.asarray(tokens[:, start : start + length])
        states, cache = extend(weights, cache, piece, index, index, jnp.asarray([[39]]), jnp.asarray([1]))
        logits.append(head(weights.head, states[0]))
        start += length
    want = np.asarray(logits_of(model, tokens))[0]
    assert np.abs(np.concatenate(logits) - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(want).max() > 1


def test_cache_of_a_bfloat16_decoder_is_bfloat16_and_its_logits_are_near():
    from tests.models.helpers import from_torch
    from tests.sampling.models import model

    rounded = from_torch(model("llama"), remat="none", dtype="bfloat16")
    packer = Packer(rounded, make_mesh(1, 1, 1))
    forward, weights = Forward(rounded.config, packer.block, packer.trunk), packer(rounded)
    leaves = jax.tree_util.tree_leaves_with_path((weights.layers, weights.head))
    assert {leaf.dtype.name for path, leaf in leaves if "norm" not in str(path)} == {"bfloat16"}
    cache = empty_cache((rounded.config,), 1, TILE, make_mesh(1, 1, 1))
    assert cache[0].keys.dtype == jnp.bfloat16
    tokens = np.random.default_rng(0).integers(1, 101, (1, 24))
    index = jnp.arange(24)[None]
    states, _ = jax.jit(forward.extend)(weights, cache, jnp.asarray(tokens), index, index, index[:, -1:], None)
    exact, ours = np.asarray(logits_of(decoder("llama"), tokens))[0], forward.logits(weights.head, states[0])
    full = np.asarray(logits_of(rounded, tokens))[0]
    off, full_off = (np.sqrt(np.mean((np.asarray(x) - exact) ** 2)) for x in (ours, full))
    assert 0 < off <= 1.2 * full_off
