"""A whole benchmark on a small database and on word problems: stages, resuming, figures, and the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.core.stages import Stopped
from smallr.methods.planner import opening, searching
from smallr.methods.planner.config import base
from smallr.methods.planner.discriminators import reasoning
from smallr.methods.planner.evaluation import Variant, between
from smallr.methods.planner.pipeline import run_planner
from smallr.sampling.requests import Result
from tests.evals.fakes import FakeModel
from tests.methods.planner.conftest import make_database
from tests.methods.planner.test_discriminators import Reasoner, reply

ROWS = [
    {
        "id": "a",
        "question": "How many shops?",
        "database": "shop",
        "gold": "SELECT count(*) FROM shop",
        "candidates": ["SELECT count(city) FROM item", "SELECT COUNT(*) FROM shop", "select count(*) from shop"],
    },
    {
        "id": "b",
        "question": "Which cities?",
        "database": "shop",
        "gold": "SELECT DISTINCT city FROM shop",
        "candidates": [
            {"sql": "SELECT city FROM shop WHERE id < 3", "votes": 3},
            {"sql": "SELECT city FROM shop", "systems": ["x", "y"]},
        ],
    },
    {
        "id": "c",
        "question": "Which prices?",
        "database": "shop",
        "gold": "SELECT cost FROM item",
        "candidates": ["SELECT price FROM item"],
    },
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "databases").mkdir()
    make_database(tmp_path / "databases" / "shop.sqlite")
    write(tmp_path, ROWS)
    config = base()
    config.data.source, config.data.databases = str(tmp_path / "rows.jsonl"), str(tmp_path / "databases")
    config.limits.workers = 1
    config.cache = False
    return config


def write(folder: Path, rows) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def verdicts(prompt: str) -> Result:
    """A judge that knows that nothing but shops are counted right, and has no opinion on cities."""
    if "cities" in prompt:
        return reply("Hm.")
    return reply('{"correct": true}' if "count(*)" in prompt else '{"correct": false}', 0.8)


@pytest.fixture
def judge(monkeypatch):
    model = Reasoner(verdicts)
    monkeypatch.setattr(opening, "open_configured", lambda *_, **__: model)
    return model


def test_figures_of_a_benchmark(config, tmp_path, judge):
    config.discriminator.model, config.discriminator.kinds = "fake", ("reasoning",)
    config.planners = ("greedy", "rerank", "iterative", "tree", "oracle")
    config.oracle.accuracies = (0.0, 1.0)
    config.discriminator.budgets = (10, 64)
    report = run_planner(config, tmp_path / "run")
    assert report["counts"] == {
        "questions": 3,
        "judged_questions": 2,
        "candidates": 5,
        "correct": 2,
        "executable": 4,
        "mixed_questions": 2,
        "errors": {"name": 1},
    }
    assert report["unusable"] == ["c"]  # its gold query fails
    assert report["mean_candidate"] == 0.5
    assert {name: each["ex"] for name, each in report["picks"].items()} == {
        "first candidate": 0.0,
        "first executable": 0.5,
        "executable best-of-N": 0.5,
        "majority of plans": 0.5,
        "majority of proposals": 0.5,
        "any of the candidates right": 1.0,
        # b has no verdicts: of equal scores the first in the alphabet, which is wrong
        **{f"rerank, reasoning {mode} {rule}": 0.5 for mode in ("naive", "check") for rule in ("soft", "hard")},
        "greedy": 0.5,
        **{f"{planner}_oracle_1": 1.0 for planner in ("rerank", "iterative", "tree")},
        # The oracle errs on every plan, but what does not execute is not shown to it.
        **{f"{planner}_oracle_0": 0.5 for planner in ("rerank", "iterative", "tree")},
        **{name: each["ex"] for name, each in report["picks"].items() if name.startswith(("iterative_r", "tree_r"))},
    }
    soft = report["intrinsic"]["reasoning naive soft"]
    # a: two plans, 0.2 and 0.8; b: no verdict for either, a tie.
    assert soft["pairwise_accuracy"] == 0.5
    assert soft["hit_at_1"] == 0.5
    assert soft["mrr"] == 0.75
    assert soft["fail_rate"] == 0.5
    assert soft["asked"] == 4
    check = report["intrinsic"]["reasoning check hard"]
    assert check["asked"] == 3
    assert check["fail_rate"] == pytest.approx(2 / 3)
    assert report["between"].keys() == {
        "reasoning naive hard minus reasoning naive soft",
        "reasoning check soft minus reasoning naive soft",
        "reasoning check hard minus reasoning naive hard",
        "reasoning check hard minus reasoning check soft",
    }
    assert all(each["p_value"] == 1 for each in report["between"].values())
    # Verdicts are written at the end, after 17 or 18 letters; with less there is none.
    naive = {budget: each["reasoning naive hard"] for budget, each in report["budgets"].items()}
    assert (naive["10"]["fail_rate"], naive["64"]["fail_rate"]) == (1.0, soft["fail_rate"])
    assert naive["10"]["pairwise_accuracy"] == 0.0
    assert naive["64"]["pick"]["ex"] == report["picks"]["rerank, reasoning naive hard"]["ex"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| 10 | reasoning naive soft | 0.0 |" in text
    assert "| rationales | words |" in text
    assert "| majority of proposals | 50.0 |" in text
    assert "gold plan that fails or is unknown: c" in text
    assert json.loads((tmp_path / "run" / "report.json").read_text())["picks"].keys() == report["picks"].keys()


def test_ways_to_score_are_compared_if_one_thing_differs():
    ways = [
        Variant("yes_no", "naive", "soft"),
        Variant("reasoning", "naive", "soft"),
        Variant("reasoning", "check", "hard"),
    ]
    correct = {f"rerank, {way.name}": [number > 0, True] for number, way in enumerate(ways)}
    pairs = {way.name: [(number, 4)] for number, way in enumerate(ways)}
    found = between(ways, correct, pairs)
    assert found.keys() == {"reasoning naive soft minus yes_no naive soft"}
    (pair,) = found.values()
    assert (pair["difference"], pair["better"], pair["worse"]) == (0.5, 1, 0)
    assert pair["pairs"] == (0.25, 0.25, 0.25)


def test_what_does_not_execute_is_not_sent_if_no_mode_wants_it(config, tmp_path, judge):
    config.discriminator.model, config.discriminator.kinds = "fake", ("reasoning",)
    config.discriminator.modes = ("check", "exec")
    report = run_planner(config, tmp_path / "run")
    prompts = [request.messages[0]["content"] for request in judge.requests]
    failing = "SELECT count(city) FROM item;"
    assert [f"{failing}\nIt fails" in prompt for prompt in prompts if failing in prompt] == [True]  # exec, not check
    assert report["intrinsic"]["reasoning check soft"]["asked"] == 3
    assert report["intrinsic"]["reasoning exec soft"]["asked"] == 4
    assert report["picks"]["rerank, reasoning check soft"]["ex"] == 0.5


def test_it_goes_on_where_it_was(config, tmp_path, judge, monkeypatch):
    config.discriminator.model, config.discriminator.kinds = "fake", ("reasoning",)
    judge._replies = lambda prompt: Result(error="503 busy") if "prices" in prompt else verdicts(prompt)
    with pytest.raises(Stopped, match="503 busy"):
        run_planner(config, tmp_path / "run")
    asked = len(judge.requests)
    judge._replies = verdicts
    run_planner(config, tmp_path / "run")
    again = [request.messages[0]["content"] for request in judge.requests[asked:]]
    assert 1 <= len(again) <= 5
    assert any("prices" in prompt for prompt in again)
    count = len(judge.requests)
    run_planner(config, tmp_path / "run")
    assert len(judge.requests) == count  # nothing is asked twice
    config.discriminator.context = False
    run_planner(config, tmp_path / "run")
    assert len(judge.requests) > count  # another prompt is another stage
    monkeypatch.setattr(reasoning, "Reasoning", None)
    config.budget.candidates = 7
    run_planner(config, tmp_path / "run")  # judgements do not depend on the budget of searches


def test_a_generator_proposes(config, tmp_path, monkeypatch):
    replies = {
        "shops": ["SELECT count(*) FROM shop", "```sql\nSELECT COUNT(*) FROM Shop;\n```"],
        "cities": ["Bonn, I think", ""],
    }
    model = FakeModel(
        lambda prompt: next((texts for word, texts in replies.items() if word in prompt), ["SELECT 1"] * 2)
    )
    monkeypatch.setattr(opening, "open_configured", lambda *_, **__: model)
    config.generator.model = "fake"
    config.budget.candidates = 2
    write(tmp_path, [{key: value for key, value in row.items() if key != "candidates"} for row in ROWS])
    report = run_planner(config, tmp_path / "run")
    assert report["picks"]["first candidate"]["ex"] == 0.5
    assert report["counts"]["errors"] == {"no query": 1}
    assert all(request.params.n == 2 and request.params.temperature == 0.2 for request in model.requests)
    count = len(model.requests)
    run_planner(config, tmp_path / "run")
    assert len(model.requests) == count
    (tmp_path / "generate.txt").write_text("{{context}}Please: {{question}}")
    config.prompts.generate = str(tmp_path / "generate.txt")
    run_planner(config, tmp_path / "run")  # another prompt proposes anew
    assert sorted("Please: " in request.messages[0]["content"] for request in model.requests[count:]) == [True] * 3


def test_the_second_task_is_no_sql(tmp_path):
    config = base()
    config.task, config.data.source, config.data.sample = "arithmetic", "builtin:arithmetic", 12
    config.planners = ("greedy", "rerank", "iterative", "tree", "oracle")
    config.oracle.accuracies = (1.0,)
    report = run_planner(config, tmp_path / "run")
    assert report["counts"]["questions"] == report["counts"]["judged_questions"] == 12
    assert report["picks"]["any of the candidates right"]["ex"] == 1.0
    assert report["picks"]["tree_oracle_1"]["ex"] == 1.0
    assert report["picks"]["iterative_oracle_1"]["ex"] == 1.0
    assert "equation" in report["counts"]["errors"]  # a slip that is no mistake of calculation executes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": None}, "row 0: column 'question' must hold a text, not None"),
        ({"database": "nowhere"}, "no nowhere.sqlite"),
        ({"candidates": "SELECT 1"}, "row 0: column 'candidates' must hold a list"),
        ({"id": "b"}, "rows 0 and 1 have the same id 'b'"),
    ],
)
def test_rows_that_cannot_be_used(config, tmp_path, change, says):
    write(tmp_path, [{**ROWS[0], **change}, {**ROWS[1], "candidates": ["SELECT 1"]}])
    with pytest.raises(UserError) as caught:
        run_planner(config, tmp_path / "run")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (
            "discriminator.modes",
            ("chek",),
            "config.discriminator.modes: 'chek' must be one of: naive, check, exec, pro",
        ),
        ("planners", ("trees",), "'trees' must be one of"),
        ("budget.patience", 0, "config.budget.patience = 0 must be at least 1"),
        ("discriminator.budgets", (513,), "513 must be from 1 to config.discriminator.budget = 512"),
        ("oracle.accuracies", (1.5,), "1.5 must be from 0 to 1"),
        ("data.source", "", "config.data.source is empty"),
    ],
)
def test_fields_that_cannot_be_used(config, tmp_path, field, value, says):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=r"must|empty") as caught:
        run_planner(config, tmp_path / "run")
    assert says in str(caught.value)


def test_a_server_gives_no_word_probabilities(config, tmp_path):
    config.discriminator.model = "http://127.0.0.1:1/v1#x"
    with pytest.raises(UserError, match="kinds=reasoning"):
        run_planner(config, tmp_path / "run")


# One question


def asked(tmp_path, capsys, *flags: str) -> tuple[int, str, str]:
    code = main(["plan", f"--db={tmp_path / 'databases' / 'shop.sqlite'}", "--question=How many shops?", *flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_question_leaves_a_trace_and_the_file_as_it_was(config, tmp_path, capsys, judge):
    database = tmp_path / "databases" / "shop.sqlite"
    digest, changed = hashlib.sha256(database.read_bytes()).digest(), database.stat().st_mtime_ns
    plans = [
        "--candidate=SELECT city FROM item",
        "--candidate=SELECT count(id) FROM shop",
        "--candidate=SELECT count(*) FROM shop",
    ]
    code, out, _ = asked(tmp_path, capsys, *plans, "--discriminator=fake", "--kind=reasoning", "--json")
    trace = json.loads(out)
    assert code == 0
    assert trace["plan"] == "SELECT count(*) FROM shop;"
    assert trace["rows"] == [[3]]
    assert trace["discriminator"] == "reasoning check soft"
    assert [round(each["score"], 3) for each in trace["candidates"]] == [-1.0, 0.2, 0.8]
    assert len(judge.requests) == 2  # what does not execute is not sent
    code, out, _ = asked(tmp_path, capsys, *plans)
    assert code == 0
    assert "picked by majority: SELECT count(id) FROM shop;" in out
    assert "fails: no such column" in out
    assert hashlib.sha256(database.read_bytes()).digest() == digest
    assert database.stat().st_mtime_ns == changed
    assert [path.name for path in database.parent.iterdir()] == ["shop.sqlite"]


def test_what_a_terminal_is_shown(config, tmp_path, capsys):
    code, out, _ = asked(tmp_path, capsys, "--candidate=SELECT '[red]' || char(27) || '[2J' AS x")
    assert code == 0
    assert "\x1b[2J" not in out
    assert "[red]" in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "nobody proposes queries"),
        (("--candidate=SELECT 1", "--planner=oracle"), "needs gold plans"),
        (("--candidate=SELECT 1", "--planner=tree"), "needs a discriminator"),
        (("--candidate=SELECT 1", "--mode=chekc"), "must be one of: naive, check, exec, pro"),
        (("--candidate= ",), "no candidate"),
    ],
)
def test_questions_that_cannot_be_asked(config, tmp_path, capsys, flags, says):
    code, _, err = asked(tmp_path, capsys, *flags)
    assert code == 1
    assert says in err
    assert err.count("\n") == 1


def test_a_generator_that_writes_nothing(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(opening, "open_configured", lambda *_, **__: FakeModel(lambda _: ""))
    code, _, err = asked(tmp_path, capsys, "--generator=fake")
    assert code == 1
    assert "the generator fake wrote ''" in err


def test_command_lines(capsys):
    assert main(["plan"]) == 2
    assert "--db and --question" in capsys.readouterr().err
    assert main(["plan", "--db=x"]) == 2
    assert "--question is missing" in capsys.readouterr().err
    assert main(["plan", "--db=x", "--question=y", "--planner=z", "--candidate=q"]) == 2
    assert searching.SEARCHES == ("iterative", "tree")


def test_rows_to_train_a_discriminator_on_are_split_by_database(config, tmp_path):
    from datasets import load_from_disk

    make_database(tmp_path / "databases" / "other.sqlite")
    write(tmp_path, [ROWS[0], {**ROWS[1], "database": "other"}])
    config.training.holdout = ("other",)
    run_planner(config, tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("training_rows-*")
    pairs, answers = load_from_disk(str(folder / "preference")), load_from_disk(str(folder / "sft"))
    assert {name: set(part["database"]) for name, part in pairs.items()} == {"train": {"shop"}, "test": {"other"}}
    assert list(pairs["train"]["chosen"]) == ["No", "Yes"]
    assert list(pairs["train"]["rejected"]) == ["Yes", "No"]
    assert list(answers["test"]["completion"]) == ["No", "Yes"]
    assert "SELECT count(*) FROM shop;" in pairs["train"]["prompt"][1]
    config.discriminator.context = False
    run_planner(config, tmp_path / "run")
    (bare,) = set((tmp_path / "run").glob("training_rows-*")) - {folder}
    assert "Database schema" in pairs["train"]["prompt"][0]
    assert "Database schema" not in load_from_disk(str(bare / "preference"))["train"]["prompt"][0]
    rewards = load_from_disk(str(folder / "reward"))
    assert (rewards["train"]["correct"][0], rewards["test"]["database"][0]) == ([0, 1], "other")
    config.training.holdout = ("nowhere",)
    with pytest.raises(UserError, match=r"no rows of 'nowhere'; there are other, shop"):
        run_planner(config, tmp_path / "run")
    config.data.only = ("other",)
    config.training.holdout = ()
    assert run_planner(config, tmp_path / "run2")["counts"]["questions"] == 1


def test_a_plot_of_picks_that_are_all_right(tmp_path):
    """The interval's upper end, 1, may be below the estimate by a rounding error."""
    from smallr.methods.planner.evaluation import pick_figures
    from smallr.methods.planner.report import plot_picks

    picks = {str(count): pick_figures([True] * count, [True] * count) for count in range(2, 40)}
    picks |= {"none": pick_figures([False] * 7, [True] * 7)}
    assert plot_picks(tmp_path / "picks.png", picks)
