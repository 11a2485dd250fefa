"""Decoding with prompt lookup, beside plain decoding."""

from dataclasses import replace

import numpy as np
import pytest

from smallr.sampling.lookup import look_up
from smallr.sampling.requests import Request, SamplingParams
from tests.sampling.models import engine

PROMPTS = ((5, 6, 7, 8, 5, 6), (9, 3, 9, 3, 9), tuple(range(20, 50)))


pytestmark = pytest.mark.parity  # the models are built by transformers


@pytest.mark.parametrize(
    ("text", "count", "found"),
    [
        ([1, 2, 3, 4, 1, 2, 3], 2, [4, 1]),
        ([1, 2, 3, 4, 5, 2, 3], 9, [4, 5, 2, 3]),  # two tokens, where three were never there
        ([7, 1, 2, 9, 8, 1, 2, 5, 6, 1, 2], 2, [5, 6]),  # the last place
        ([8, 8, 8], 3, [8]),  # places may overlap
        ([1, 2, 3], 3, []),
        ([4], 3, []),
    ],
)
def test_what_followed_the_last_time_is_proposed(text, count, found):
    assert look_up(np.array(text, np.int32), count).tolist() == found


@pytest.fixture(scope="module")
def plain():
    return engine("llama")


@pytest.fixture(scope="module")
def looking():
    return engine("llama", lookup=4)


def passes(sampler, monkeypatch, requests):
    """Results, and how many tokens each verifying pass gave all slots together."""
    counts, verify = [], sampler._verify

    def counted(proposals):
        decoded = verify(proposals)
        counts.append(int(decoded.alive.sum()))
        return decoded

    monkeypatch.setattr(sampler, "_verify", counted)
    return sampler.generate(requests, progress=False), counts


def same(got, expected):
    for one, other in zip(got, expected, strict=True):
        for sample, wanted in zip(one.samples, other.samples, strict=True):
            assert sample.token_ids == wanted.token_ids
            assert sample.finish_reason == wanted.finish_reason
            if wanted.logprobs:
                mine, theirs = ([token.logprob for token in each.logprobs] for each in (sample, wanted))
                np.testing.assert_allclose(mine, theirs, atol=1e-5)
                tops = ([[name for name, _ in token.top] for token in each.logprobs] for each in (sample, wanted))
                assert next(tops) == next(tops)


def test_greedy_completions_are_those_of_plain_decoding_in_fewer_passes(plain, looking, monkeypatch):
    params = SamplingParams(max_tokens=60, ignore_eos=True, logprobs=3)
    requests = [Request(prompt=prompt, params=params) for prompt in PROMPTS]
    got, counts = passes(looking, monkeypatch, requests)
    same(got, plain.generate(requests, progress=False))
    assert len(counts) > 5
    assert sum(counts) > 2 * len(counts)  # a random model repeats itself


def test_slots_that_draw_stand_beside_and_ends_are_kept(plain, looking, monkeypatch):
    greedy = SamplingParams(max_tokens=60, ignore_eos=True)
    whole = plain.generate([Request(prompt=PROMPTS[0], params=greedy)], progress=False)[0].samples[0].token_ids
    stops = replace(greedy, stop_token_ids=(whole[-1],))
    drawn = SamplingParams(max_tokens=25, temperature=1.0, seed=3, ignore_eos=True)
    requests = [Request(prompt=PROMPTS[0], params=stops), Request(prompt=PROMPTS[1], params=greedy)]
    requests.append(Request(prompt=PROMPTS[2], params=drawn))
    got, counts = passes(looking, monkeypatch, requests)
    assert counts
    assert got[0].samples[0].finish_reason == "stop"
    same(got, plain.generate(requests, progress=False))


def test_penalties_and_draws_alone_are_decoded_plainly(plain, looking, monkeypatch):
    penalised = SamplingParams(max_tokens=12, ignore_eos=True, frequency_penalty=0.5)
    requests = [
        Request(prompt=PROMPTS[0], params=penalised),
        Request(prompt=PROMPTS[1], params=SamplingParams(max_tokens=12)),
    ]
    got, counts = passes(looking, monkeypatch, requests)
    assert not counts
    same(got, plain.generate(requests, progress=False))


@pytest.mark.slow
def test_nothing_is_read_beyond_the_last_position(monkeypatch):
    params = SamplingParams(max_tokens=250, ignore_eos=True)  # the model has 256 positions, and a table of them
    requests = [Request(prompt=(5, 6) * 110, params=params), Request(prompt=(4, 9, 2) * 50, params=params)]
    sampler = engine("gpt2 positions", lookup=6, decode_slots=2)
    got, counts = passes(sampler, monkeypatch, requests)
    assert counts
    same(got, engine("gpt2 positions", decode_slots=2).generate(requests, progress=False))
