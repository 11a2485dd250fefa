"""The engine: what a request gives does not depend on its company, slots are used again, text ends where it should."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.sampling.engine import Engine
from smallr.sampling.programs import HookInputs
from smallr.sampling.requests import Request, SamplingParams
from tests.models.families.checks import logits_of
from tests.sampling.models import decoder, engine, greedy, letters

RNG = np.random.default_rng(5)
PROMPT = tuple(RNG.integers(1, 101, 21).tolist())
OTHERS = [tuple(RNG.integers(1, 101, length).tolist()) for length in (3, 60, 33, 90, 5, 17, 48)]


def ask(prompt=PROMPT, **params) -> Request:
    return Request(prompt=prompt, params=SamplingParams(**({"max_tokens": 12, "ignore_eos": True} | params)))


@pytest.fixture(scope="module")
def shared() -> Engine:
    return engine()


def tokens(result) -> list[list[int]]:
    assert result.error is None
    return [list(sample.token_ids) for sample in result.samples]


def told(result) -> list[float]:
    return [each.logprob for each in result.samples[0].logprobs]


def test_what_a_request_gives_does_not_depend_on_its_company(shared):
    """Alone; last of many; beside long ones, for which the cache grows; after its prompt's beginning was already there."""
    request = ask(temperature=1.0, top_p=0.9, logprobs=3, seed=11, max_tokens=20)
    (alone,) = shared.generate([request], progress=False)
    before = shared._cache[0].capacity
    company = [ask(other, temperature=0.7, max_tokens=5 + 9 * n) for n, other in enumerate(OTHERS)]
    longer = [ask(other, max_tokens=150) for other in OTHERS[:3]]
    twins = [ask((*PROMPT[:18], 7), max_tokens=30), ask(PROMPT, temperature=1.0, seed=3)]
    capacities = []
    for batch in ([*company, request], [*longer, request], [request, *longer[:1]], [*twins, request, *company]):
        got = shared.generate(batch, progress=False)[batch.index(request)]
        capacities.append(shared._cache[0].capacity)
        assert tokens(got) == tokens(alone)
        # Numbers of tens, of which float32 keeps 1e-6; another slot or size of the cache is another order of additions.
        np.testing.assert_allclose(told(got), told(alone), atol=2e-5)
    assert max(capacities) > before


def test_results_are_in_order_and_slots_are_used_again(shared):
    requests = [ask(other, max_tokens=4 + n) for n, other in enumerate(OTHERS)]
    results = shared.generate(requests, progress=False)
    for n, (other, result) in enumerate(zip(OTHERS, results, strict=True)):
        assert tokens(result) == [greedy("llama", other, 4 + n)]
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(other), 4 + n)
    assert not shared.busy


def test_bytes_of_a_step():
    small = engine(slots=3)
    config = small.config
    cache = config.num_layers * 2 * 3 * config.num_kv_heads * config.head_dim * 128
    square, wide = config.d_model * config.head_dim, config.d_model * config.d_ff
    layer = square * 2 * (config.num_heads + config.num_kv_heads) + 3 * wide + 2 * config.d_model
    assert small.bytes_of_a_step == 4 * (cache + config.num_layers * layer + config.vocab_size * config.d_model)


def test_a_prompt_of_many_samples_is_read_once(shared):
    reads, read = [], shared._programs.read
    shared._programs.read = lambda *args: reads.append(args[-1]) or read(*args)
    try:
        (result,) = shared.generate([ask(OTHERS[2], temperature=1.0, n=4, seed=1)], progress=False)
        (single,) = shared.generate([ask(OTHERS[2], temperature=1.0, n=1, seed=1)], progress=False)
    finally:
        shared._programs.read = read
    assert sum(int(prompts.count.sum()) for prompts in reads[:3]) == len(OTHERS[2]) == 33
    assert sum(int(prompts.count.sum()) for prompts in reads[3:]) == 1  # the rest was still in the cache
    assert tokens(single)[0] == tokens(result)[0]
    assert len({tuple(sample) for sample in tokens(result)}) == 4


def test_seeds(shared):
    first, second, third = shared.generate([ask(temperature=1.0, seed=s) for s in (1, 2, 1)], progress=False)
    assert tokens(first) == tokens(third) != tokens(second)
    default = [shared.generate([ask(temperature=1.0)], progress=False)[0] for _ in range(2)]
    assert default[0] == default[1] != first


def test_log_probs_are_those_of_the_whole_text_at_temperature_1(shared):
    (result,) = shared.generate([ask(temperature=2.5, top_k=40, logprobs=5, seed=4)], progress=False)
    (sample,) = result.samples
    whole = np.asarray([[*PROMPT, *sample.token_ids]])
    want = np.asarray(jax.nn.log_softmax(logits_of(decoder("llama"), whole)))[0, len(PROMPT) - 1 : -1]
    np.testing.assert_allclose(
        [each.logprob for each in sample.logprobs], want[np.arange(12), list(sample.token_ids)], atol=2e-5
    )
    for each, row in zip(sample.logprobs, want, strict=True):
        np.testing.assert_allclose([value for _, value in each.top], np.sort(row)[::-1][:5], atol=2e-5)
        assert each.top[0][0] == letters().decode([int(row.argmax())])
    (silent,) = shared.generate([ask()], progress=False)
    assert silent.samples[0].logprobs is None


def test_stop_tokens_and_strings(shared):
    written = greedy("llama", PROMPT, 12)
    text = letters().decode(written)
    (by_token,) = shared.generate([ask(stop_token_ids=(written[6],))], progress=False)
    end = written.index(written[6])
    assert (tokens(by_token)[0], by_token.samples[0].finish_reason) == (written[: end + 1], "stop")
    assert by_token.samples[0].text == letters().decode(written[:end])
    place = next(n for n in range(3, 10) if text[n : n + 2].isascii())
    (by_string,) = shared.generate([ask(stop=("not there", text[place : place + 2]))], progress=False)
    assert by_string.samples[0].text == text[: text.find(text[place : place + 2])]
    assert by_string.samples[0].finish_reason == "stop"


def test_the_end_token_ends_unless_ignored():
    model = decoder("llama")
    first = greedy("llama", PROMPT, 1)[0]
    ending = Engine(model, letters(), make_mesh(1, 1, 1), slots=1, piece=16, steps=5, end_ids=(first,))
    done, going = ending.generate([ask(ignore_eos=False), ask()], progress=False)
    assert (tokens(done), done.samples[0].finish_reason, done.samples[0].text) == ([[first]], "stop", "")
    assert len(tokens(going)[0]) == 12


def test_streams_and_cancels(shared):
    deltas, other = [], []
    handle = shared.submit(ask(n=2, temperature=1.0, logprobs=0, stop=("\n\n",)), on_delta=deltas.append)
    dropped = shared.submit(ask(OTHERS[0], max_tokens=100), on_delta=other.append)
    shared.step()
    shared.cancel(dropped)
    while shared.busy:
        shared.step()
    assert dropped.result.error == "cancelled"
    for number, sample in enumerate(handle.result.samples):
        mine = [delta for delta in deltas if delta.sample == number]
        assert len(mine) >= 3
        assert "".join(delta.text for delta in mine) == sample.text
        assert sum((delta.token_ids for delta in mine), ()) == sample.token_ids
        assert sum((delta.logprobs for delta in mine), ()) == sample.logprobs
        assert [delta.finish_reason for delta in mine][-2:] == [None, "length"]


def test_requests_that_cannot_be_served_say_why():
    small = engine(max_length=30, slots=1)
    long, wrong, cut, fits = small.generate(
        [ask(OTHERS[1]), ask((5, 101)), ask(max_tokens=50), ask(max_tokens=9)], progress=False
    )
    assert "60 tokens" in long.error
    assert "30 of max_length" in long.error
    assert "token id 101" in wrong.error
    assert (len(tokens(cut)[0]), cut.samples[0].finish_reason) == (9, "length")
    assert tokens(fits) == tokens(cut)
    messages = Request(messages=({"role": "user", "content": "hi"},))
    assert "no chat template" in small.generate([messages], progress=False)[0].error
    with pytest.raises(UserError, match="max_length 300 is not between 2 and the model's 256"):
        engine(max_length=300)


def test_a_hook_changes_what_is_drawn_with_arrays_of_its_own():
    def hook(inputs: HookInputs) -> jax.Array:
        """Bans each request's token, and adds a head's opinion of the hidden states."""
        banned = jnp.arange(inputs.logits.shape[1]) == inputs.slots[:, None]
        return jnp.where(banned, -jnp.inf, inputs.logits + inputs.hidden @ inputs.shared)

    model = decoder("llama")
    nothing = np.zeros((model.config.d_model, model.config.vocab_size), np.float32)
    hooked = engine(hook=hook, hook_shared=nothing, hook_slot=np.int32(-1), slots=2)
    written = greedy("llama", PROMPT, 1)[0]
    (plain,) = hooked.generate([ask(max_tokens=1)], progress=False)
    handle = hooked.submit(ask(max_tokens=1, logprobs=0), hook_slot=np.int32(written))
    while hooked.busy:
        hooked.step()
    logits = np.asarray(logits_of(model, np.asarray([PROMPT])))[0, -1]
    second = int(np.argsort(-logits)[1])
    assert (tokens(plain), tokens(handle.result)) == ([[written]], [[second]])
    own = logits[second] - logits.max() - np.log(np.exp(logits - logits.max()).sum())  # the model's, not the hook's
    assert abs(handle.result.samples[0].logprobs[0].logprob - own) < 2e-5
    push = nothing.copy()
    hidden_norm = 100.0
    push[:, 42] = hidden_norm
    hooked.update(model, hook_shared=push)
    hooked.update(model, hook_shared=-push)
    drawn = set()
    for sign in (1, -1):
        hooked.update(model, hook_shared=sign * push)
        drawn.add(tokens(hooked.generate([ask(max_tokens=1)], progress=False)[0])[0][0])
    assert 42 in drawn
    assert len(drawn) == 2


def test_weights_are_swapped_without_compiling(shared):
    from flax import nnx

    model = decoder("llama")
    graphdef, state = nnx.split(model)
    other = nnx.merge(graphdef, jax.tree.map(lambda x: x[..., ::-1], state))
    (before,) = shared.generate([ask()], progress=False)
    compiled = shared._programs.write._cache_size(), shared._programs.read._cache_size()
    shared.update(other)
    (between,) = shared.generate([ask()], progress=False)
    shared.update(model)
    (after,) = shared.generate([ask()], progress=False)
    assert before == after != between
    assert compiled == (shared._programs.write._cache_size(), shared._programs.read._cache_size())
    shared.submit(ask())
    with pytest.raises(RuntimeError, match="under way"):
        shared.update(other)
    while shared.busy:
        shared.step()
    wrong = nnx.merge(graphdef, state)
    wrong.config = dataclasses.replace(model.config, dtype="bfloat16")
    with pytest.raises(ValueError, match="structure"):
        shared.update(wrong)
