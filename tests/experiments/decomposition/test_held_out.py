"""Students of our own on held-out problems of the published test half."""

from __future__ import annotations

import json

import pytest

from experiments.decomposition.held_out import released_policies, report, split_rows, values_of
from smallr.core.errors import UserError

PROBLEMS = [f"Tom has {n} apples and eats one. How many are left?" for n in range(2, 12)]
REFERENCE = ["How many apples does Tom have?", "How many are left?"]


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def released(tmp_path):
    """Writes ten problems, and two sets of sub-questions of one policy."""
    rewards = {"answer_correctness": 1.0, "usefulness": []}
    text = "\n".join(f"Q{number}: {each}" for number, each in enumerate(REFERENCE, 1))
    published = [{"question": each, "answers": REFERENCE, "rewards": rewards, "true_answer": 1.0} for each in PROBLEMS]
    write(tmp_path / "qg_test_dataset.jsonl", published)
    raw = [{"problem": each, "questions": [text], "answers": [""], "answer": "#### 1"} for each in PROBLEMS]
    write(tmp_path / "qg_test_data_raw.jsonl", raw)
    for solver, asked in (("chatgpt", text), ("mistral", f"Q1: {REFERENCE[1]}\nQ2: {REFERENCE[1]}")):
        rows = [{"problem": each, "questions": asked, "answers": ""} for each in PROBLEMS]
        write(tmp_path / f"responses_{solver}_filtered_bc.jsonl", rows)
    return tmp_path


def test_each_problem_is_on_one_side_and_stays_there(released):
    train, test = split_rows(released, 4)
    assert (len(train), len(test)) == (6, 4)
    assert sorted(row["question"] for row in train + test) == sorted(PROBLEMS)
    assert [row["answer"] for row in test] == ["#### 1"] * 4
    rows = (released / "qg_test_dataset.jsonl").read_text().splitlines(keepends=True)
    (released / "qg_test_dataset.jsonl").write_text("".join(reversed(rows)))
    assert split_rows(released, 4)[1] == test
    with pytest.raises(UserError, match="10 problems"):
        split_rows(released, 10)


def test_scores_are_those_of_the_sub_questions(released):
    _, test = split_rows(released, 4)
    key = {row["question"]: "".join(row["question"].split()) for row in test}
    perfect = values_of({each: REFERENCE for each in key.values()}, test)
    expected = {"granularity": 1.0, "bleu": 1.0, "repeated": 0.0, "sub-questions": 2.0}
    assert perfect == {name: pytest.approx([value] * 4) for name, value in expected.items()}
    with pytest.raises(UserError, match="no sub-questions of"):
        values_of({}, test)


def test_the_page_has_students_and_both_released_sets(released, tmp_path):
    _, test = split_rows(released, 4)
    folder = tmp_path / "student"
    folder.mkdir()
    rows = [{"problem": row["question"], "questions": f"Q1: {REFERENCE[0]}\nQ2: {REFERENCE[1]}"} for row in test]
    write(folder / "solved.jsonl", rows)
    assert len(released_policies(released)) == 2
    page = report(released, {"BC": folder}, test)
    assert "| BC | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] | 2.000 [2.000, 2.000] |" in page
    start = "| filtered BC, GPT-2 small, asked of mistral"
    repeated = next(line for line in page.splitlines() if line.startswith(start))
    assert repeated.split(" | ")[3] == "1.000 [1.000, 1.000]"
    assert f"{start} | +0.000 [+0.000, +0.000]" in page.split("minus BC")[1]
    with pytest.raises(UserError, match="is missing"):
        report(released, {"BC": tmp_path}, test)
