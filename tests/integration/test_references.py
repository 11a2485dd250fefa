"""Reference log-probs: computed once, found again, read from rows, or moving with the policy."""

from __future__ import annotations

import contextlib
import io

import datasets
import jax
import numpy as np
import pytest
from flax import nnx

from smallr.cli.main import main
from smallr.core import cache
from smallr.core.errors import UserError
from smallr.data.sources import load_rows
from smallr.training import cached_scores
from smallr.training import policy as policy_module
from smallr.training import trainer as trainer_module
from smallr.training.scoring import ScoreOptions, score_rows, write_scores
from smallr.training.trainer import Trainer
from tests.runs import final_arrays, metrics, smoke, train

PAIRS = "builtin:arithmetic/preference"


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The smoke run's training rows, scored by the command, in a folder."""
    out = tmp_path_factory.mktemp("scored") / "rows"
    flags = ["--model=tiny-random", f"--data={PAIRS}", "--split=train[:32]", f"--out={out}", "--row_length=512"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["score", *flags]) == 0
    assert "token_logps_chosen" in printed.getvalue()
    return out


@pytest.mark.slow
def test_scores_are_those_of_every_row_and_sum_up(scored):
    rows, source = datasets.load_from_disk(str(scored)), load_rows(PAIRS, "train[:32]")
    assert rows["prompt"][:] == source["prompt"][:]
    for completion in ("chosen", "rejected"):
        for total, tokens, text in zip(
            rows[f"ref_{completion}"], rows[f"token_logps_{completion}"], rows[completion], strict=True
        ):
            assert total == pytest.approx(sum(tokens), rel=1e-5)
            assert len(tokens) > len(text) / 8
            assert max(tokens) < 0


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(UserError, match="must be one of: preference, sft, completions, rationale"):
        score_rows(ScoreOptions("tiny-random", PAIRS, kind="unpaired"))


def _prepare(trainer: Trainer) -> None:
    """What a run does up to its reference, but for its step, which is not compiled."""
    with jax.set_mesh(trainer.mesh), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "foresee", lambda _: None)
        trainer.plan()
        trainer.load()
        trainer.enter_round()
        trainer.prepare_reference()


class Computed(Exception):
    """The reference would be computed, which takes its time: that it would be is all that a test wants to know."""


@pytest.fixture
def cached(small_model, tmp_path, monkeypatch):
    """Whether the log-probs of some rows are found in the cache by a run with these changes."""
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    rows = load_rows(PAIRS, "train[:6]")
    rows.to_json(tmp_path / "a.jsonl")
    changed = lambda row, i: {"chosen": row["chosen"] + " Yes." * (i == 3)}  # noqa: E731
    rows.map(changed, with_indices=True).to_json(tmp_path / "b.jsonl")

    def run(data="a.jsonl", *, fill=False, **changes) -> bool:
        fields = {"data.train": str(tmp_path / data), "data.train_split": "train", "data.eval": "", **changes}
        fields |= {"model": small_model, "data.chat": False, "batch.row_length": changes.get("batch.row_length", 768)}
        with monkeypatch.context() as patch, Trainer(smoke("dpo", **fields), tmp_path / "run") as trainer:
            if not fill:
                patch.setattr(cached_scores, "_compute", lambda *_: (_ for _ in ()).throw(Computed))
            try:
                _prepare(trainer)
            except Computed:
                return False
            return True

    run(fill=True)
    return run


@pytest.mark.slow
def test_a_cached_reference_is_found_again_and_missed_after_any_change_of_its_bits(cached, monkeypatch):
    """Weights, template, a row; and all that decides how sums are rounded, so that no run depends on another one."""
    assert cached(), "the same once more"
    assert cached(**{"optimizer.learning_rate": 1.0, "epochs": 7, "objective.beta": 0.3})
    assert not cached("b.jsonl")
    for field, value in {
        "seed": 1,
        "batch.rows": 4,
        "batch.row_length": 800,
        "batch.packing": False,
        "batch.share_prompt": False,
        "batch.scored": 700,
        "compute.dtype": "bfloat16",
        "compute.logp_chunk": 300,
        "objective.ld_alpha": 0.5,
    }.items():
        assert not cached(**{field: value}), field
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0.1")
        assert not cached()
    load = policy_module.load_decoder

    def with_another_weight(*args, **options):
        graphdef, params = nnx.split(load(*args, **options))
        leaves, tree = jax.tree.flatten(params)
        leaves[0] = leaves[0].at[(1,) * leaves[0].ndim].add(1e-3)
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))

    monkeypatch.setattr(policy_module, "load_decoder", with_another_weight)
    assert not cached()


@pytest.mark.slow
def test_a_damaged_or_unwritable_cache_is_warned_of(cached, tmp_path, monkeypatch, caplog):
    (entry,) = (tmp_path / "cache" / "reference").iterdir()
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    assert not cached()
    assert f"{entry} is damaged" in caplog.text
    entry.write_bytes(content[:40])
    assert not cached()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "whole_file", full)
        assert cached(fill=True)
    assert "No space left on device" in caplog.text
    assert cached(fill=True)
    assert cached()


@pytest.mark.slow
def test_a_run_ends_in_the_same_bits_whichever_run_filled_the_cache(small_model, tmp_path, monkeypatch):
    """In bfloat16 the order of a sum shows in the weights at once."""

    def run(cache: str, seed: int):
        monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / cache))
        changes = {"model": small_model, "data.eval": "", "eval_every": 0, "steps": 2, "seed": seed, "data.chat": False}
        return train(smoke("cogpo", **changes), tmp_path / f"{cache}-{seed}")

    run("alone", 1)
    run("shared", 2)
    run("shared", 1)
    alone, after = final_arrays(tmp_path / "alone-1"), final_arrays(tmp_path / "shared-1")
    assert alone.keys() == after.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert len(list((tmp_path / "shared" / "reference").iterdir())) == 2


@pytest.mark.slow
def test_a_short_run_scores_the_rows_of_its_steps_and_a_longer_one_the_rest(small_model, tmp_path, monkeypatch):
    def values(cache: str, steps: int):
        """The columns of the training rows, and how many batches were scored for them."""
        monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / cache))
        changes = {"model": small_model, "data.eval": "", "data.chat": False, "steps": steps, "batch.rows": 1}
        batches = []
        with monkeypatch.context() as patch, Trainer(smoke("dpo", **changes), tmp_path / f"{cache}-{steps}") as trainer:
            compute = cached_scores._compute
            patch.setattr(cached_scores, "_compute", lambda *given: batches.append(len(given[1])) or compute(*given))
            _prepare(trainer)
            plan, columns = trainer.training.plan, trainer.training.columns
            taken = [example for step in range(steps) for row in plan.step(step) for example in row]
            whole = plan.num_steps(1)
        return np.stack([columns["ref_chosen"], columns["ref_rejected"]]), batches, taken, whole

    first, batches, taken, whole = values("short", 2)
    assert batches == [2]
    assert whole > 3
    assert set(np.flatnonzero(np.isfinite(first).all(axis=0))) == set(taken) < set(range(first.shape[1]))
    assert values("short", 2)[1] == []
    second, batches, taken, _ = values("short", 3)
    assert batches == [1]
    assert set(np.flatnonzero(np.isfinite(second).all(axis=0))) == set(taken)
    last, batches, _, _ = values("short", whole + 1)
    assert batches == [whole - 3]
    together, batches, _, _ = values("long", whole + 1)
    assert batches == [whole]
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(last, together)
    assert values("long", 2)[1] == []


@pytest.mark.slow
def test_the_evaluation_before_training_is_kept_as_the_reference_is(small_model, tmp_path, monkeypatch):
    """Until weights, rows or anything else that its numbers depend on is another: beta is in no program."""
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer_module, "foresee", lambda _: None)  # no step is taken
    collected, passes = [], {name: getattr(cached_scores, name) for name in ("collect", "_compute")}
    for name, whole in passes.items():
        monkeypatch.setattr(cached_scores, name, lambda *given, run=whole: collected.append(1) or run(*given))

    def baseline(**changes):
        fields = {"model": small_model, "data.chat": False, "batch.row_length": 768, **changes}
        collected.clear()
        with Trainer(smoke("dpo", **fields), tmp_path / "run") as trainer:
            trainer.prepare()
            trainer.evaluate_before()
            return trainer.baseline["metrics"], len(collected)

    first, computed = baseline()
    assert computed == 3  # log-probs of both sets of rows, and the evaluation
    again, computed = baseline(steps=1, **{"optimizer.learning_rate": 1.0})
    assert (again, computed) == (first, 0)
    steeper, computed = baseline(**{"objective.beta": 0.3})
    assert computed == 1
    assert steeper.keys() == first.keys()
    live, computed = baseline(**{"objective.reference": "live"})
    assert computed == 1  # which is not kept
    assert live["loss"] == pytest.approx(first["loss"], rel=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_is_extended_while_it_is_open_scores_the_rows_of_its_new_steps(small_model, tmp_path):
    changes = {"optimizer.schedule": "constant", "optimizer.warmup": 0.0, "batch.rows": 1, "eval_every": 0}
    config = smoke("dpo", **changes, **{"model": small_model, "data.chat": False, "data.eval": "", "steps": 2})
    with Trainer(config, tmp_path / "run") as trainer:
        trainer.fit(until=1)
        assert np.isnan(trainer.training.columns["ref_chosen"]).any()
        with config.unlocked():
            config.steps = 4
        trainer.fit()
    assert np.isfinite([line["loss"] for line in metrics(tmp_path / "run")]).all()
    assert len(metrics(tmp_path / "run")) == 4
