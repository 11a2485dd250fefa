"""Eight simulated devices write what one writes, and one program of all layers what a program of each writes."""

from __future__ import annotations

import json

import jax
import pytest

from smallr.sampling.requests import Grammar
from tests.sampling.models import engine
from tests.sampling.test_engine import OTHERS, ask, logprobs, tokens

pytestmark = pytest.mark.parity

PROGRAM = """
import json, sys
import jax
from flax import nnx
from smallr.sampling.engine import Engine
from smallr.core.sharding import make_mesh, named_sharding
from tests.sampling.models import decoder, letters
from tests.sampling.test_mesh import logprobs, of_prompt, requests, tokens
mesh = make_mesh(2, 2, 2)
graphdef, state = nnx.split(decoder("llama"))
place = lambda x: x.replace(jax.device_put(x.get_value(), named_sharding(mesh, x.get_metadata("axes"), x.shape)))
state = jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
engine = Engine(nnx.merge(graphdef, state), letters(), mesh, decode_slots=4, prefill_chunk=16, steps=5)
keys = engine._slots.cache[0].keys
assert keys.addressable_shards[0].data.size * 8 == keys.size, keys.sharding
results = engine.generate(requests(), progress=False)
print(json.dumps([[tokens(result), logprobs(result) + of_prompt(result)] for result in results]))
"""


def requests():
    greedy = [ask(other, logprobs=0, max_tokens=20) for other in OTHERS[:4]]
    drawn = [ask(OTHERS[4], logprobs=0, temperature=1.0, top_p=0.8, n=2), ask(OTHERS[5], logprobs=0, top_k=5)]
    biased = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": ((5, 2.0),), "echo": True}
    grammar = Grammar("regex", "[abc]{9}")
    return [*greedy, *drawn, ask(OTHERS[6], logprobs=0, **biased), ask(OTHERS[0], logprobs=0, grammar=grammar)]


def of_prompt(result) -> list[float]:
    return [each.logprob for each in result.prompt_logprobs[1:]] if result.prompt_logprobs else []


@pytest.mark.process
def test_eight_devices_as_data_2_fsdp_2_tensor_2_write_what_one_writes(eight_devices):
    eight = json.loads(eight_devices(PROGRAM).stdout.splitlines()[-1])
    one = engine().generate(requests(), progress=False)
    for (ids, values), result in zip(eight, one, strict=True):
        assert ids == tokens(result)
        assert max(abs(a - b) for a, b in zip(values, logprobs(result) + of_prompt(result), strict=True)) < 2e-5


def test_one_program_of_all_layers_writes_what_a_program_of_a_layer_writes(monkeypatch):
    by_layer = engine(steps=6).generate(requests(), progress=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    whole = engine(steps=7)  # engines of the same number of steps share programs
    assert hasattr(whole._programs.decode, "lower")
    for ours, theirs in zip(whole.generate(requests(), progress=False), by_layer, strict=True):
        assert tokens(ours) == tokens(theirs)
        pairs = zip(logprobs(ours) + of_prompt(ours), logprobs(theirs) + of_prompt(theirs), strict=True)
        assert max(abs(a - b) for a, b in pairs) < 2e-5
