"""The engine: what a request gives does not depend on its company, slots are used again, text ends where it should."""

from __future__ import annotations

import dataclasses
import itertools

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


def logprobs(result) -> list[float]:
    return [each.logprob for each in result.samples[0].logprobs]


@pytest.mark.parity
def test_what_a_request_gives_does_not_depend_on_its_company(shared):
    """Alone; last of many; beside long ones, for which the cache grows; after its prompt's beginning was already there."""
    request = ask(temperature=1.0, top_p=0.9, logprobs=3, seed=11, max_tokens=20)
    (alone,) = shared.generate([request], progress=False)
    before = shared._slots.cache[0].capacity
    company = [ask(other, temperature=0.7, max_tokens=5 + 9 * n) for n, other in enumerate(OTHERS)]
    longer = [ask(other, max_tokens=150) for other in OTHERS[:3]]
    twins = [ask((*PROMPT[:18], 7), max_tokens=30), ask(PROMPT, temperature=1.0, seed=3)]
    capacities = []
    for batch in ([*company, request], [*longer, request], [request, *longer[:1]], [*twins, request, *company]):
        got = shared.generate(batch, progress=False)[batch.index(request)]
        capacities.append(shared._slots.cache[0].capacity)
        assert tokens(got) == tokens(alone)
        # Numbers of tens, of which float32 keeps 1e-6; another slot or size of the cache is another order of additions.
        np.testing.assert_allclose(logprobs(got), logprobs(alone), atol=2e-5)
    assert max(capacities) > before


@pytest.mark.parity
def test_results_are_in_order_and_slots_are_used_again(shared):
    requests = [ask(other, max_tokens=4 + n) for n, other in enumerate(OTHERS)]
    results = shared.generate(requests, progress=False)
    for n, (other, result) in enumerate(zip(OTHERS, results, strict=True)):
        assert tokens(result) == [greedy("llama", other, 4 + n)]
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (len(other), 4 + n)
    assert not shared.busy


@pytest.mark.parity
def test_bytes_of_a_step():
    small = engine(decode_slots=3)
    config = small.config
    cache = config.num_layers * 2 * 3 * config.num_kv_heads * config.head_dim * 128
    square, wide = config.d_model * config.head_dim, config.d_model * config.d_ff
    layer = square * 2 * (config.num_heads + config.num_kv_heads) + 3 * wide + 2 * config.d_model
    assert small.bytes_of_a_step == 4 * (cache + config.num_layers * layer + config.vocab_size * config.d_model)


@pytest.fixture
def chunks(shared, monkeypatch) -> list:
    """What the prefill program is given; engines of one structure share it."""
    given, prefill = [], shared._programs.prefill
    monkeypatch.setattr(shared._programs, "prefill", lambda *args: given.append(args[-1]) or prefill(*args))
    return given


@pytest.mark.parity
def test_a_prompt_of_many_samples_is_read_once(shared, chunks):
    (result,) = shared.generate([ask(OTHERS[2], temperature=1.0, n=4, seed=1)], progress=False)
    (single,) = shared.generate([ask(OTHERS[2], temperature=1.0, n=1, seed=1)], progress=False)
    assert sum(int(chunk.count.sum()) for chunk in chunks[:3]) == len(OTHERS[2]) == 33
    assert sum(int(chunk.count.sum()) for chunk in chunks[3:]) == 1  # the rest was still in the cache
    assert tokens(single)[0] == tokens(result)[0]
    assert len({tuple(sample) for sample in tokens(result)}) == 4


@pytest.mark.parity
def test_many_chunks_are_read_side_by_side_also_those_of_one_prompt(shared, chunks):
    prompts = [OTHERS[1], OTHERS[3], OTHERS[4], OTHERS[6]]  # 4, 6, 1 and 3 chunks of 16
    wanted = [[greedy("llama", prompt, 6)] for prompt in prompts]
    fresh = engine(decode_slots=4)
    results = fresh.generate([ask(prompt, max_tokens=6) for prompt in prompts], progress=False)
    assert [tokens(result) for result in results] == wanted
    assert [len(chunk.slot) for chunk in chunks] == [8, 8]  # 8 of 14; 6 are worth a wide pass too
    for n, (prompt, passes) in enumerate(((OTHERS[3][::-1], [8]), (OTHERS[6][::-1], [1, 1, 1]))):
        chunks.clear()
        (result,) = fresh.generate([ask(prompt, max_tokens=6)], progress=False)
        assert tokens(result) == [greedy("llama", prompt, 6)]
        assert [len(chunk.slot) for chunk in chunks] == passes, n


@pytest.mark.parity
def test_prompts_that_arrive_together_and_begin_alike_are_read_once_up_to_there(chunks):
    start = OTHERS[3][:40]
    prompts = [(*start, *OTHERS[4], n) for n in (1, 2, 3)]  # 46 tokens, of which 32 are in whole chunks
    results = engine().generate([ask(prompt, max_tokens=6) for prompt in prompts], progress=False)
    assert [tokens(result) for result in results] == [[greedy("llama", prompt, 6)] for prompt in prompts]
    assert sum(int(chunk.count.sum()) for chunk in chunks) == 46 + 14 + 14


@pytest.mark.parity
def test_seeds_and_rounds(shared):
    def sampled(prompts, engine=shared, **params):
        requests = [ask(prompt, **({"temperature": 1.0, "n": 2} | params)) for prompt in prompts]
        results = engine.generate(requests, progress=False)
        return {prompt: tokens(result) for prompt, result in zip(prompts, results, strict=True)}

    prompts = [PROMPT, *OTHERS[:4]]
    first = sampled(prompts, seed=1)
    assert first == sampled(prompts, seed=1) == sampled(prompts[::-1], seed=1)  # the same round, in other slots too
    assert first == sampled(prompts, engine(decode_slots=2), seed=1)
    for other in (sampled(prompts, seed=1, round=1), sampled(prompts, seed=2), sampled(prompts)):
        assert not any(first[prompt][i] == other[prompt][j] for prompt in prompts for i in (0, 1) for j in (0, 1))
    assert sampled(prompts) == sampled(prompts)
    assert sampled([PROMPT], seed=1, n=1)[PROMPT] == first[PROMPT][:1]


@pytest.mark.parity
def test_two_prompts_with_one_seed_share_no_stream():
    """A hook makes all logits equal, so that a draw shows its random number and nothing of the prompt."""
    level = engine(hook=lambda inputs: inputs.logits * 0, steps=8)
    params = {"temperature": 1.0, "seed": 7, "max_tokens": 16}
    results = level.generate([ask(prompt, **params) for prompt in (PROMPT, *OTHERS)], progress=False)
    drawn = [tuple(tokens(result)[0]) for result in results]
    assert len(set(drawn)) == len(drawn)
    same = np.mean([a == b for one, two in itertools.combinations(drawn, 2) for a, b in zip(one, two, strict=True)])
    assert same < 0.05  # of a vocabulary of 101
    again = level.generate([ask(**params)], progress=False)
    assert tuple(tokens(again[0])[0]) == drawn[0]


@pytest.mark.parity
@pytest.mark.parametrize("fault", ["callback", "hook", "text", "tokenizer", "stop tokens"])
def test_what_goes_wrong_with_one_request_is_its_own(fault, monkeypatch):
    small = engine(
        hook=lambda inputs: inputs.logits + inputs.slots[:, :1], hook_slot=np.zeros(1, np.float32), decode_slots=3
    )
    others = [ask(other, max_tokens=9) for other in OTHERS[:3]]
    alone = small.generate(others, progress=False)
    request, options = ask(n=3, temperature=1.0, max_tokens=15), {}
    if fault == "callback":
        options = {"on_delta": lambda delta: [][delta.sample]}
    elif fault == "hook":
        options = {"hook_slot": np.zeros(7, np.float32)}
    elif fault == "text":
        request = Request(prompt="cut emoji \ud83d")
    elif fault == "tokenizer":
        request = Request(prompt="breaks")
        encode = small.encode
        monkeypatch.setattr(small, "encode", lambda each: encode(each) if each is not request else [][0])
    else:
        request = ask(stop_token_ids=(101,))
    handles = [small.submit(each) for each in others[:2]]
    bad = small.submit(request, **options)
    handles.append(small.submit(others[2]))
    while small.busy:
        small.step()
    assert [handle.result for handle in handles] == alone
    assert bad.result.error
    assert (bad.exception is None) == (fault in ("text", "stop tokens"))
    assert small.generate(others, progress=False) == alone


@pytest.mark.parity
def test_a_failed_step_ends_what_had_begun_and_the_rest_is_served(shared):
    wanted = [shared.generate([ask(other)], progress=False)[0] for other in OTHERS[:3]]
    for program in ("prefill", "decode"):
        small = engine(decode_slots=1)
        handles = [small.submit(ask(other, n=n)) for other, n in zip(OTHERS[:3], (2, 1, 1), strict=True)]
        whole, calls = getattr(small._programs, program), itertools.count()

        def broken(weights, cache, hidden, *rest, whole=whole, calls=calls):
            if next(calls) == 0:
                jax.tree.map(lambda x: x.delete(), (cache, hidden))  # as after a donation
                raise RuntimeError("out of memory")
            return whole(weights, cache, hidden, *rest)

        with pytest.MonkeyPatch.context() as patch:  # engines of one structure share programs
            patch.setattr(small._programs, program, broken)
            with pytest.raises(RuntimeError, match="out of memory") as caught:
                small.step()
            small.restart(caught.value)
            while small.busy:
                small.step()
        assert handles[0].result.error == "RuntimeError: out of memory"
        assert [tokens(handle.result) for handle in handles[1:]] == [tokens(result) for result in wanted[1:]]


@pytest.mark.parity
def test_long_texts_are_refused_without_being_tokenised(monkeypatch):
    small = engine(max_length=64)
    monkeypatch.setattr(type(small.tokenizer), "__call__", lambda *_: pytest.fail("tokenised"))
    (result,) = small.generate([Request(prompt="x" * 10_000_000)], progress=False)
    assert "10000000 characters" in result.error


@pytest.mark.parity
def test_numbers_at_their_limits_give_tokens(shared):
    limits = [
        {"temperature": 5e-324}, {"temperature": 1e-30}, {"temperature": 100.0}, {"top_p": 5e-324, "temperature": 1.0},
        {"min_p": 5e-324, "temperature": 1.0}, {"top_k": 2**31 - 1, "temperature": 1.0}, {"max_tokens": 2**31 - 1},
        {"seed": -(2**63)}, {"seed": 2**63 - 1, "round": 2**31 - 1}, {"stop_token_ids": tuple(range(50, 101))},
    ]  # fmt: skip
    results = shared.generate([ask(**params) for params in limits], progress=False)
    assert all(result.error is None for result in results)
    greedy_tokens = greedy("llama", PROMPT, 12)
    for number in (0, 1, 3):
        assert tokens(results[number]) == [greedy_tokens]


def test_parameters_beyond_their_limits_are_named():
    wrong = {
        "max_tokens": (-1, 2**31, 1.5, True, "5", None), "temperature": (-1, float("nan"), float("inf"), 101, "1", None),
        "top_k": (-1, 99999999999), "top_p": (0, 1.1, float("nan")), "min_p": (-0.1, 2), "n": (0, 10**9),
        "stop": (("",), (5,)), "stop_token_ids": ((99999999999,), (-1,), (1.0,)), "seed": (2**63, "5", 1.0),
        "round": (-1, 2**31, None), "logprobs": (-1, 21, True),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"sampling: {name} must"):
                SamplingParams(**{name: value})


@pytest.mark.parity
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


@pytest.mark.parity
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


@pytest.mark.parity
def test_the_end_token_ends_unless_ignored():
    model = decoder("llama")
    first = greedy("llama", PROMPT, 1)[0]
    ending = Engine(model, letters(), make_mesh(1, 1, 1), decode_slots=1, prefill_chunk=16, steps=5, end_ids=(first,))
    done, going = ending.generate([ask(ignore_eos=False), ask()], progress=False)
    assert (tokens(done), done.samples[0].finish_reason, done.samples[0].text) == ([[first]], "stop", "")
    assert len(tokens(going)[0]) == 12


@pytest.mark.parity
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


@pytest.mark.parity
def test_requests_that_cannot_be_served_say_why():
    small = engine(max_length=30, decode_slots=1)
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


@pytest.mark.parity
def test_a_hook_changes_what_is_drawn_with_arrays_of_its_own():
    def hook(inputs: HookInputs) -> jax.Array:
        """Bans each request's token, and adds a head's opinion of the hidden states."""
        banned = jnp.arange(inputs.logits.shape[1]) == inputs.slots[:, None]
        return jnp.where(banned, -jnp.inf, inputs.logits + inputs.hidden @ inputs.shared)

    model = decoder("llama")
    nothing = np.zeros((model.config.d_model, model.config.vocab_size), np.float32)
    hooked = engine(hook=hook, hook_shared=nothing, hook_slot=np.int32(-1), decode_slots=2)
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


@pytest.mark.parity
def test_weights_are_swapped_without_compiling(shared, caplog):
    from flax import nnx

    model = decoder("llama")
    graphdef, state = nnx.split(model)
    other = nnx.merge(graphdef, jax.tree.map(lambda x: x[..., ::-1], state))
    (before,) = shared.generate([ask()], progress=False)
    with jax.log_compiles():
        shared.update(other)
        (between,) = shared.generate([ask()], progress=False)
        shared.update(model)
        (after,) = shared.generate([ask()], progress=False)
        assert before == after != between
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(0)
        assert caplog.text.count("Compiling") == 1  # as it is logged
    shared.submit(ask())
    with pytest.raises(RuntimeError, match="under way"):
        shared.update(other)
    while shared.busy:
        shared.step()
    wrong = nnx.merge(graphdef, state)
    wrong.config = dataclasses.replace(model.config, dtype="bfloat16")
    with pytest.raises(ValueError, match="structure"):
        shared.update(wrong)
