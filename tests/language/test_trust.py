"""Replies that say how sure the model is, over an engine whose words are known, and answers passed on to another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import openai
import pytest

from smallr.cli import trust as cli_trust
from smallr.cli.main import main
from smallr.evals.trust.answers import extractor
from smallr.language import calibration as calibrations
from smallr.language.calibration import Calibration
from smallr.language.drift import FEWEST, Distribution
from smallr.language.server import ServerModel
from smallr.language.serving.metrics import Metrics
from smallr.language.serving.trust import ServedTrust
from smallr.language.trust import Rater
from smallr.sampling.requests import Request, Result, Sample, TokenLogprob
from tests.language.test_serving import HELLO, Served, expected, serve

SURE = math.exp(-0.5)  # of every token of the fake engine
EDGE = Distribution((0.2, 0.3), (0.5, 0.3, 0.2))


def fitted(measure: str = "answer", benchmark: str = "all", temperature: float = 1.0) -> Calibration:
    return Calibration(
        "temperature", measure, benchmark, {"temperature": temperature}, {"data": "d", "split": ""}, (), EDGE, EDGE
    )


def trust(measure: str = "answer", calibrated: bool = False, metrics: Metrics | None = None, **options) -> ServedTrust:
    rater = Rater(measure, extractor("all")[0], fitted(measure) if calibrated else None, options.pop("agrees", None))
    return ServedTrust(rater, metrics=metrics, **options)


@contextmanager
def served_with(measure: str = "answer", **options) -> Iterator[Served]:
    metrics = Metrics("fake")
    with serve(trust=trust(measure, metrics=metrics, **options), metrics=metrics) as served:
        served.metrics = metrics
        yield served


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with served_with(escalate_below=0.7, calibrated=True, agrees=lambda text, _: "red" not in text) as served:
        yield served


def chat(served: Served, **options):
    return served.client.chat.completions.create(
        model="fake", messages=HELLO, **{"max_tokens": 6, "temperature": 0} | options
    )


def test_a_choice_carries_confidence_agreement_and_escalate(served):
    choice = chat(served).choices[0]
    text = expected(max_tokens=6).text
    assert choice.message.content == text
    assert choice.logprobs is None  # the client has not asked for them
    assert choice.confidence == pytest.approx(SURE, abs=1e-6)
    assert (choice.escalate, choice.agreement) == (True, "red" not in text)
    assert len(chat(served, logprobs=True).choices[0].logprobs.content) == 6
    texts = served.client.completions.create(model="fake", prompt=["a", "b"], max_tokens=3, temperature=0)
    assert [each.confidence for each in texts.choices] == pytest.approx([SURE] * 2, abs=1e-6)


def test_a_streams_last_chunk_carries_them(served):
    chunks = list(chat(served, stream=True, n=2, temperature=1, seed=3, stream_options={"include_usage": True}))
    endings = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert [(each.index, each.escalate) for each in endings] == [(0, True), (1, True)]
    assert all(each.confidence == pytest.approx(SURE, abs=1e-6) for each in endings)
    assert not any(chunk.choices[0].logprobs for chunk in chunks if chunk.choices)
    whole = chat(served, n=2, temperature=1, seed=3)
    for index in range(2):
        parts = [c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(parts) == whole.choices[index].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_majority_needs_samples():
    with served_with("majority") as served:
        with pytest.raises(openai.BadRequestError, match="n must be 2 or more"):
            chat(served)
        choices = chat(served, n=3, temperature=1, seed=5).choices
        texts = [each.message.content.strip() for each in choices]
        assert [each.confidence for each in choices] == pytest.approx(
            [texts.count(text) / 3 for text in texts], abs=1e-6
        )
        assert not hasattr(choices[0], "escalate")


def test_an_unsure_answer_is_another_models():
    with serve() as larger, ServerModel(larger.url, "fake") as model:
        with served_with(escalate_below=0.7, larger=model) as served:
            choice = chat(served).choices[0]
            assert (choice.escalate, choice.answered_by) == (True, "fake")
            assert choice.confidence == pytest.approx(SURE, abs=1e-6)
            chunks = [chunk.choices[0] for chunk in chat(served, stream=True)]
            assert "".join(each.delta.content or "" for each in chunks) == choice.message.content
            assert chunks[-1].answered_by == "fake"
        with served_with(escalate_below=0.5, larger=model) as served:
            assert not hasattr(chat(served).choices[0], "answered_by")


def test_an_answer_stays_where_the_larger_model_fails():
    with serve() as larger:
        model = ServerModel(larger.url, "fake", max_retries=0)
    with model, served_with(escalate_below=0.7, larger=model) as served:
        choice = chat(served).choices[0]
        assert choice.message.content == expected(max_tokens=6).text
        assert (choice.escalate, choice.escalation_error) == (True, "fake did not answer")


@pytest.mark.parametrize("prompt", ["a", (1, 2)])
def test_a_larger_model_that_is_slow_or_of_another_vocabulary_is_not_waited_for(prompt):
    async def silent(_):
        await asyncio.sleep(60)

    larger = SimpleNamespace(name="large", complete=silent)
    served = trust(escalate_below=0.7, larger=larger, patience=0.01)
    result = Result((Sample("b", "stop", logprobs=(TokenLogprob(None, "b", -0.5),)),))
    rated = asyncio.run(served.rated(Request(prompt=prompt), result, silent))
    assert [sample.text for sample in rated.result.samples] == ["b"]
    assert rated.fields[0]["escalation_error"] == "large did not answer"


def test_metrics_count_answers_and_follow_drift():
    metrics = Metrics("fake")
    trust(metrics=metrics, calibrated=True)
    for number in range(FEWEST):
        metrics.rated(0.9, 0.1, number < 20, number < 5 or None)
    metrics.rated(0.9, 0.1, False, False)
    values = dict(re.findall(r"^(smallr:\w+)\{[^}]*\} (\S+)$", metrics.text().decode(), re.MULTILINE))
    assert (float(values["smallr:answers_total"]), float(values["smallr:escalations_total"])) == (FEWEST + 1, 20)
    assert float(values["smallr:disagreements_total"]) == 1
    assert float(values["smallr:confidence_psi"]) == pytest.approx(EDGE.psi([0.9] * (FEWEST + 1)))
    assert float(values["smallr:length_psi"]) == pytest.approx(EDGE.psi([0.1] * (FEWEST + 1)))
    assert math.isnan(EDGE.psi([]))


# --- command line


def generate(capsys, *flags: str) -> list[dict]:
    drawn = ["--format=json", "--max_tokens=8", "--temperature=1", "--seed=1"]
    assert main(["generate", "--model=tiny-random", "What is 12 + 30?", *drawn, *flags]) == 0
    return json.loads(capsys.readouterr().out)["samples"]


@pytest.fixture
def tiny(loaded, monkeypatch):
    monkeypatch.setattr("smallr.language.loading.load_engine", lambda *_, **__: loaded)
    return loaded.engine


def test_generate_carries_confidence_and_abstains(tiny, capsys, tmp_path):
    (sample,) = generate(capsys, "--confidence=answer", "--answer=all")
    values = [each[0] for each in generate(capsys, "--logprobs=0")[0]["logprobs"]]
    assert sample["confidence"] == pytest.approx(math.exp(sum(values) / len(values)), abs=1e-4)
    assert set(sample) == {"text", "finish_reason", "token_ids", "confidence", "agreement"}
    (sample,) = generate(capsys, "--answer=all", "--abstain_below=1")  # the measure is then `answer`
    assert sample["abstain"] is True
    fitted(temperature=3.0).save(tmp_path / "calibration.json")
    (calibrated,) = generate(capsys, f"--calibration={tmp_path}")
    assert calibrated["confidence"] == pytest.approx(
        1 / (1 + math.exp(-math.log(sample["confidence"] / (1 - sample["confidence"])) / 3)), abs=1e-4
    )
    assert main(["generate", "--model=tiny-random", "--format=text", "--max_tokens=8", "Hi", "--abstain_below=1"]) == 0
    assert re.fullmatch(r"\[no answer: the confidence of 0\.\d\d is below 1\.00\]\n", capsys.readouterr().out)


@pytest.mark.parametrize("measure", ["majority", "p_true"])
def test_generate_measures_what_needs_more_than_one_completion(tiny, capsys, measure):
    samples = generate(capsys, f"--confidence={measure}", "--answer=all", "--n=3")
    texts = [sample["text"].strip() for sample in samples]
    for sample, text in zip(samples, texts, strict=True):
        if measure == "majority":
            assert sample["confidence"] == pytest.approx(texts.count(text) / 3, abs=1e-6)
        else:
            assert 0 <= sample["confidence"] <= 1


def fails(capsys, *argv: str) -> str:
    assert main(list(argv)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    return said[-1]


def test_flags_that_do_not_fit(capsys, tmp_path):
    model, ask = "--model=tiny-random", "Hi"
    assert "--escalate_below, the confidence" in fails(capsys, "serve", model, "--escalate_to=http://127.0.0.1:9/v1")
    assert "--abstain_below: it has no effect with --interactive" in fails(
        capsys, "generate", model, "--interactive", "--abstain_below=0.5"
    )
    assert "there is no calibration" in fails(capsys, "generate", model, ask, f"--calibration={tmp_path}")
    assert "--order=answer_first: a benchmark says what an answer is" in fails(
        capsys, "generate", model, ask, "--order=answer_first"
    )
    assert "benchmark 'gsm9k' is not known" in fails(capsys, "generate", model, ask, "--answer=gsm9k")
    assert "--separator: it has no effect without --order" in fails(
        capsys, "generate", model, ask, "--answer=gsm8k", "--separator=-->"
    )
    fitted("choice", "piqa").save(tmp_path / "calibration.json")
    assert "for options by likelihood (piqa)" in fails(capsys, "generate", model, ask, f"--calibration={tmp_path}")


def test_the_calibration_in_the_models_folder_is_applied_unless_it_is_for_something_else(tmp_path):
    fitted("answer", "gsm8k").save(tmp_path / "calibration.json")
    given = {"model": str(tmp_path), "answer": None, "escalate_below": None, "order": None, "separator": ""}

    def made(**flags) -> Rater | None:
        options = Namespace(**({"confidence": None, "calibration": None} | given | flags))
        return cli_trust.make_rater(options, "escalate_below")[0]

    assert (made().measure, made().calibration) == ("answer", fitted("answer", "gsm8k"))
    assert made(confidence="p_true").calibration is None
    assert made(calibration="none") is None
    assert made(calibration="none", escalate_below=0.5).measure == "answer"
    fitted("choice", "piqa").save(tmp_path / "calibration.json")
    assert made() is None
    fitted("majority", "gsm8k").save(tmp_path / "calibration.json")
    assert made() is None  # requests for one completion are answered as before
    assert made(confidence="majority").calibration == fitted("majority", "gsm8k")


def test_a_file_in_the_working_folder_is_nobodys_calibration(tmp_path, monkeypatch):
    fitted().save(tmp_path / "calibration.json")
    monkeypatch.chdir(tmp_path)
    assert calibrations.of_model("") is None


def test_a_rationale_is_compared_with_the_answer_in_the_order_that_is_given():
    given = {"model": "", "calibration": "none", "escalate_below": None, "confidence": "majority", "answer": "gsm8k"}
    options = Namespace(**given, order="answer_first", separator="-->", given=set())
    rater, end = cli_trust.make_rater(options, "escalate_below")
    texts = ("42 --> 12 + 30 = 42", "42 --> 12 + 30 = 43", "42 --> there is no number")
    result = Result(tuple(Sample(text, "stop") for text in texts))
    with contextlib.closing(SimpleNamespace(close=end)):
        answers = rater.answers(result)
        ratings = rater.rate(result, answers, {})
    assert [(answer.value, answer.span) for answer in answers] == [("42", (0, 2))] * 3  # not the last number
    options = Namespace(**given, order="rationale_first", separator="-->", given=set())
    rater, end = cli_trust.make_rater(options, "escalate_below")
    with contextlib.closing(SimpleNamespace(close=end)):
        (answer,) = rater.answers(Result((Sample("8 apples less 0 are --> 8", "stop"),)))
    assert (answer.value, answer.span) == ("8", (24, 25))  # not the first 8, which is the rationale's
    assert [rating.agreement for rating in ratings] == [True, False, None]
