"""Candidates are judged from a log that does not hold them: what is found where the answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.decomposition import off_policy
from experiments.decomposition.off_policy import ESTIMATES, Written, candidates, features, learnt_q, same_text
from experiments.decomposition.released import Policy
from smallr.core.errors import UserError

COUNT = 400


def written(rng: np.random.Generator, good: float) -> Written:
    """A policy that writes `useful` with a probability; a useful text is answered rightly nine times in ten, others one in ten."""
    useful = rng.random(COUNT) < good
    right = rng.random(COUNT) < np.where(useful, 0.9, 0.1)
    return Written(["useful" if each else "useless" for each in useful], right, useful[:, None].astype(float))


@pytest.fixture(scope="module")
def responses() -> dict[Policy, Written]:
    rng = np.random.default_rng(0)
    shares = {
        ("BC", "a"): 0.5,
        ("BC", "b"): 0.4,
        ("filtered BC", "a"): 0.9,
        ("ILQL full", "a"): 0.2,
        ("ILQL sparse", "a"): 0.6,
    }
    return {Policy(*policy): written(rng, share) for policy, share in shares.items()}


def test_every_estimate_ranks_policies_that_differ_in_what_is_described(responses):
    found = candidates(responses, ("BC",))
    every, real = np.arange(COUNT), [each.right.mean() for each in found]
    assert [each.policy.method for each in found] == ["filtered BC", "ILQL full", "ILQL sparse"]
    for name in ESTIMATES:
        estimates = [each.estimate(name, every) for each in found]
        assert np.argsort(estimates).tolist() == np.argsort(real).tolist(), name
        assert np.abs(np.subtract(estimates, real)).max() < 0.08, name
    ranks = {row["estimate"]: row for row in off_policy.ranks_of(found, 20)}
    assert {row["choice"] for row in ranks.values()} == {"filtered BC, a"}
    assert {row["pairs of one size"] for row in ranks.values()} == {"3/3"}
    assert off_policy.ceiling(found, 20).value == 1.0


def test_q_is_learnt_on_other_problems(responses):
    log = [responses[Policy("BC", "a")]]
    number = np.arange(COUNT, dtype=float)[:, None]
    learnt = learnt_q([Written(log[0].texts, log[0].right, number)], 0)(Written(log[0].texts, log[0].right, number))
    assert abs(np.corrcoef(learnt, log[0].right)[0, 1]) < 0.2, "the number of a problem tells nothing of another one"


def test_ratios_of_the_same_text_are_those_of_a_mixture():
    def policy(*texts: str) -> Written:
        return Written(list(texts), np.zeros(len(texts), bool), np.zeros((len(texts), 1)))

    ratio = same_text(policy("a", "b", "c"), [policy("a", "b", "x"), policy("a", "y", "z")])
    assert ratio.tolist() == [[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]


def test_features_see_repeats_and_what_is_asked():
    problem = "Tom has 3 apples. How many apples does he eat in 2 days?"
    once = features(problem, "Q1: How many apples has Tom?\nQ2: How many apples does he eat in 2 days?")
    twice = features(problem, "Q1: How many apples has Tom?\nQ2: How many apples has Tom?")
    assert (once[0], once[3], twice[3]) == (2, 0, 1)
    assert once[6] == 1.0
    assert twice[6] < 0.7


def test_a_policy_of_other_problems_is_named(tmp_path):
    for policy, problem in (("finetune", "a"), ("iql", "b")):
        row = {"problem": problem, "questions": "Q1: ?", "answers": "Final answer: 1"}
        (tmp_path / f"responses_chatgpt_{policy}.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"responses_chatgpt_iql\.jsonl: other problems"):
        off_policy.read_responses(tmp_path, "chatgpt", {"a": "1", "b": "1"})
    (tmp_path / "qg_test_data_raw.jsonl").write_text(json.dumps({"problem": "a", "answer": "#### 1"}))
    with pytest.raises(UserError, match="--solvers: 'mistral' must be one of: chatgpt"):
        off_policy.report(tmp_path, ["mistral"], 2)
