"""Utilities from packed, shared rows are those of each rationale by itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from smallr.core.journal import Journal
from smallr.core.sharding import make_mesh
from smallr.data.saving import save_rows
from smallr.language.loading import load_trained
from smallr.methods.collate.data import opened
from smallr.methods.collate.modes import ANSWER, GIVEN
from smallr.methods.collate.utility import UtilityScorer, score_rationales
from tests.methods.collate.small import MODES, ROWS, write_model

OPTIONS = {"form": "mean", "rows": 2, "row_length": 256, "dtype": "float32"}
RATIONALES = [[f"{s} + {number} = {number * 7 + s}.", "no", None] for s, number in enumerate(range(6))]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "model")


LENGTH = 64


@jax.jit
def hidden_states(decoder, tokens, positions, horizon):
    return decoder(tokens, positions, horizon)[0]


def by_hand(model: str, texts: list[tuple[str, str]]) -> list[np.ndarray]:
    """Log-probs of the tokens of each completion behind its prompt, one text at a time, with a plain softmax."""
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(model, mesh, dtype="float32")
        tokenizer, found = source.tokenizer(), []
        for prompt, completion in texts:
            ids = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
            first = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            tokens = np.asarray([ids + [0] * (LENGTH - len(ids))])  # tokens behind a text do not change it
            hidden = hidden_states(decoder, tokens, np.arange(LENGTH)[None], np.full((1, LENGTH), len(ids)))
            logits = np.asarray(hidden, np.float64) @ np.asarray(decoder.unembedding(), np.float64).T
            logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            found.append(np.asarray([logps[i - 1, ids[i]] for i in range(first, len(ids))]))
    return found


def expected(model: str) -> list[list[np.ndarray | None]]:
    values = []
    for row, rationales in zip(ROWS, RATIONALES, strict=False):
        prompts = [MODES.prompt(ANSWER, row["question"])]
        prompts += [MODES.prompt(GIVEN, row["question"], text) for text in rationales if text]
        values.append([*by_hand(model, [(prompt, MODES.written_answer(row["answer"])) for prompt in prompts]), None])
    return values


@pytest.mark.slow
def test_packed_and_shared_equals_one_by_one(model):
    rows = ROWS[: len(RATIONALES)]
    logps = expected(model)
    for form, exp in (("mean", lambda x: np.exp(x.mean())), ("sum", lambda x: np.exp(x.sum()))):
        found = UtilityScorer(model, MODES, {**OPTIONS, "form": form})(rows, RATIONALES)
        for number, values in enumerate(found):
            assert values[-1] is None
            wanted = [exp(each) for each in logps[number][:-1]]
            np.testing.assert_allclose(values[:-1], wanted, rtol=1e-5)
    one_by_one = UtilityScorer(model, MODES, {**OPTIONS, "form": "sum", "rows": 1})
    for row, rationales, values in zip(rows, RATIONALES, found, strict=True):
        alone = [one_by_one([row], [[text]])[0] for text in rationales[:2]]
        np.testing.assert_allclose(values[:-1], [alone[0][0], alone[0][1], alone[1][1]], rtol=1e-5)
    assert len({value for values in found for value in values[:-1]}) > 10  # they are not all alike


def test_equal_rationales_have_equal_utilities_and_long_ones_none(model):
    scorer = UtilityScorer(model, MODES, {**OPTIONS, "row_length": 64})
    found = scorer(ROWS[:2], [["same", "same", "other"], ["1 + 1 = 2. " * 12, "short", None]])
    assert found[0][1] == found[0][2] != found[0][3]
    assert found[1] == [None] * 4
    assert "tokens/s" in scorer.speed()


@pytest.mark.slow
def test_scoring_keeps_finished_blocks(tmp_path, model, monkeypatch):
    table = [{"text": "a", "usable": True, "problem": ""}, {"text": "", "usable": False, "problem": "empty"}]
    save_rows(table, tmp_path / "written")
    given = [{"rows": tmp_path / "written"}] * 2
    monkeypatch.setattr("smallr.methods.collate.utility._BLOCK", 1)
    (tmp_path / "a").mkdir()
    value = score_rationales(tmp_path / "a", model, ROWS[:2], given, MODES, OPTIONS)
    assert value["counts"] == {"rows in": 2, "scored": 2, "too long": 0}
    assert [row["utilities"][1] for row in opened(value)] == [opened(value)[0]["utilities"][0], None]
    journal = Journal(tmp_path / "a" / "journal.jsonl")
    assert set(journal.entries()) == {"0", "1"}
    monkeypatch.setattr("smallr.methods.collate.utility.UtilityScorer", None)  # nothing is scored twice
    assert score_rationales(tmp_path / "a", model, ROWS[:2], given, MODES, OPTIONS) == value
