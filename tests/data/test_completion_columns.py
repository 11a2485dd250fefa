"""Rows of any number of completions, and numbers of completions and tokens, from rows to batches."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from smallr.data.drops import DropReport
from smallr.data.errors import DataError
from smallr.data.packing import PackingPlan, Sizes
from smallr.data.pipeline import assemble
from smallr.data.rows import parse_rows
from smallr.data.token_set import TokenSet, merge, write
from smallr.data.tokenize import TokenizeOptions
from tests.data.tokens import whole

QUESTION = {"role": "user", "content": "How many apples?"}
ROWS = [
    {"prompt": "How many apples?", "completions": [" 12 apples", " 7", " 12 or 7"], "score": [0.5, 1.0, -1.0]},
    {"prompt": "Which?", "completions": [" no"], "score": [2.0]},
    {
        "prompt": "What is this?",
        "completions": [" the answer", " the answer", " 19", " yes", " Tom"],
        "score": [1.0] * 5,
    },
]


def with_rewards(rows, examples, name="reward"):
    """The rows with a list of distinct numbers for the scored tokens of each completion."""
    counts = [[len(completion.scored) for completion in example.completions] for example in examples]
    lists = [[[r + s / 10 + t / 100 for t in range(n)] for s, n in enumerate(row)] for r, row in enumerate(counts)]
    return [{**row, name: own} for row, own in zip(rows, lists, strict=True)]


@pytest.mark.parametrize("chat", [False, True])
def test_completions_are_those_of_single_rows(run, chat):
    tokens = run(ROWS, kind="completions", chat=chat)
    assert [len(example.completions) for example in tokens] == [3, 1, 5]
    assert (tokens.completion_lengths > 0).sum(axis=1).tolist() == [3, 1, 5]
    singles = [{"prompt": row["prompt"], "completion": text} for row in ROWS for text in row["completions"]]
    found = [whole(example, s) for example in tokens for s in range(len(example.completions))]
    assert found == [whole(example) for example in run(singles, chat=chat)]
    sizes = Sizes.from_lengths(tokens.prefix_lengths, tokens.completion_lengths, tokens.num_scored)
    for name, values in vars(Sizes.of(tokens)).items():
        np.testing.assert_array_equal(getattr(sizes, name), values)


def test_pairs_are_two_completions(run):
    pairs = [{"prompt": "Which?", "chosen": " no", "rejected": " yes it is"}]
    listed = [{"prompt": "Which?", "completions": [" no", " yes it is"]}]
    (pair,), (example,) = run(pairs), run(listed, kind="completions")
    assert [whole(pair, s) for s in (0, 1)] == [whole(example, s) for s in (0, 1)]


def test_chats_and_rows_that_are_dropped():
    rows = [
        {
            "prompt": [QUESTION],
            "completions": [[{"role": "assistant", "content": "4"}], [{"from": "gpt", "value": "5"}]],
        },
        {"prompt": "2 + 2?", "completions": []},
        {"prompt": "2 + 2?", "completions": None},
        {"prompt": "2 + 2?", "completions": ["4", " "]},
        {"prompt": "", "completions": ["4"]},
    ]
    report = DropReport("rows.jsonl", 100)
    (row,) = parse_rows(rows, "completions", report)
    assert row.prompt == (QUESTION,)
    assert [turn["content"] for (turn,) in row.completions] == ["4", "5"]
    dropped = {reason: tally.rows for reason, tally in report.dropped.items()}
    assert dropped == {"no completion": [1, 2], "empty completion": [3], "empty prompt": [4]}
    with pytest.raises(DataError, match=r"rows.jsonl, row 0, column 'completions': expected a list of texts"):
        list(parse_rows([{"prompt": "a", "completions": "b"}], "completions", report))


def test_numbers_reach_the_batch(run):
    rows = with_rewards(ROWS, run(ROWS, kind="completions"))
    tokens = run(rows, kind="completions", completion_columns=("score",), token_columns=("reward",))
    plan = PackingPlan(Sizes.of(tokens), 1, 80)
    seen = 0
    for n in range(plan.num_steps(1)):
        batch = assemble(plan.step(n), tokens, plan.shape, {})
        per_row = batch.example.shape[1]
        for p, index in enumerate(batch.example[0]):
            for s in range(len(rows[index]["completions"]) if index >= 0 else 0):
                member = (batch.completion[0] == s * per_row + p) & (batch.role[0] > 0)
                expected = np.asarray(rows[index]["reward"][s], np.float32)
                np.testing.assert_array_equal(batch.token_columns["reward"][0, member], expected)
                assert batch.completion_columns["score"][0, s, p] == np.float32(rows[index]["score"][s])
                assert batch.completion_columns["weight"][0, s, p] == 1
                seen += 1
    assert seen == 9


def test_numbers_are_part_of_the_fingerprint(run):
    names = {"kind": "completions", "completion_columns": ("score",)}
    changed = [{**ROWS[0], "score": [0.5, 1.0, 3.0]}, *ROWS[1:]]
    assert (
        len({run(rows, **names).fingerprint for rows in (ROWS, changed)} | {run(ROWS, kind="completions").fingerprint})
        == 3
    )


def test_pairs_and_single_completions_have_token_columns(run):
    pair = {"prompt": "Which?", "chosen": " no", "rejected": " yes"}
    (example,) = run([pair])
    lists = {
        f"teacher_{name}": [float(n)] * len(completion.scored)
        for n, (name, completion) in enumerate(zip(("chosen", "rejected"), example.completions, strict=True))
    }
    (example,) = run([{**pair, **lists}], token_columns=("teacher",))
    assert [set(completion.token_columns["teacher"].tolist()) for completion in example.completions] == [{0.0}, {1.0}]
    single = {"prompt": "Which?", "completion": " no"}
    rewards = [1.5] * len(run([single])[0].completions[0].scored)
    (example,) = run([{**single, "r": rewards}], token_columns=("r",))
    assert example.completions[0].token_columns["r"].tolist() == rewards
    with pytest.raises(
        DataError, match=r"row 0, column 'teacher_rejected': 1 numbers for the \d scored tokens of completion 1"
    ):
        run([{**pair, **lists, "teacher_rejected": [1.0]}], token_columns=("teacher",))


def test_merged_parts_equal_the_whole(run, tmp_path):
    rows = with_rewards(ROWS, run(ROWS, kind="completions"))
    one = run(rows, kind="completions", completion_columns=("score",), token_columns=("reward",))
    for number, part in enumerate(([one[0], one[1]], [one[2]])):
        write(tmp_path / f"{number}", part, DropReport("rows", 100))
    merge(tmp_path / "whole", [tmp_path / "0", tmp_path / "1"], DropReport("rows", 100))
    merged = TokenSet(tmp_path / "whole")
    assert merged.fingerprint == one.fingerprint
    for ours, theirs in zip(merged, one, strict=True):
        for a, b in zip(ours.completions, theirs.completions, strict=True):
            assert (a.tokens.tolist(), a.columns) == (b.tokens.tolist(), b.columns)
            np.testing.assert_array_equal(a.token_columns["reward"], b.token_columns["reward"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [1.0]}, r"row 0, column 'score': 1 values for 3 completions"),
        ({"score": ["a", "b", "c"]}, r"row 0, column 'score': expected a list of finite numbers"),
        ({"score": [1.0, 2.0, float("nan")]}, r"row 0, column 'score': expected a list of finite numbers"),
        ({"score": 1.0}, r"row 0, column 'score': expected a list of finite numbers"),
        (
            {"reward": [[1.0], [1.0], [1.0]]},
            r"row 0, column 'reward': 1 numbers for the \d+ scored tokens of completion 0",
        ),
        ({"reward": [[1.0]]}, r"row 0, column 'reward': 1 values for 3 completions"),
        ({"reward": [1.0, 2.0, 3.0]}, r"row 0, column 'reward': expected a list of finite numbers"),
        ({"reward": "abc"}, r"row 0, column 'reward': expected a list for each completion"),
    ],
)
def test_wrong_numbers_name_row_and_column(run, change, message):
    names = {"completion_columns": ("score",)} if "score" in change else {"token_columns": ("reward",)}
    with pytest.raises(DataError, match=message):
        run(datasets.Dataset.from_list([{**ROWS[0], **change}]), kind="completions", **names)


def test_columns_that_a_kind_cannot_have(run):
    for options, message in (
        (
            ("choice", {"token_columns": ("r",)}),
            "rows of the kind choice have none; the kind must be one of: preference, sft",
        ),
        (("sft", {"completion_columns": ("r",)}), "use the kind completions"),
        (("completions", {"completion_columns": ("r",), "token_columns": ("r",)}), "'r' is named twice"),
        (("completions", {"completion_columns": ("weight",)}), "'weight' is named twice or is the pipeline's own"),
    ):
        kind, fields = options
        with pytest.raises(DataError, match=message):
            TokenizeOptions(kind, 100, **({"choices": ("yes", "no")} if kind == "choice" else {}), **fields)
    with pytest.raises(DataError, match="need the column 'reward'; present prompt, completions, score"):
        run(ROWS, kind="completions", token_columns=("reward",))
