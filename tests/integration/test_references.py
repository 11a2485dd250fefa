"""Reference log-probs: computed once, found again, read from rows, or moving with the policy."""

from __future__ import annotations

import subprocess
import sys

import datasets
import jax
import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.data.sources import load_rows
from smallr.training.loop import train
from smallr.training.scoring import ScoreOptions, score_rows, write_scores
from tests.runs import ROOT, environment, final_arrays, metrics, smoke

PAIRS = "builtin:arithmetic/preference"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The smoke run's training rows, scored by the command, in a folder."""
    out = tmp_path_factory.mktemp("scored") / "rows"
    flags = ["--model=tiny-random", f"--data={PAIRS}", "--split=train[:32]", f"--out={out}", "--row_length=512"]
    command = [sys.executable, "-m", "smallr.cli.score", *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "token_logps_chosen" in done.stdout
    return out


def test_scores_are_those_of_every_row_and_sum_up(scored):
    rows, source = datasets.load_from_disk(str(scored)), load_rows(PAIRS, "train[:32]")
    assert rows["prompt"][:] == source["prompt"][:]
    for side in ("chosen", "rejected"):
        for total, tokens, text in zip(rows[f"ref_{side}"], rows[f"token_logps_{side}"], rows[side], strict=True):
            assert total == pytest.approx(sum(tokens), rel=1e-5)
            assert len(tokens) > len(text) / 8
            assert max(tokens) < 0


def test_rows_that_were_scored_elsewhere_train_as_with_a_cached_reference(scored, tmp_path):
    losses = {}
    for reference in ("cached", "columns"):
        changes = {"data.train": str(scored), "data.eval": "", "objective.reference": reference, "steps": 3}
        changes["data.train_split"] = "train"
        train(smoke("cogpo", **changes), tmp_path / reference)
        losses[reference] = [line["loss"] for line in metrics(tmp_path / reference)]
    assert losses["columns"][0] == pytest.approx(np.log(2), abs=1e-5)
    # A sum of 150 tokens is some -1600 nats here; in float32 the order of its terms shows in the fourth decimal.
    np.testing.assert_allclose(losses["columns"], losses["cached"], rtol=2e-4)


def test_rows_that_are_too_long_have_no_score_and_other_kinds_one_side():
    rows = score_rows(ScoreOptions("tiny-random", PAIRS, "test[:6]", row_length=200, rows=2))
    kept = [value is not None for value in rows["ref_chosen"]]
    assert True in kept
    assert False in kept
    assert [value is not None for value in rows["token_logps_rejected"]] == kept
    rationales = ScoreOptions("tiny-random", "builtin:arithmetic/rationale", "test[:2]", kind="rationale", rows=2)
    assert all(value < 0 for value in score_rows(rationales)["ref_completion"])


def test_scores_are_not_written_over_anything(tmp_path):
    with pytest.raises(UserError, match="exists: remove it"):
        write_scores(ScoreOptions("tiny-random", PAIRS), tmp_path)
    with pytest.raises(UserError, match="is none of preference, sft, rationale"):
        score_rows(ScoreOptions("tiny-random", PAIRS, kind="unpaired"))


def test_a_cached_reference_is_found_again_and_missed_after_any_change(tmp_path, monkeypatch):
    """Weights, template, tokenizer, a row: each of them is part of the key; in bfloat16 also what rounds."""
    from smallr.models import loading
    from smallr.training import evaluation, setup

    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    rows = load_rows(PAIRS, "train[:6]")
    rows.to_json(tmp_path / "a.jsonl")
    rows.map(lambda row, i: {"chosen": row["chosen"] + " Yes." * (i == 3)}, with_indices=True).to_json(
        tmp_path / "b.jsonl"
    )
    passes = []
    collect = evaluation.collect
    monkeypatch.setattr(evaluation, "collect", lambda *args: passes.append(1) or collect(*args))

    class Prepared(Exception):
        pass

    def stop(*_, **__):
        raise Prepared

    def computed(data="a.jsonl", tokenizer=None, weights=None, dtype="float32", version=jax.__version__) -> bool:
        """Whether preparing a run computes the reference."""
        with monkeypatch.context() as patch:
            patch.setattr(setup, "make_schedule", stop)  # the reference is all that is wanted
            patch.setattr(jax, "__version__", version)
            if tokenizer:
                plain = loading.ModelSource.tokenizer
                patch.setattr(loading.ModelSource, "tokenizer", lambda self: tokenizer(plain(self)))
            if weights:
                load = setup.load_decoder
                patch.setattr(setup, "load_decoder", lambda *args, **kwargs: weights(load(*args, **kwargs)))
            before = len(passes)
            changes = {"data.train": str(tmp_path / data), "data.train_split": "train", "data.eval": ""}
            with pytest.raises(Prepared):
                train(smoke("dpo", **changes, **{"compute.dtype": dtype}), tmp_path / "run")
            return len(passes) > before

    def new_template(tokenizer):
        tokenizer.chat_template = "Hello. " + tokenizer.chat_template
        return tokenizer

    def new_tokenizer(tokenizer):
        import json

        from tokenizers import Tokenizer

        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        definition["model"]["merges"] = definition["model"]["merges"][:20000]
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(definition))
        return tokenizer

    def new_weight(decoder):
        graphdef, params = nnx.split(decoder)
        leaves, tree = jax.tree.flatten(params)
        leaves[0] = leaves[0].at[(1,) * leaves[0].ndim].add(1e-3)
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))

    assert computed()
    assert not computed(), "the same once more"
    assert computed(data="b.jsonl")
    assert computed(tokenizer=new_template)
    assert computed(tokenizer=new_tokenizer)
    assert computed(weights=new_weight)
    assert not computed(version="0.0.1"), "the first is still there, and in float32 roundings do not matter"
    assert computed(dtype="bfloat16")
    assert not computed(dtype="bfloat16")
    assert computed(dtype="bfloat16", version="0.0.1")


def test_a_run_with_a_moving_reference_resumes_bit_for_bit(tmp_path):
    changes = {
        "objective.reference": "live",
        "objective.sync_every": 2,
        "objective.sync_mixing": 0.5,
        "optimizer.schedule": "constant",
        "optimizer.warmup": 0,
        "checkpoint.every": 1,
        "data.eval": "",
    }
    train(smoke("dpo", **changes, steps=5), tmp_path / "whole")
    train(smoke("dpo", **changes, steps=3), tmp_path / "parts")
    train(smoke("dpo", **changes, steps=5), tmp_path / "parts")
    whole, parts = final_arrays(tmp_path / "whole"), final_arrays(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert any(name.startswith("reference/") for name in whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
    moved = [
        np.abs(whole[n] - whole[n.replace("reference/", "params/")]).max() for n in whole if n.startswith("reference/")
    ]
    assert max(moved) > 0
    assert metrics(tmp_path / "whole")[1]["kl"] != 0
    assert [line["loss"] for line in metrics(tmp_path / "parts")] == [
        line["loss"] for line in metrics(tmp_path / "whole")
    ]
