"""Measures of confidence on texts and log-probs made by hand, calibrations as files, drift."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from smallr.core.errors import UserError
from smallr.language import calibration as calibrations
from smallr.language.calibration import Calibration
from smallr.language.confidence import (
    Answer,
    answer_logprobs,
    joint,
    length_normalised,
    majority_shares,
    measured,
    p_true,
    token_spans,
    verdict_request,
)
from smallr.language.drift import FEWEST, Distribution, Drift
from smallr.language.trust import Rater
from smallr.sampling.requests import Request, Result, Sample, SamplingParams, TokenLogprob


@pytest.mark.parametrize(
    ("text", "tokens", "pieces"),
    [
        ("The answer is 42.", ["The", " answer", " is", " 4", "2", ".", "<end>"], "keep"),
        ("The answer is 42", ["The", "answer", "is", "42"], ["The", " answer", " is", " 42"]),  # lost spaces
        ("Yes it is", [" Yes", " it", " is"], ["Yes", " it", " is"]),  # a first space that the decoder drops
        ("a 🙂 b", ["a", " \ufffd", "\ufffd", "\ufffd", " b"], ["a", "🙂", "🙂", "🙂", " b"]),
        ("né 5", ["n", "\ufffd", "\ufffd", " 5"], ["n", "é", "é", " 5"]),
        ("日本", ["\ufffd", "\ufffd", "本"], ["日", "日", "本"]),
        ("x 4", ["x", " 4", "2 STOP", "behind"], ["x", " 4", "", ""]),  # a stop string has cut the text before
        ("x 42", ["x", " 4", "2 STOP", "behind"], ["x", " 4", "2", ""]),
        ("ab", ["a", "<special>", "b"], ["a", "", "b"]),
        ("", ["<end>"], [""]),
    ],
)
def test_every_token_has_its_characters(text, tokens, pieces):
    wanted = [token if token != "<end>" else "" for token in tokens] if pieces == "keep" else pieces
    assert [text[start:end] for start, end in token_spans(text, tokens)] == wanted


def logprobs(*pairs: tuple[str, float]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(None, token, value) for token, value in pairs)


TEXT = "It is 6, so 42."
TOKENS = logprobs(
    ("It", -9.0), (" is", -9.0), (" 6", -9.0), (",", -9.0), (" so", -9.0), (" 4", -0.5), ("2", -0.1), (".", -3.0)
)


def test_only_the_answers_own_tokens_count():
    values = answer_logprobs(TEXT, TOKENS, (TEXT.index("42"), TEXT.index("42") + 2))
    assert values == [-0.5, -0.1]
    assert (joint(values), length_normalised(values)) == pytest.approx((math.exp(-0.6), math.exp(-0.3)))
    assert joint([]) == length_normalised([]) == 0
    assert joint([-math.inf, -1.0]) == 0
    assert joint([1e-7, 800.0]) == length_normalised([1e-7]) == 1  # a server has rounded
    reasoned = logprobs(("Six?", -2.0), ("No", -1.0))  # tokens of reasoning that the server has left out of the text
    assert answer_logprobs(TEXT, reasoned, (TEXT.index("42"), TEXT.index("42") + 2)) == [-2.0, -1.0]


def test_measures_of_samples():
    answers = [Answer("42", (12, 14)), Answer("42", (0, 2)), Answer("6", (6, 7)), None]
    assert majority_shares(answers) == [0.5, 0.5, 0.25, 0.0]
    samples = [
        Sample(TEXT, "stop", logprobs=TOKENS),
        Sample("42", "stop"),
        Sample(TEXT, "stop", logprobs=TOKENS),
        Sample("?", "stop"),
    ]
    found = measured(samples, answers, [0.9, 0.8, 0.7, 0.6])
    assert found[0] == pytest.approx(
        {"answer": math.exp(-0.3), "answer_joint": math.exp(-0.6), "majority": 0.5, "p_true": 0.9}
    )
    assert found[1] == {"majority": 0.5, "p_true": 0.8}
    assert found[3] == {"majority": 0.0, "p_true": 0.0}


def test_p_true_sums_the_spellings_of_the_first_token():
    top = (
        (" True", math.log(0.5)),
        ("true", math.log(0.1)),
        ("False", math.log(0.2)),
        ("T", math.log(0.1)),
        ("The", 0.0),
    )
    one = TokenLogprob(1, " True", math.log(0.5), top)
    assert p_true(Sample(" True", "length", logprobs=(one,))) == pytest.approx(0.7 / 0.9)
    assert p_true(Sample("?", "length", logprobs=(TokenLogprob(1, "?", -0.1, (("?", -0.1),)),))) == 0.5
    asked = verdict_request(Request(messages=({"role": "user", "content": "6 * 7?"},)), "42")
    assert "6 * 7?" in asked.messages[0]["content"]
    assert "Proposed answer: 42" in asked.messages[0]["content"]
    assert (asked.params.max_tokens, asked.params.logprobs, asked.params.temperature) == (1, 20, 0.0)
    assert verdict_request(Request(prompt="6 * 7?"), "42").prompt.endswith("\nAnswer:")
    with pytest.raises(UserError, match="p_true needs a prompt that is text"):
        verdict_request(Request(prompt=(1, 2)), "42")


def rater(measure: str, **options) -> Rater:
    return Rater(measure, lambda texts: [Answer(text, (0, len(text))) for text in texts], **options)


def test_a_rater_says_what_it_cannot_do():
    with pytest.raises(UserError, match="must be one of: answer, answer_joint, majority, p_true"):
        rater("sure")
    with pytest.raises(UserError, match="n must be 2 or more"):
        rater("majority").asking(Request(prompt="a"))
    with pytest.raises(UserError, match=r"no log-probs.*without them there is majority"):
        rater("answer").rate(Result((Sample("a", "stop"),)), [None], {})
    with pytest.raises(UserError, match="for the measure 'answer', not 'p_true'"):
        rater("p_true", calibration=calibration())
    with pytest.raises(UserError, match="a verdict failed: the server is down"):
        rater("p_true").rate(
            Result((Sample("a", "stop"),)), [Answer("a", (0, 1))], {"a": Result(error="the server is down")}
        )
    long = {"a": Result(error="the prompt has 900 tokens, max_length is 512")}  # the answer itself is as good as others
    (rating,) = rater("p_true").rate(Result((Sample("a", "stop"),)), [Answer("a", (0, 1))], long)
    assert rating.confidence == 0.5
    assert rater("answer").asking(Request(prompt="a")).params.logprobs == 0
    given = Request(prompt="a", params=SamplingParams(logprobs=3))
    assert rater("answer").asking(given) is given


# --- calibrations


def calibration(method: str = "temperature", **parameters) -> Calibration:
    reference = Distribution.of(np.linspace(0, 1, 101).tolist())
    parameters = parameters or {"temperature": 2.0}
    return Calibration(method, "answer", "gsm8k", parameters, {"data": "d", "split": "s"}, ("q",), reference, None)


def test_a_temperature_divides_the_logit_and_zero_stays_zero():
    found = calibration().apply([0.0, 0.5, 0.9, 1.0])
    assert found[:3] == pytest.approx([0.0, 0.5, 1 / (1 + math.exp(-math.log(9) / 2))])
    assert 0.99 < found[3] < 1
    steps = calibration("isotonic", confidence=[0.2, 0.6], probability=[0.1, 0.5])
    assert steps.apply([0.0, 0.1, 0.4, 0.9]) == pytest.approx([0.0, 0.1, 0.3, 0.5])


def test_a_calibration_is_saved_as_json_and_read_back(tmp_path):
    calibration().save(tmp_path / "calibration.json")
    assert calibrations.read(tmp_path) == calibrations.of_model(str(tmp_path)) == calibration()
    assert calibrations.of_model(str(tmp_path / "none")) is None


def test_a_calibration_of_another_model_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(calibrations.logging, "warning", lambda text, *values: told.append(text % values))
    own = dataclasses.replace(calibration(), fitted_on={"model": str(tmp_path)})
    for found, model in ((calibration(), "m"), (own, str(tmp_path)), (own, f"{tmp_path}/../{tmp_path.name}")):
        calibrations.warn_if_of_another(found, model)
    assert not told
    calibrations.warn_if_of_another(own, "other")
    assert f"answers of {tmp_path}, not of other" in told[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "platt"}, "must be one of: temperature, isotonic"),
        ({"parameters": {"temperature": -1}}, "is not above 0"),
        ({"method": "isotonic", "parameters": {"confidence": [0.5, 0.1], "probability": [0, 1]}}, "do not rise"),
        ({"reference": {}}, "KeyError"),
        ({"parameters": {"temperature": "2"}}, "TypeError"),
        ({"method": "isotonic", "parameters": {"confidence": [0.1, math.nan], "probability": [0, 1]}}, "from 0 to 1"),
        ({"method": "isotonic", "parameters": {"confidence": [0.1, 0.5], "probability": [0, 2]}}, "from 0 to 1"),
        ({"reference": {"confidence": {"edges": [0.5], "shares": [1]}}}, "a share more than edges"),
        ({"reference": {"confidence": {"edges": [0.5], "shares": [-1, 2]}}}, "are not of 1"),
        ({"reference": {"confidence": {"edges": [0.5, 0.1], "shares": [0, 0, 1]}}}, "edges that rise"),
        ({"fitted_on": {}}, "KeyError"),
        ({"questions": [["q"]]}, "more than digests"),
    ],
)
def test_a_damaged_calibration_is_named(tmp_path, changes, message):
    path = tmp_path / "calibration.json"
    calibration().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        calibrations.read(path)
    assert str(path) in str(error.value)


# --- drift


def test_the_population_stability_index():
    reference = Distribution.of([0.0] * 50 + [1.0] * 50, bins=2)
    assert reference.shares == (0.5, 0.5)
    same, moved = [0.0] * 100 + [1.0] * 100, [0.0] * 20 + [1.0] * 180
    assert reference.psi(same) == 0
    p, q = 100.5 / 201, np.array([20.5, 180.5]) / 201
    assert reference.psi(moved) == pytest.approx(float(np.sum((q - p) * np.log(q / p))))
    assert math.isfinite(reference.psi([1.0] * 100))  # an empty bin
    assert math.isnan(reference.psi([1.0] * (FEWEST - 1)))
    drift = Drift(reference, window=100)
    for value in [1.0] * 300 + [0.0, 1.0] * 50:
        drift.add(value)
    assert drift.index() == 0  # the window forgets
    assert math.isnan(Drift(None).index())
