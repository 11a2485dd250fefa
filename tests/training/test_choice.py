"""The choice between two tokens: loss, gradient and metrics by closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.encode import choice_example
from smallr.losses import TokenScores
from smallr.training.objectives.choice import Choice
from smallr.training.summaries import choice_summary
from tests.tiny import batch_of

LABELS = np.array([1, 0, 0, 0, 1], np.float32)


def case(objective: Choice):
    """Five rows in two packed rows, with random log-probs of both choices."""
    rng = np.random.default_rng(0)
    examples = [
        choice_example([5, 6, 7][: 1 + i % 3], (3, 9), {"label": float(label)}, i) for i, label in enumerate(LABELS)
    ]
    batch = batch_of([[0, 1, 2], [3, 4]], examples, objective.columns({"label": LABELS}))
    logps = np.where(batch.role > 0, rng.uniform(-6, -1, batch.role.shape), 0).astype(np.float32)
    both = np.zeros((5, 2))
    for r, n in zip(*np.nonzero(batch.role > 0), strict=True):
        choice, p = divmod(int(batch.completion[r, n]), batch.example.shape[1])
        both[batch.example[r, p], choice] = logps[r, n]
        assert batch.target[r, n] == (3, 9)[choice]
    return jax.tree.map(jnp.asarray, batch), jnp.asarray(logps), both


def test_it_is_the_cross_entropy_of_the_two_alone():
    objective = Choice(balanced=False)
    batch, logps, both = case(objective)
    total, values = objective(TokenScores(logps, None), batch, None)
    shares = np.exp(both) / np.exp(both).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(5), LABELS.astype(int)])
    np.testing.assert_allclose(total / objective.denominator(batch), expected.mean(), rtol=1e-6)
    real = np.asarray(batch.example) >= 0
    np.testing.assert_allclose(np.asarray(values["loss"])[real], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(values["loss"])[~real], 0)
    # The two predictors are one and the same position: both completions follow the last token of the prompt.
    assert all(
        len(set(row[role > 0].tolist())) == count
        for row, role, count in zip(batch.logit_position, batch.role, (3, 2), strict=True)
    )


def test_balanced_labels_have_the_same_total_and_mean_weight_one():
    weights = Choice().columns({"label": LABELS})["choice_weight"]
    assert weights[LABELS == 1].sum() == pytest.approx(weights[LABELS == 0].sum())
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_array_equal(Choice().columns({"label": np.ones(3)})["choice_weight"], 1)
    batch, logps, both = case(Choice())
    total, _ = Choice()(TokenScores(logps, None), batch, None)
    nll = np.logaddexp(0, np.where(LABELS > 0, -1, 1) * (both[:, 1] - both[:, 0]))
    by_label = [nll[label == LABELS].mean() for label in (0, 1)]
    np.testing.assert_allclose(total / Choice().denominator(batch), np.mean(by_label), rtol=1e-6)


def test_metrics_against_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(1)
    logit, label = rng.normal(size=40), rng.integers(0, 2, 40).astype(float)
    found = choice_summary({"logit": logit, "label": label})
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(label, logit))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(label, logit > 0))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(label, logit > 0))
    assert found["second_share"] == np.mean(logit > 0)
    assert found["second_label_share"] == label.mean()
    assert "auc" not in choice_summary({"logit": logit, "label": np.ones(40)})


def test_a_field_too_many():
    with pytest.raises(UserError, match="objective choice has no such field"):
        Choice.from_fields(ConfigDict({"name": "choice", "balanced": True, "beta": 1}))
