"""The verdict in a text, and the step of its value's token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from smallr.core.errors import UserError
from smallr.methods.planner.discriminators.base import Judgement, within
from smallr.methods.planner.discriminators.verdicts import Verdict, read_verdicts
from smallr.sampling.requests import Sample, TokenLogprob


def sample(tokens: Sequence[str], marked: int | None = None) -> Sample:
    """Tokens of log-prob -1, but for one of probability 0.9."""
    logprobs = tuple(TokenLogprob(i, token, math.log(0.9) if i == marked else -1.0) for i, token in enumerate(tokens))
    return Sample("".join(tokens), "stop", tuple(range(len(tokens))), logprobs)


def read_verdict(said: Sample) -> Verdict | None:
    """Returns the one that wins."""
    return next(reversed(read_verdicts(said)), None)


@pytest.mark.parametrize(
    ("tokens", "step", "correct"),
    [
        (["So", " {", '"correct', '":', " true", "}"], 4, True),
        (["{", '"correct"', ":", "true", "}"], 3, True),
        (["{", '"correct"', ": ", "tr", "ue", "}"], 3, True),
        (["{", '"correct"', ": ", "f", "alse", "}"], 3, False),
        (['{"correct": true', "}"], 0, True),
        (["true ", '{"correct"', ":", "false", "}", " true"], 3, False),
        (["ä\ufffd\ufffd", '{"correct":', "true", "}", "<|im_end|>"], 2, True),
    ],
)
def test_the_step_is_that_of_the_token_that_begins_the_value(tokens, step, correct):
    found = read_verdict(sample(tokens, step))
    assert (found.correct, found.step) == (correct, step)
    assert found.probability == pytest.approx(0.9)
    assert found.soft == pytest.approx(0.9 if correct else 0.1)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ('{"correct": true} but no: {"correct": false}', False),
        ('<think>{"correct": false}</think> as I said', False),
        ('{"correct": true} {"correct": "yes"} {"correct": 1} {"right": false}', True),
        ('{"correct": true, "why": {"deep": 1}}', True),
        ('{"why": "a {brace}", "correct": false}', False),
        ('{"correct": true} {"correct": fal', True),
        ('{"correct": true, "correct": false}', False),
    ],
)
def test_the_last_valid_object_with_the_key_wins(text, correct):
    assert read_verdict(Sample(text, "stop")).correct is correct
    assert read_verdict(sample(list(text))).correct is correct


@pytest.mark.parametrize(
    "text", ["", "true", '{"correct": True}', '{"correct": maybe}', "{" * 5000, '{"Correct": true}']
)
def test_no_verdict(text):
    assert read_verdict(Sample(text, "length")) is None


def test_without_logprobs_there_is_no_probability():
    found = read_verdict(Sample('{"correct": true}', "stop"))
    assert (found.step, found.probability, found.soft) == (None, None, None)


def test_a_smaller_budget_is_the_beginning_of_a_greedy_answer():
    tokens = ["So", ' {"correct": ', "true", "}", " or", ' {"correct":', " false", "} ", "end"]
    verdicts = read_verdicts(sample(tokens))
    assert [(each.tokens, each.correct, each.step) for each in verdicts] == [(4, True, 2), (8, False, 6)]
    timed = tuple((each.tokens, each.correct, each.soft) for each in verdicts)
    whole = Judgement(False, verdicts[-1].soft, tokens=len(tokens), verdicts=timed)
    for budget in range(1, len(tokens) + 2):
        alone = read_verdict(sample(tokens[:budget]))  # what that budget would have left
        cut = within(whole, budget)
        assert cut.correct == (None if alone is None else alone.correct)
        assert cut.probability == (None if alone is None else alone.soft)
        assert cut.tokens == min(budget, len(tokens))
    with pytest.raises(UserError, match="no log-probs"):
        within(Judgement(True, tokens=9), 4)
