"""Penalties, biases, grammars and echoes: token for token what plain references give, and nothing to the neighbours."""

from __future__ import annotations

import functools
import json
import re
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

from smallr.core.errors import UserError
from smallr.sampling import grammars
from smallr.sampling.adjusting import Adjustments, TokenState, adjust
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Grammar, Request, SamplingParams
from tests.models.families.checks import logits_of
from tests.sampling.models import decoder, engine, greedy, letters, model

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(6)
PROMPT = tuple(RNG.integers(1, 101, 21).tolist())
OTHERS = [tuple(RNG.integers(1, 101, length).tolist()) for length in (40, 5, 18)]
NEW = 24
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 999},
        "b": {"enum": ["x", "yz"]},
        "c": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}
SOME_JSON = Grammar("json", json.dumps(SCHEMA))


def ask(prompt=PROMPT, **params) -> Request:
    return Request(prompt=prompt, params=SamplingParams(**({"max_tokens": NEW, "ignore_eos": True} | params)))


@pytest.fixture(scope="module")
def shared() -> Engine:
    return engine(max_length=128, steps_beside_grammars=5)


@functools.cache
def plain(prompt) -> list[int]:
    """What transformers writes without anything."""
    return greedy("llama", prompt, NEW)


def tokens(result) -> list[list[int]]:
    assert result.error is None
    return [list(sample.token_ids) for sample in result.samples]


def test_logits_are_changed_as_the_processors_of_transformers_do():
    vocab, written = 70, [[3, 9, 9, 40], [1, 2, 3, 4]]
    logits = RNG.normal(0, 3, (2, vocab)).astype(np.float32)
    prompts, biases, repetition = [[5, 9, 66], [7]], [{3: 2.5, 66: -100.0}, {}], [1.7, 0.8]
    frequency, presence = [0.4, -1.0], [1.5, 0.25]
    state = TokenState(np.zeros((2, vocab), np.int32), np.zeros((2, vocab), bool), np.zeros((2, vocab), np.float32))
    want = np.zeros_like(logits)
    for row in range(2):
        np.add.at(state.written[row], written[row], 1)
        state.prompted[row, prompts[row]] = True
        for token, bias in biases[row].items():
            state.bias[row, token] = bias
        ids, scores = torch.tensor([prompts[row] + written[row]]), torch.tensor(logits[row : row + 1])
        if biases[row]:
            sequence = {(token,): bias for token, bias in biases[row].items()}
            scores = transformers.SequenceBiasLogitsProcessor(sequence)(ids, scores)
        scores = transformers.RepetitionPenaltyLogitsProcessor(repetition[row])(ids, scores)
        count = np.bincount(written[row], minlength=vocab).astype(np.float32)
        want[row] = scores.numpy()[0] - np.float32(frequency[row]) * count - np.float32(presence[row]) * (count > 0)
    allowed = np.full((2, 3), -1, np.int32)
    allowed[1] = [0b1010, 0, 1 << 5]
    want[1, [token for token in range(vocab) if token not in (1, 3, 69)]] = -np.inf
    numbers = [np.asarray(each, np.float32) for each in (presence, frequency, repetition)]
    by = Adjustments(*numbers, np.asarray([True, False]), allowed, np.ones(2, np.int32))
    np.testing.assert_allclose(jax.jit(adjust)(logits, state, by), want, rtol=1e-6, atol=1e-6)
    nothing = Adjustments(
        *np.asarray([[0, 0], [0, 0], [1, 1]], np.float32), np.zeros(2, bool), allowed | -1, numbers[0]
    )
    np.testing.assert_array_equal(jax.jit(adjust)(logits, state, nothing), logits)


def plainly(prompt, presence, frequency, new=NEW) -> list[int]:
    """Greedy tokens with penalties of the completion's own tokens, from whole passes over the text."""
    text = list(prompt)
    for _ in range(new):
        logits = np.asarray(logits_of(decoder("llama"), np.asarray([text + [0] * (len(prompt) + new - len(text))])))
        count = np.bincount(text[len(prompt) :], minlength=logits.shape[-1])
        text.append(int((logits[0, len(text) - 1] - frequency * count - presence * (count > 0)).argmax()))
    return text[len(prompt) :]


def of_transformers(prompt, **options) -> list[int]:
    ids = torch.tensor([list(prompt)])
    length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
    out = model("llama").generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length, **options)
    return out[0, len(prompt) :].tolist()


def test_penalties_and_biases_token_for_token_in_company(shared):
    unchanged = [plain(prompt) for prompt in OTHERS]
    first, second = unchanged[0][:2]
    options = [
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.4},
        {"logit_bias": ((first, -100.0), (second, 3.0))},
        {"logit_bias": ((first, -2.0),), "repetition_penalty": 0.8},
    ]
    wanted = [
        plainly(PROMPT, 1.5, 0.7),
        plainly(PROMPT, 0, -0.5),
        of_transformers(PROMPT, repetition_penalty=1.4),
        of_transformers(PROMPT, sequence_bias={(first,): -100.0, (second,): 3.0}),
        of_transformers(PROMPT, sequence_bias={(first,): -2.0}, repetition_penalty=0.8),
    ]
    requests = [ask(**each) for each in options]
    requests = [*requests[:2], ask(OTHERS[0]), *requests[2:], ask(OTHERS[1]), ask(OTHERS[2])]
    results = shared.generate(requests, progress=False)
    places = [0, 1, 3, 4, 5]
    assert [tokens(results[place])[0] for place in places] == wanted
    assert len({tuple(each) for each in wanted}) == len(wanted)
    assert [tokens(results[place])[0] for place in (2, 6, 7)] == unchanged
    # A slot that had penalties has none for the next request, and n samples count each for itself.
    again = shared.generate([ask(OTHERS[0]), ask(**options[0], n=2)], progress=False)
    assert tokens(again[0]) == [unchanged[0]]
    assert tokens(again[1]) == [wanted[0], wanted[0]]


def test_json_is_complete_and_valid_or_cut_by_the_length(shared):
    asked = {"grammar": SOME_JSON, "temperature": 1.5, "n": 3, "max_tokens": 60, "logprobs": 0}
    requests = [ask(prompt, seed=seed, **asked) for seed, prompt in enumerate((PROMPT, *OTHERS))]
    company = [ask(prompt) for prompt in OTHERS]
    results = shared.generate([*company[:2], *requests, company[2]], progress=False)
    assert [tokens(results[place])[0] for place in (0, 1, -1)] == [plain(prompt) for prompt in OTHERS]
    for result in results[2:-1]:
        for sample in result.samples:
            assert sample.finish_reason == "stop"
            read = json.loads(sample.text)
            assert list(read) == ["a", "b", "c"]
            assert (type(read["a"]), read["b"] in ("x", "yz")) == (int, True)
            assert all(each in (True, False) for each in read["c"])
            assert len(sample.logprobs) == len(sample.token_ids) <= 60
    (cut,) = shared.generate([ask(grammar=SOME_JSON, max_tokens=5)], progress=False)
    assert (cut.samples[0].finish_reason, cut.samples[0].text[:2]) == ("length", '{"')


def test_a_grammar_gives_what_a_plain_search_gives(shared):
    """Greedy tokens under a regular expression, from whole passes in which all other tokens are struck out."""
    alphabet = {letter: letters().convert_tokens_to_ids(letter) for letter in "abc"}
    (result,) = shared.generate([ask(grammar=Grammar("regex", "[abc]{12}"))], progress=False)
    text = list(PROMPT)
    for _ in range(12):
        logits = np.asarray(logits_of(decoder("llama"), np.asarray([text + [0] * (33 - len(text))])))[0, len(text) - 1]
        text.append(max(alphabet.values(), key=lambda token, logits=logits: logits[token]))
    assert (tokens(result), result.samples[0].finish_reason) == ([text[21:]], "stop")


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("choice", json.dumps(["red", 'blu"e', "r"])), 'red|blu"e|r'),
        (Grammar("grammar", 'start: "a" /[0-9]/+ "b"'), "a[0-9]+b"),
        (
            Grammar("json", '{"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 2}'),
            r"\[null,null\]",
        ),
    ],
)
def test_other_grammars(shared, grammar, pattern):
    (result,) = shared.generate([ask(grammar=grammar, ignore_eos=False, max_tokens=100)], progress=False)
    assert re.fullmatch(pattern, result.samples[0].text), result.samples[0].text
    assert result.samples[0].finish_reason == "stop"


def test_what_cannot_be_followed_is_said_and_harms_no_neighbour(shared):
    bad = [
        ({"grammar": Grammar("json", '{"type": "bogus"}')}, "json: .*Invalid type: bogus"),
        ({"grammar": Grammar("json", "{")}, "json: "),
        ({"grammar": Grammar("regex", "(ab")}, "regex: .*unclosed group"),
        ({"grammar": Grammar("regex", "a" * 2**17)}, "regex: 131072 characters"),
        ({"grammar": Grammar("regex", "(a{1000}){1000}")}, "too many"),
        ({"grammar": Grammar("regex", "(?=a)b")}, "regex: .*look-around"),
        ({"grammar": Grammar("regex", "\u00e9\u4e2d")}, "regex: .*no token that may come next"),
        ({"grammar": Grammar("regex", "a\u4e2d")}, "it cannot be followed.*no token that may come next"),
        ({"grammar": SOME_JSON, "stop": ("}",)}, "stop: a text that follows a grammar"),
        ({"grammar": SOME_JSON, "stop_token_ids": (5,)}, "stop_token_ids: a text that follows"),
        ({"logit_bias": ((101, 1.0),)}, "logit_bias: token id 101 is not below the vocabulary's 101"),
    ]
    requests = [ask(OTHERS[1]), *(ask(**params) for params, _ in bad), ask(OTHERS[2])]
    first, *results, last = shared.generate(requests, progress=False)
    for (_, told), result in zip(bad, results, strict=True):
        assert re.search(told, result.error or "no error"), told
    assert [tokens(first)[0], tokens(last)[0]] == [plain(OTHERS[1]), plain(OTHERS[2])]


def test_without_llguidance_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"json: needs llguidance.*pip install llguidance"):
        grammars.GrammarCompiler(letters(), 101, (0,)).compile(SOME_JSON)


def test_an_echo_has_the_log_probs_of_the_prompt(shared):
    long = OTHERS[0]
    requests = [ask(long, max_tokens=0, echo=True, logprobs=3), ask(long, max_tokens=2, echo=True, logprobs=0, n=2)]
    silent, first, second, text = shared.generate(
        [ask(long, max_tokens=1), *requests, Request(prompt="Ab", params=SamplingParams(max_tokens=3, echo=True))],
        progress=False,
    )
    want = np.asarray(jax.nn.log_softmax(logits_of(decoder("llama"), np.asarray([long]))))[0, :-1]
    for result in (first, second):
        head, *rest = result.prompt_logprobs
        assert (head.token_id, head.logprob) == (long[0], None)
        assert [each.token_id for each in rest] == list(long[1:])
        np.testing.assert_allclose([each.logprob for each in rest], want[np.arange(39), list(long[1:])], atol=2e-5)
        assert result.prompt_text == letters().decode(list(long))
    for each, row in zip(first.prompt_logprobs[1:], want, strict=True):
        np.testing.assert_allclose([value for _, value in each.top], np.sort(row)[::-1][:3], atol=2e-5)
        if each.token_id == row.argmax():  # equal to the last bit, as lm-eval compares them
            assert each.logprob == each.top[0][1]
    assert (tokens(first), first.samples[0].finish_reason, first.usage.completion_tokens) == ([[]], "length", 0)
    assert tokens(second)[0] == greedy("llama", long, 2)
    assert (silent.prompt_text, silent.prompt_logprobs) == (None, None)
    assert (text.prompt_text, text.prompt_logprobs) == ("Ab", None)
    deltas = []
    handle = shared.submit(requests[1], on_delta=deltas.append)
    while shared.busy:
        shared.step()
    begun = [delta for delta in deltas if delta.sample == 0]
    assert (begun[0].text, begun[0].logprobs) == (second.prompt_text, handle.result.prompt_logprobs)
    assert [len(delta.token_ids) for delta in begun] == [0, 1, 1]  # a streamed completion grows token by token
