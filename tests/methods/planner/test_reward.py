"""A reward head from a benchmark's rows to a judge: `smallr train planner/judge_reward`, then the discriminator `reward`."""

from __future__ import annotations

import math

import jax
import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.language.loading import load_trained
from smallr.methods.planner.config import base
from smallr.methods.planner.discriminators.base import Case
from smallr.methods.planner.discriminators.reward import Reward
from smallr.methods.planner.pipeline import run_planner
from smallr.methods.planner.prompts import RewardPrompt
from smallr.methods.planner.task import Outcome, Problem
from smallr.training.policy import attach_saved_heads
from tests.methods.planner.conftest import make_database
from tests.methods.planner.test_pipeline import write
from tests.runs import metrics

PLANS = ("SELECT count(*) FROM shop;", "SELECT count(city) FROM item;", "SELECT city FROM shop WHERE id < 3;")
OTHER = Problem("r", "Which cities are there?", "shop: id, city", "x", "")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_model):
    """A folder with a benchmark on two databases, whose rows trained `judge`, and the config of the benchmark."""
    folder = tmp_path_factory.mktemp("reward")
    for name in ("shop", "other"):
        make_database(folder / f"{name}.sqlite")
    question = {"question": "How many shops?", "gold": "SELECT count(*) FROM shop", "candidates": list(PLANS)}
    rows = [
        {"id": f"{name}{number}", "database": name, **question} for name in ("shop", "other") for number in range(8)
    ]
    write(folder, rows)
    config = base()
    config.data.source, config.data.databases, config.limits.workers = str(folder / "rows.jsonl"), str(folder), 1
    config.training.holdout, config.compute.dtype = ("other",), "float32"
    run_planner(config, folder / "run")
    (data,) = (folder / "run").glob("training_rows-*")
    flags = {
        "model": small_model, "data.train": data / "reward", "workdir": folder / "judge",
        "optimizer.groups.heads.learning_rate": 3e-2, "optimizer.schedule": "constant", "steps": 8, "eval_every": 8,
        "checkpoint.every": 8,
    }  # fmt: skip
    named = [f"--workdir={folder / 'judge'}", *(f"--config.{k}={v}" for k, v in flags.items() if k != "workdir")]
    assert main(["train", "planner/judge_reward:smoke", *named]) == 0
    return folder, config


@pytest.mark.slow
def test_a_trained_head_judges_a_database_that_it_has_not_seen(trained, capsys):
    folder, config = trained
    lines = metrics(folder / "judge")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "a fresh head says 0 of everything"
    assert lines[-1]["loss"] < 0.1
    config = config.copy_and_resolve_references()
    config.training.holdout, config.data.only = (), ("other",)
    config.discriminator.model, config.discriminator.kinds = str(folder / "judge"), ("reward",)
    report = run_planner(config, folder / "judged")
    figures = report["intrinsic"]["reward naive soft"]
    assert figures["pairwise_accuracy"] == figures["hit_at_1"] == figures["macro_f1"] == 1.0
    assert report["picks"]["rerank, reward check soft"]["ex"] == 1.0
    assert figures["fail_rate"] == 0.0
    plans = [f"--candidate={plan}" for plan in PLANS[::-1]]
    where = [f"--db={folder / 'shop.sqlite'}", "--question=How many shops?", f"--discriminator={folder / 'judge'}"]
    assert main(["plan", *where, *plans, "--kind=reward", "--config.compute.dtype=float32"]) == 0
    assert "picked by rerank: SELECT count(*) FROM shop;" in capsys.readouterr().out


@pytest.mark.slow
def test_plans_together_score_as_one_by_one_and_what_no_row_holds(trained, prompts, task, problem):
    folder, _ = trained
    mesh = make_mesh(-1, 1, 1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(str(folder / "judge"), mesh, dtype="float32")
        attach_saved_heads(decoder, str(folder / "judge"), mesh)
    judge = Reward(
        decoder, source.tokenizer(), mesh, RewardPrompt(prompts, task), identity="x", chat=True, row_length=512
    )
    cases = [Case(problem, PLANS, (Outcome(),) * 3), Case(OTHER, (), ()), Case(OTHER, PLANS[:1], (Outcome(),))]
    found = dict(judge.judge(cases))
    assert found[1] == []
    assert len({each.probability for each in found[0]}) == 3
    singles = [Case(problem, (plan,), (Outcome(),)) for plan in PLANS]
    alone = [each[0].probability for _, each in sorted(judge.judge(singles))]
    assert [each.probability for each in found[0]] == pytest.approx(alone, rel=1e-5)
    judge._row_length = found[0][1].prompt_tokens + 1  # no room for two plans, nor for the longest one
    narrow = dict(judge.judge(cases))
    assert [each.correct is None for each in narrow[0]] == [False, False, True]
    assert [each.probability for each in narrow[0][:2]] == pytest.approx(alone[:2], rel=1e-5)
    assert "more than a row" in narrow[0][2].error
    judge._row_length = 8
    assert [each.correct for each in dict(judge.judge(cases))[0]] == [None] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"modes": ("naive", "pro")}, "not shown results, as pro does"),
        ({"few_shot": True}, "no worked examples"),
        ({"model": "http://127.0.0.1:1/v1#x"}, "value head of a run, which a server does not give"),
    ],
)
def test_what_a_reward_head_cannot_do(tmp_path, change, says):
    config = base()
    config.task, config.data.source, config.data.sample = "arithmetic", "builtin:arithmetic", 2
    config.discriminator.model, config.discriminator.kinds = "tiny-random", ("reward",)
    config.discriminator.update(change)
    with pytest.raises(UserError, match=says):
        run_planner(config, tmp_path)


def test_a_model_without_a_head_is_refused(tmp_path, small_model):
    config = base()
    config.task, config.data.source, config.data.sample = "arithmetic", "builtin:arithmetic", 2
    config.discriminator.model, config.discriminator.kinds = small_model, ("reward",)
    with pytest.raises(UserError, match=r"not a run with config\.heads"):
        run_planner(config, tmp_path)
