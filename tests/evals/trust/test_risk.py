"""Figures of confidence against numbers by hand, brute force and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from smallr.evals.statistics import pass_at_1
from smallr.evals.trust import risk
from smallr.evals.trust.comparing import differences
from smallr.evals.trust.fitting import fit_isotonic, fit_option_temperature, fit_temperature
from smallr.evals.trust.report import reliability, risk_coverage, summarise
from smallr.evals.trust.risk import Sorted
from smallr.language.calibration import apply


def value(figure, confidence, correct, **options) -> float:
    answers = Sorted.of(confidence, correct)
    return float(figure(answers, answers.ones(), **options)[0])


def test_by_hand():
    confidence, correct = [0.95, 0.85, 0.85, 0.35], [1, 1, 0, 0]
    assert value(risk.brier, confidence, correct) == pytest.approx((0.05**2 + 0.15**2 + 0.85**2 + 0.35**2) / 4)
    # Bins [0.9, 1]: 1 against 0.95; [0.8, 0.9): 0.5 against 0.85, two answers; [0.3, 0.4): 0 against 0.35.
    assert value(risk.ece, confidence, correct) == pytest.approx((0.05 + 2 * 0.35 + 0.35) / 4)
    # The tied pair is a right one first or a wrong one first: (0, 0, 1/3, 1/2) or (0, 1/2, 1/3, 1/2).
    assert value(risk.aurc, confidence, correct) == pytest.approx((0 + 1 / 4 + 1 / 3 + 1 / 2) / 4)
    assert value(risk.auroc, confidence, correct) == pytest.approx((2 + 1 + 0.5) / 4)
    assert value(risk.coverage_at, confidence, correct, risk=0.05) == 0.25  # the tied pair comes whole
    assert value(risk.coverage_at, confidence, correct, risk=1 / 3) == 0.75
    assert value(risk.coverage_at, [0.9, 0.8], [0, 1], risk=0.1) == 0
    assert value(risk.ece, [1.0, 0.0], [1, 0]) == 0


def test_aurc_is_the_mean_over_all_orders_of_ties():
    rng = np.random.default_rng(0)
    for _ in range(5):
        confidence, correct = rng.integers(0, 3, 6) / 2, rng.integers(0, 2, 6)
        areas = []
        for order in itertools.permutations(range(6)):
            if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
                errors = np.cumsum(1 - correct[list(order)])
                areas.append(np.mean(errors / np.arange(1, 7)))
        assert value(risk.aurc, confidence, correct) == pytest.approx(np.mean(areas))


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    confidence = rng.integers(0, 20, 300) / 19
    correct = rng.random(300) < confidence
    assert value(risk.auroc, confidence, correct) == pytest.approx(metrics.roc_auc_score(correct, confidence))
    assert value(risk.brier, confidence, correct) == pytest.approx(metrics.brier_score_loss(correct, confidence))


def test_weights_are_repetitions():
    rng = np.random.default_rng(2)
    confidence, correct = rng.integers(0, 8, 40) / 8, rng.integers(0, 2, 40)
    counts = rng.integers(0, 4, 40)
    answers = Sorted.of(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    repeated = Sorted.of(np.repeat(confidence, counts), np.repeat(correct, counts))
    for name, figure in risk.FIGURES.items():
        weighted = figure(answers, counts[order][None])[0]
        assert weighted == pytest.approx(figure(repeated, repeated.ones())[0]), name


def test_a_bootstrap_draws_questions_with_all_their_samples():
    rng = np.random.default_rng(3)
    right = rng.random(400) < 0.7
    alone = Sorted.of(np.full(400, 0.7), right)
    twice = Sorted.of(np.full(800, 0.7), np.repeat(right, 2), np.repeat(np.arange(400), 2))
    (first,), (second,) = risk.bootstrap([alone], 500), risk.bootstrap([twice], 500)
    np.testing.assert_allclose(first["accuracy"], second["accuracy"])  # repeating a sample brings no certainty
    low, high = risk.interval(first["accuracy"])
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.12)


# --- calibration


def test_isotonic_regression_is_scikit_learns():
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(4)
    confidence = rng.integers(1, 60, 300) / 60
    correct = (rng.random(300) < confidence**2).astype(float)
    wanted = isotonic.IsotonicRegression(out_of_bounds="clip").fit(confidence, correct)
    grid = np.linspace(0, 1, 500)
    found = apply("isotonic", fit_isotonic(confidence, correct), grid)
    np.testing.assert_allclose(found, wanted.predict(grid), atol=1e-12)


def test_isotonic_regression_by_hand():
    found = fit_isotonic(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert found["confidence"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found["probability"] == pytest.approx([0, 0.5, 0.5, 1])


def test_the_temperature_has_a_closed_form_for_one_confidence():
    """Where all answers have confidence c and a share a is right, sigmoid(logit(c) / T) = a."""
    c, a = 0.9, 0.7
    found = fit_temperature(np.full(100, c), np.repeat([1.0, 0.0], [70, 30]))["temperature"]
    assert found == pytest.approx(np.log(c / (1 - c)) / np.log(a / (1 - a)), rel=1e-5)


def test_a_temperature_is_found_again():
    rng = np.random.default_rng(5)
    logits = rng.normal(0.5, 2, 20_000)
    correct = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    confidence = 1 / (1 + np.exp(-3 * logits))  # three times too sure
    assert fit_temperature(confidence, correct)["temperature"] == pytest.approx(3, rel=0.05)


def test_the_temperature_of_options_has_a_closed_form_where_one_has_all_the_lead():
    """Where one option of three leads by d and is right in a share a, exp(d / T) / (exp(d / T) + 2) = a."""
    d, a = 3.0, 0.6
    found = fit_option_temperature([[d, 0.0, 0.0]] * 10, [0] * 6 + [1] * 2 + [2] * 2)["temperature"]
    assert found == pytest.approx(d / np.log(2 * a / (1 - a)), rel=1e-5)


# --- report and comparison


def records(confidence, correct) -> list[dict]:
    pairs = enumerate(zip(confidence, correct, strict=True))
    return [
        {"id": str(i), "prompt": f"q{i}", "reason": "", "confidence": float(c), "correct": bool(y)}
        for i, (c, y) in pairs
    ]


def test_the_report_has_the_points_of_both_curves():
    rng = np.random.default_rng(6)
    confidence = rng.random(300)
    correct = rng.random(300) < confidence
    answers = Sorted.of(confidence, correct)
    bins = reliability(answers)
    assert sum(each["answers"] for each in bins) == 300
    assert sum(each["answers"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / 300 == pytest.approx(
        value(risk.ece, confidence, correct)
    )
    curve = risk_coverage(answers)
    assert curve[-1]["coverage"] == 1
    assert curve[-1]["risk"] == pytest.approx(1 - correct.mean())
    found = summarise(
        [*records(confidence, correct), {"id": "x", "prompt": "", "reason": "no result"}], "correct", "answer", None
    )
    assert found["answers"] == 300
    low, high = found["figures"]["brier"]["interval"]
    assert low < found["figures"]["brier"]["value"] < high
    assert summarise([{"id": "x", "prompt": "", "reason": "no result"}], "correct", "answer", None) is None


def test_the_curve_has_the_thresholds_of_the_coverages():
    rng = np.random.default_rng(8)
    confidence = rng.random(3000)
    answers = Sorted.of(confidence, rng.random(3000) < confidence)
    points = [point["coverage"] for point in risk_coverage(answers)]
    assert len(points) < 210
    for name in ("coverage@5%", "coverage@10%"):
        assert 0 < float(risk.FIGURES[name](answers, answers.ones())[0]) in points


def test_bins_of_the_diagram_have_intervals_over_questions():
    confidence, correct = np.full(40, 0.65), np.repeat([1.0, 0.0], 20)
    (alone,) = reliability(Sorted.of(confidence, correct))
    assert alone["interval"] == list(pass_at_1([[each] for each in correct]).interval())
    (repeated,) = reliability(Sorted.of(confidence, correct, np.repeat(range(4), 10)))
    assert repeated["interval"] == list(pass_at_1([[1.0] * 10, [1.0] * 10, [0.0] * 10, [0.0] * 10]).interval())
    assert repeated["interval"][0] < alone["interval"][0]


def test_an_answer_that_is_surely_wrong_is_an_answer():
    found = records([0.0, 0.0, 0.5], [0, 0, 1])
    wrong = summarise(found[:2], "correct", "answer", None)["figures"]["accuracy"]
    assert (wrong["value"], wrong["interval"]) == (0, list(pass_at_1([[0], [0]]).interval()))  # not 0 to 0
    for record, measured, span in zip(found, (0.2, 0.0, 0.5), ([0, 1], None, [0, 1]), strict=True):
        record.update(measured=measured, answer_span=span)
    assert summarise(found, "correct", "answer", None)["without_answer"] == 1


def test_a_figure_that_is_not_defined_does_not_differ():
    a, b = records([0.2, 0.9, 0.6], [1, 1, 1]), records([0.4, 0.5, 0.6], [1, 1, 1])
    found = {each.name: each for each in differences(a, b, "correct", [record["id"] for record in a])}
    assert math.isnan(found["auroc"].low)
    assert not found["auroc"].differs


def test_two_models_are_compared_on_the_same_questions():
    rng = np.random.default_rng(7)
    truth = rng.random(500)
    correct = rng.random(500) < truth
    good, blind = records(truth, correct), records(rng.random(500), correct)
    ids = [str(i) for i in range(500)]
    found = {each.name: each for each in differences(good, blind[::-1], "correct", ids)}
    assert found["accuracy"].b == found["accuracy"].a
    assert not found["accuracy"].differs
    for name in ("brier", "aurc", "auroc", "ece"):
        assert found[name].differs, name
        assert found[name].p_value < 0.01, name
    assert found["brier"].low < found["brier"].b - found["brier"].a < found["brier"].high
    same = differences(good, good, "correct", ids)
    assert not any(each.differs for each in same)
    assert differences(good, [{**r, "confidence": None} for r in blind], "correct", ids) == []


def test_the_interval_of_a_difference_is_paired():
    """The same wrong answers in both models cancel; unpaired the interval would be several times wider."""
    rng = np.random.default_rng(8)
    correct = rng.random(400) < 0.5
    a, b = records(np.full(400, 0.6), correct), records(np.full(400, 0.5), correct)
    brier = next(each for each in differences(a, b, "correct", [str(i) for i in range(400)]) if each.name == "brier")
    gaps = (0.5 - correct) ** 2 - (0.6 - correct) ** 2
    assert (brier.high - brier.low) / 2 == pytest.approx(1.96 * stats.sem(gaps), rel=0.1)
