"""Adapters and a quantised base in the engine: the tokens that full forward passes give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.core.sharding import make_mesh
from smallr.models.lora import LoRA, adapters, attach, quantize_projections
from smallr.sampling.engine import Engine
from tests.models.families.checks import logits_of
from tests.models.helpers import from_torch
from tests.sampling.models import decoder, letters, model
from tests.sampling.test_engine import PROMPT, ask, tokens

pytestmark = pytest.mark.parity

LENGTH = 12


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_greedy_tokens_with_adapters(base):
    if base != "float32":
        pytest.importorskip("qwix", reason="needs the extra quant")
    mesh, plain = make_mesh(1, 1, 1), decoder("llama")
    adapted = from_torch(model("llama"), remat="none")  # not the one that other tests use: its weights are replaced
    attach(adapted, LoRA(rank=3, alpha=6.0, target="attention"), 0, mesh)
    for number, adapter in enumerate(adapters(adapted)):
        shape = adapter.b.get_value().shape
        adapter.b.set_value(0.3 * jax.random.normal(jax.random.key(number), shape))
    quantize_projections(adapted, base, mesh)
    engine = Engine(adapted, letters(), mesh, decode_slots=2, prefill_chunk=16, steps=4)
    (result,) = engine.generate([ask(max_tokens=LENGTH)], progress=False)
    (written,) = tokens(result)
    logits = np.asarray(logits_of(adapted, jnp.asarray([[*PROMPT, *written]])))[0, len(PROMPT) - 1 : -1]
    assert logits.argmax(-1).tolist() == written
    without = np.asarray(logits_of(plain, jnp.asarray([[*PROMPT, *written]])))[0, len(PROMPT) - 1 : -1]
    assert np.abs(without - logits).max() > 0.1
