"""The published table from the released responses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.decomposition import published, released
from experiments.decomposition.published import Graded, grade
from experiments.decomposition.released import Policy
from experiments.decomposition.text_scores import PUBLISHED, scores, sets_of, text_scores
from smallr.core.errors import UserError
from smallr.methods.decomposition.answers import final_number, published_answer, published_number
from smallr.methods.decomposition.raw import read_numbered

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
    assert final_number(reply) == ours
    assert published_answer(reply) == theirs


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


def test_every_pair_of_policies_is_in_one_of_the_tables():
    policies = [Policy(method, size) for size in ("a", "b") for method in ("BC", "filtered BC")]
    policies.append(Policy("ChatGPT's own", ""))
    graded = {("mistral", policy): Graded([index > 2] * 12, []) for index, policy in enumerate(policies)}
    tables = [published.comparisons(graded, "mistral", one_size=each).splitlines()[2:] for each in (True, False)]
    assert [len(table) for table in tables] == [2, 8]
    assert "| filtered BC, b | BC, b | 12 | 0 | 0.00049 | differ |" in tables[0]
    assert "| filtered BC, a | BC, a | 0 | 0 | 1 |  |" in tables[0]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_text_scores_tell_sets_of_sub_questions_apart(tmp_path):
    reference = ["Q1: How many pens has Tom now?\nQ2: How many pens has he in all?"]
    write_rows(tmp_path / "qg_test_data_raw.jsonl", [{"problem": "p", "questions": reference, "answer": "#### 1"}])
    for solver, text in (
        ("chatgpt", reference[0]),
        ("mistral", reference[0]),
        ("llama7b", "Q1: Why?\nQ2: Why?\nQ3: How?"),
    ):
        write_rows(tmp_path / f"responses_{solver}_finetune.jsonl", [{"problem": " p", "questions": text}])
    found = sets_of(tmp_path)
    assert sorted(found.values()) == [["chatgpt", "mistral"], ["llama7b"]]
    page = text_scores(tmp_path)
    assert "| BC, GPT-2 small | chatgpt, mistral | 1.000 / 1.000 / 0.000 | 0.724 / 0.475 / 0.131 |" in page
    assert "| BC, GPT-2 small | llama7b | 0.667 / 0.000 / 1.000 |" in page


@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs the released responses")
def test_text_scores_of_the_paper():
    rows = {released.key_of(row["problem"]): row for row in released.teacher_rows(RELEASED)}
    reference = {key: read_numbered(row["questions"][0]) for key, row in rows.items()}
    texts = released.read_rows(RELEASED / "responses_llama7b_finetune_dist.jsonl.gz")
    found = scores([(released.key_of(row["problem"]), row["questions"]) for row in texts], reference)
    assert found == pytest.approx(PUBLISHED["BC", "DistilGPT2"], abs=0.0006)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs the released responses")
def test_figures_of_the_paper():
    golds = released.gold_answers(RELEASED)
    changed = [gold for gold in golds.values() if published_number(gold) != float(gold.replace(",", ""))]
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
        rows = released.read_rows(RELEASED / f"responses_chatgpt_{name}.jsonl.gz")
        found = grade(rows, golds).published
        assert sum(found) / len(found) == pytest.approx(expected, abs=0.0013)
