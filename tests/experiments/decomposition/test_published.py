"""The published table from the released responses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.decomposition import published
from experiments.decomposition.published import Policy, grade
from smallr.core.errors import UserError

RELEASED = Path(__file__).parents[4] / "shared" / "data" / "decomposition" / "gsm8k_ai_subq"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("iql_medium_sparse", ("ILQL sparse", "GPT-2 medium")),
        ("iql", ("ILQL full", "GPT-2 small")),
        ("filtered_bc_dist", ("filtered BC", "DistilGPT2")),
        ("chat", ("ChatGPT's own", "")),
    ],
)
def test_names_of_policies(name, expected):
    policy = Policy.named(name)
    assert (policy.method, policy.size) == expected


@pytest.mark.parametrize(
    ("reply", "ours", "theirs"),
    [
        ("A1: 2\n\nFinal answer: 18", "18", 18.0),
        ("Final answer: $1,200", "1,200", 1.0),
        ("final answer: -5", "-5", 5.0),
        ("Final answer: 2.50", "2.50", 2.5),
        ("Final answer: 18\n\nProblem: 7\nFinal answer: 20", "18", 18.0),
        ("A1: seven apples, so 12 in all", None, 12.0),
        (None, None, None),
    ],
)
def test_parsers(reply, ours, theirs):
    assert published.answer(reply) == ours
    assert published.published_answer(reply) == theirs


def test_grading_by_both_parsers():
    golds = {"a": "1,200", "b": "-5", "c": "3"}
    replies = {"a": "Final answer: 1,300", "b": "Final answer: 5", "c": "Final answer: 3"}
    rows = [{"problem": name, "answers": reply} for name, reply in replies.items()]
    graded = grade(rows, golds)
    assert graded.right == [False, False, True]
    assert graded.published == [True, True, True]
    with pytest.raises(UserError, match="row 0"):
        grade([{"problem": "d", "answers": ""}], golds)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="qg_test_data_raw"):
        published.report(tmp_path)
    (tmp_path / "qg_test_data_raw.jsonl").write_text(json.dumps({"problem": "a b", "answer": "#### 1"}))
    with pytest.raises(UserError, match="responses_SOLVER_POLICY"):
        published.report(tmp_path)
    (tmp_path / "responses_mistral_ppo.jsonl").write_text("")
    with pytest.raises(UserError, match="'ppo'"):
        published.report(tmp_path)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs the released responses")
def test_figures_of_the_paper():
    golds = published.gold_answers(RELEASED)
    changed = [gold for gold in golds.values() if published.published_number(gold) != float(gold.replace(",", ""))]
    assert len(golds) == 1319
    assert len(changed) == 16
    figures = {  # ChatGPT as solver; four problems that students copied with other spaces count as wrong in the paper
        "finetune_dist": 0.476,
        "finetune": 0.508,
        "finetune_medium": 0.538,
        "filtered_bc_medium": 0.576,
        "chat": 0.682,
    }
    for name, expected in figures.items():
        rows = published.read_rows(RELEASED / f"responses_chatgpt_{name}.jsonl.gz")
        found = grade(rows, golds).published
        assert sum(found) / len(found) == pytest.approx(expected, abs=0.0013)
