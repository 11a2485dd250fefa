"""Evaluations with confidences: records, reports, calibration on one split and use on another, comparison, mistakes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.evals.config import base
from smallr.evals.evaluation import evaluate
from smallr.evals.store import read_samples
from smallr.sampling.requests import Request, Result, Sample, TokenLogprob, Usage
from tests.evals.fakes import FakeModel, FakeScorer
from tests.evals.test_evaluation import sums, write


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    """Drawing takes longer than all the rest; one test looks at it."""
    if request.node.name != DRAWS:
        monkeypatch.setattr("smallr.evals.trust.report.can_plot", lambda: False)


DRAWS = "test_confidence_of_the_answers_tokens_and_its_report"


def number(prompt: str) -> int:
    return int(prompt.split("What is ")[1].split()[0])


class SureModel(FakeModel):
    """Says "So 7" or "So 2 i" with a log-prob for its number; three of four are right, and those are surer."""

    def __init__(self, verdicts: bool = True):
        super().__init__(lambda prompt: prompt)
        self._verdicts = verdicts

    def _one(self, request: Request) -> Result:
        prompt = request.messages[0]["content"]
        index = number(prompt)
        if "Proposed answer" in prompt:
            if not self._verdicts:
                return Result(error="400: logprobs are not supported here")
            right = f"Proposed answer: {2 * index}\n" in prompt
            top = (("True", math.log(0.75)), ("False", math.log(0.25)))
            return Result(
                (Sample("True", "length", (1,), (TokenLogprob(1, "True", -0.1, top if right else top[1:]),)),)
            )
        sure = math.log(0.9 - 0.001 * (index % 40) if index % 4 else 0.6)
        samples = []
        for sample in range(request.params.n):
            wrong = index % 4 == 0 or sample > 2
            words = (("So", -5.0), (" 7" if wrong else f" {2 * index}", sure), ("", -7.0))
            logprobs = (
                tuple(TokenLogprob(None, *pair) for pair in words) if request.params.logprobs is not None else None
            )
            samples.append(Sample("".join(word for word, _ in words), "stop", (1, 2, 3), logprobs))
        return Result(tuple(samples), Usage(5, 3 * len(samples)))


def gsm8k(tmp_path: Path, rows: list, measure: str = "answer_joint", **fields):
    config = base("gsm8k")
    config.data, config.confidence.measure = write(tmp_path / f"rows{len(rows)}.jsonl", rows), measure
    config.update(fields)
    return config


def test_confidence_of_the_answers_tokens_and_its_report(tmp_path):
    model = SureModel()
    results = evaluate(gsm8k(tmp_path, sums(40)), tmp_path / "out", model=model)
    samples = read_samples(tmp_path / "out")
    assert samples[1]["confidence"] == samples[1]["measured"] == pytest.approx(0.899)
    assert samples[1]["measures"] == pytest.approx({"answer": 0.899, "answer_joint": 0.899})
    assert samples[1]["answer_span"] == [3, 4]
    assert "logprobs" not in samples[1]
    figures = {name: each["value"] for name, each in results["trust"]["figures"].items()}
    assert figures["accuracy"] == 0.75
    assert (figures["auroc"], figures["coverage@1%"], figures["coverage@10%"]) == (1.0, 0.75, 0.75)
    assert (tmp_path / "out" / "trust.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["trust"] == results["trust"]
    asked = len(model.requests)
    assert evaluate(gsm8k(tmp_path, sums(40)), tmp_path / "out", model=model) == results
    assert len(model.requests) == asked  # log-probs are in the journal: nothing is asked again


def test_majority_and_verdicts(tmp_path):
    config = gsm8k(tmp_path, sums(8), "majority")
    config.sampling.n = 4
    evaluate(config, tmp_path / "majority", model=SureModel())
    assert [record["confidence"] for record in read_samples(tmp_path / "majority")[4:8]] == [0.75, 0.75, 0.75, 0.25]
    model = SureModel()
    results = evaluate(gsm8k(tmp_path, sums(8), "p_true"), tmp_path / "true", model=model)
    assert [record["confidence"] for record in read_samples(tmp_path / "true")[:2]] == pytest.approx([0.0, 0.75])
    assert len(model.requests) == 16
    assert results["trust"]["figures"]["auroc"]["value"] == 1.0
    assert evaluate(gsm8k(tmp_path, sums(8), "p_true"), tmp_path / "true", model=model) == results
    assert len(model.requests) == 16  # answers and verdicts are in the journal: nothing is asked again


def test_answers_without_log_probs_are_refused_for_a_measure_made_of_them(tmp_path):
    evaluate(gsm8k(tmp_path, sums(8), ""), tmp_path / "out", model=SureModel())
    with pytest.raises(UserError, match=r"holds answers without log-probs, .* majority and p_true can be had"):
        evaluate(gsm8k(tmp_path, sums(8), "answer"), tmp_path / "out", model=SureModel())
    model = SureModel()
    evaluate(gsm8k(tmp_path, sums(8), "p_true"), tmp_path / "out", model=model)
    assert len(model.requests) == 8  # the verdicts alone


def test_a_calibration_of_one_split_is_applied_to_another(tmp_path, capsys):
    fit, test = tmp_path / "fit", tmp_path / "test"
    evaluate(gsm8k(tmp_path, sums(120)), fit, model=SureModel())
    before = evaluate(gsm8k(tmp_path, sums(160)[120:]), test, model=SureModel())["trust"]
    assert main(["calibrate", str(fit), "--method=isotonic"]) == 0
    assert "fitted on 120 answers to 120 questions" in capsys.readouterr().out
    config = gsm8k(tmp_path, sums(160)[120:])
    config.confidence.calibration = str(fit)
    after = evaluate(config, tmp_path / "after", model=SureModel())["trust"]
    assert (after["calibration"]["method"], after["questions_of_the_fit"]) == ("isotonic", 0)
    assert after["figures"]["ece"]["value"] < 0.05 < before["figures"]["ece"]["value"]
    config = gsm8k(tmp_path, sums(120))
    config.confidence.update(calibration=str(fit / "calibration.json"), measure="")  # the calibration's measure
    assert evaluate(config, fit, model=SureModel())["trust"]["questions_of_the_fit"] == 120
    assert main(["compare", str(test), str(tmp_path / "after")]) == 0
    shown = capsys.readouterr().out
    assert "answer_joint, by isotonic" in shown
    assert [line.split()[-4] for line in shown.splitlines() if line.split()[:1] == ["ece"]] == ["differ"]


@pytest.mark.parametrize(
    ("count", "method", "message"),
    [
        (8, "temperature", "needs answers to at least 30 questions, there are 8"),
        (40, "isotonic", "needs answers to at least 100 questions, there are 40.*use --method=temperature"),
    ],
)
def test_a_split_that_is_too_small_is_refused(tmp_path, capsys, count, method, message):
    evaluate(gsm8k(tmp_path, sums(count), sampling={"n": 4, "temperature": 1.0}), tmp_path / "out", model=SureModel())
    assert main(["calibrate", str(tmp_path / "out"), f"--method={method}"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(message, said)


def test_a_fit_needs_confidences_and_answers_of_both_kinds(tmp_path, capsys):
    evaluate(gsm8k(tmp_path, sums(40), ""), tmp_path / "none", model=SureModel())
    assert main(["calibrate", str(tmp_path / "none")]) == 1
    assert "has no confidences: evaluate with --config.confidence.measure" in capsys.readouterr().err
    rows = [row for i, row in enumerate(sums(60)) if i % 4]
    evaluate(gsm8k(tmp_path, rows), tmp_path / "right", model=SureModel())
    assert main(["calibrate", str(tmp_path / "right")]) == 1
    assert "all 45 answers are right" in capsys.readouterr().err


def test_a_server_without_log_probs_is_told_what_remains(tmp_path):
    class Mute(SureModel):
        def _one(self, request):
            return Result(
                error="the server gave no log-probs, though asked for (logprobs=0): ask without, or elsewhere"
            )

    with pytest.raises(UserError, match="without them there is majority"):
        evaluate(gsm8k(tmp_path, sums(8)), tmp_path / "out", model=Mute())
    with pytest.raises(UserError, match="without them there is majority"):
        evaluate(gsm8k(tmp_path, sums(8), "p_true"), tmp_path / "true", model=SureModel(verdicts=False))


@pytest.mark.parametrize(
    ("measure", "calibration", "message"),
    [
        ("sure", "", "must be one of: answer, answer_joint, majority, p_true"),
        ("majority", "", "needs several samples: --config.sampling.n=5"),
        ("answer", "nowhere.json", "there is no calibration; smallr calibrate"),
    ],
)
def test_mistakes_of_the_config(tmp_path, measure, calibration, message):
    config = gsm8k(tmp_path, sums(2), measure)
    config.confidence.calibration = calibration
    with pytest.raises(UserError, match=message):
        evaluate(config, tmp_path / "out", model=SureModel())


def test_likelihoods_have_the_chosen_options_share(tmp_path):
    rows = [{"question": f"q{i}", "choices": ["no", "yes"], "gold": 1} for i in range(3)]
    config = base("piqa")
    config.data = write(tmp_path / "rows.jsonl", rows)
    model = FakeScorer(lambda context, option: math.log(0.08) if "yes" in option else math.log(0.02))
    results = evaluate(config, tmp_path / "out", model=model)
    assert results["trust"]["measure"] == "choice"
    wanted = {"acc": 0.8, "acc_norm": 0.08 ** (1 / 3) / (0.08 ** (1 / 3) + 0.02 ** (1 / 2))}[results["metric"]]
    assert [record["confidence"] for record in read_samples(tmp_path / "out")] == pytest.approx([wanted] * 3)


def test_a_temperature_of_options_divides_their_scores(tmp_path, capsys):
    """The model leads the right option by ln 9 in 2 of 3 questions: at the fitted temperature it is 2/3 sure."""
    rows = [{"question": f"q{i}", "choices": ["is", "no"], "gold": int(i % 3 == 0)} for i in range(60)]
    config = base("piqa")
    config.data = write(tmp_path / "rows.jsonl", rows)
    model = FakeScorer(lambda _, option: 2 * math.log(9) if "is" in option else 0.0)  # divided by two characters or not
    before = evaluate(config, tmp_path / "fit", model=model)
    assert main(["calibrate", str(tmp_path / "fit")]) == 0
    assert "temperature" in capsys.readouterr().out
    config.confidence.calibration = str(tmp_path / "fit")
    after = evaluate(config, tmp_path / "fit", model=model)["trust"]["figures"]
    assert before["trust"]["figures"]["confidence"]["value"] > 0.85
    assert after["confidence"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    assert after["ece"]["value"] == pytest.approx(0, abs=1e-5)
