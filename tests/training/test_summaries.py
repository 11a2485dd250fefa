"""Host-side averages by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from smallr.training.summaries import RankCorrelation, likelihood_summary, preference_summary, summary_by_order


def test_preference_summary_by_hand():
    values = {
        "loss": np.array([1.0, 2.0, 3.0, 4.0]),
        "reward_chosen": np.array([1.0, 0.0, 2.0, 0.0]),
        "reward_rejected": np.array([0.0, 1.0, 0.5, 0.0]),
        "ratio_chosen": np.array([10.0, 0.0, 4.0, 0.0]),
        "ratio_rejected": np.array([0.0, 2.0, 1.0, 0.0]),
        "logp_chosen": np.array([-4.0, -4.0, -4.0, -4.0]),
        "logp_rejected": np.array([-5.0, -3.0, -5.0, -3.0]),
    }
    lengths = {"scored_chosen": np.array([4, 4, 4, 2]), "scored_rejected": np.array([4, 2, 10, 2])}
    summary = preference_summary(values, {"gap": np.array([0, 0, 2, 2]), **lengths})
    assert summary["per_token_accuracy"] == 0.5
    assert summary["per_token_accuracy/small"] == 1.0
    assert summary["per_token_accuracy/large"] == 0.0
    assert summary["margin"] == pytest.approx((1 - 1 + 1.5 + 0) / 4)
    assert summary["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert summary["kl"] == pytest.approx(-17 / 8)
    assert summary["accuracy/small"] == 0.5
    assert summary["accuracy/large"] == 0.75
    assert summary["loss/large"] == 3.5
    assert not any("medium" in name for name in summary)


def test_likelihood_summary_by_hand():
    summary = likelihood_summary(
        {
            "loss": np.array([1.0, 5.0, 2.0, 2.0]),
            "nll_answer": np.array([1.0, 1.0, 2.0, 0.0]),
            "nll_answer_tokens": np.array([1.0, 1.0, 2.0, 1.0]),
            "nll_rationale": np.array([0.0, 4.0, 0.0, 2.0]),
            "nll_rationale_tokens": np.array([0.0, 10.0, 0.0, 2.0]),
        }
    )
    assert summary["hardest_quarter_share"] == 0.5
    assert summary["nll_answer"] == 1.0
    assert summary["nll_answer_token"] == 0.8
    assert summary["nll_rationale_token"] == 0.5


def test_rank_correlation_is_spearman_over_the_window_of_examples_with_both_parts():
    rng = np.random.default_rng(0)
    answer, rationale = rng.normal(size=30), rng.normal(size=30)
    tokens = np.ones(30)
    tokens[5] = 0
    tracker = RankCorrelation(10)
    for part in np.split(np.arange(30), 3):
        tracker.add(
            {
                "nll_answer": answer[part],
                "nll_rationale": rationale[part],
                "nll_answer_tokens": np.ones(10),
                "nll_rationale_tokens": tokens[part],
            }
        )
        if part[0] == 0:
            kept = np.delete(np.arange(10), 5)
            assert tracker.value() == pytest.approx(stats.spearmanr(answer[kept], rationale[kept]).statistic)
    assert tracker.value() == pytest.approx(stats.spearmanr(answer[20:], rationale[20:]).statistic)


def test_rank_correlation_without_enough_examples_is_none():
    assert RankCorrelation(5).value() is None
    with pytest.raises(ValueError, match="window"):
        RankCorrelation(1)


def test_both_orders_are_told_apart():
    values = {
        "loss": np.array([1.0, 2.0, 3.0, 4.0]),
        "nll_answer": np.array([1.0, 2.0, 3.0, 4.0]),
        "nll_answer_tokens": np.array([1.0, 1.0, 3.0, 2.0]),
        "nll_rationale": np.array([10.0, 20.0, 0.0, 40.0]),
        "nll_rationale_tokens": np.array([5.0, 5.0, 0.0, 5.0]),
    }
    found = summary_by_order(values, {"order": np.array([0.0, 1.0, 0.0, 1.0])})
    assert found["nll_answer/answer_first"] == 2
    assert found["nll_answer_token/answer_first"] == 1
    assert found["nll_rationale_token/answer_first"] == 2
    assert found["nll_answer/rationale_first"] == 3
    assert found["nll_rationale/rationale_first"] == 30
    assert not summary_by_order(values, {})
