"""Scores of any number of completions of a prompt, packed behind it, against each in a row of its own."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from flax import nnx

from smallr.core.sharding import make_mesh
from smallr.data.batch import ROLE_ANSWER, Completion, Example
from smallr.data.drops import DropReport
from smallr.data.token_set import TokenSet, write
from smallr.training.scoring import ScoreOptions, Scorer, score_rows
from tests.tiny import VOCAB, decoder


def ragged_examples(counts=(5, 1, 3, 2)) -> list[Example]:
    rng = np.random.default_rng(0)

    def completion() -> Completion:
        tokens = rng.integers(0, VOCAB, rng.integers(2, 9)).astype(np.int32)
        return Completion(tokens, np.full(len(tokens), ROLE_ANSWER, np.int32))

    return [
        Example(rng.integers(0, VOCAB, 9).astype(np.int32), tuple(completion() for _ in range(count)), {}, i)
        for i, count in enumerate(counts)
    ]


def scores_of(examples, folder, scorer, row_length):
    write(folder, examples, DropReport("rows", 100))
    found = dict(scorer.token_logps(TokenSet(folder), rows=2, row_length=row_length))
    return [found[i] for i in range(len(examples))]


def test_completions_of_one_prompt_score_as_one_by_one(tmp_path):
    scorer = Scorer(nnx.merge(*decoder()), make_mesh(1, 1, 1))
    examples = ragged_examples()
    packed = scores_of(examples, tmp_path / "packed", scorer, 96)
    singles = [Example(e.prefix, (c,), {}, 0) for e in examples for c in e.completions]
    alone = scores_of(singles, tmp_path / "single", scorer, 18)
    flat = [logps for example in packed for logps in example]
    assert [len(example) for example in packed] == [5, 1, 3, 2]
    for ours, (theirs,) in zip(flat, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.std(np.concatenate(flat)) > 0.1


def test_rows_of_completions_get_lists(tmp_path):
    prompt = "How many apples are left?"
    texts = ["Three.", "There are 4 apples left, I think.", "5"]
    rows = datasets.Dataset.from_list(
        [
            {"prompt": prompt, "completions": texts},
            {"prompt": "2?", "completions": ["2"]},
            {"prompt": "", "completions": ["a"]},
        ]
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    pairs = [{"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}]
    datasets.Dataset.from_list(pairs).to_parquet(tmp_path / "pairs.parquet")
    scored = score_rows(
        ScoreOptions("tiny-random", str(tmp_path / "rows.parquet"), kind="completions", rows=2, row_length=128)
    )
    of_pair = score_rows(ScoreOptions("tiny-random", str(tmp_path / "pairs.parquet"), rows=2, row_length=128))
    assert [value and len(value) for value in scored["ref_completions"]] == [3, 1, None]
    np.testing.assert_allclose(
        scored["ref_completions"][0][:2], [of_pair["ref_chosen"][0], of_pair["ref_rejected"][0]], rtol=1e-5
    )
    tokens = scored["token_logps_completions"]
    assert tokens[2] is None
    assert [sum(values) for values in tokens[0]] == pytest.approx(scored["ref_completions"][0], rel=1e-5)
    np.testing.assert_allclose(tokens[0][1], of_pair["token_logps_rejected"][0], atol=1e-4)
