"""What the methods leave is recognised and read; everything else is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from smallr.core.errors import UserError
from smallr.core.stages import StageFolder, Stages
from smallr.evals.config import base as evaluation_config
from smallr.evals.evaluation import evaluate
from smallr.methods.collate.modes import Modes
from smallr.methods.collate.pairs import prefer_useful
from smallr.methods.crv import report as crv_report
from smallr.methods.crv.pipeline import run_crv
from smallr.methods.decomposition.pipeline import run_generation
from smallr.methods.decomposition.rows import parse_row
from smallr.methods.planner.config import base as planner_config
from smallr.methods.planner.pipeline import run_planner
from smallr.review.decisions import Outcome
from smallr.review.export import reviewed_values
from smallr.review.folders import open_set
from smallr.review.kinds import planner, texts
from tests.evals.fakes import FakeModel
from tests.methods.crv.fakes import small
from tests.methods.decomposition.test_pipeline import generate_config
from tests.methods.planner.conftest import make_database
from tests.methods.planner.test_pipeline import ROWS as QUESTIONS
from tests.review.made import crv_row, write_lines

MODES = Modes(answer="\n\nAnswer:", rationale="\n\nRationale:", draft="\n\nDraft:", end="")


def panels(row):
    return {panel.title: panel.text for panel in row.panels}


def test_a_crv_run(tmp_path, monkeypatch):
    monkeypatch.setattr(crv_report, "_plot", lambda *_: False)
    config = small("builtin:arithmetic/teacher", "oracle:arithmetic?verify_error=0.4", max_retries=1)
    config.unlock()
    config.data.splits, config.incorrect.count = "train[:12]", 0
    run_crv(config, tmp_path / "run")
    reviewed = open_set(tmp_path / "run")
    verified, failed = (load_from_disk(tmp_path / "run" / name)["train"] for name in ("verified", "failed"))
    assert (reviewed.kind.name, reviewed.home, len(reviewed.rows)) == ("CRV rows", tmp_path / "run" / "review", 12)
    assert len(failed) > 0
    assert [row.approved for row in reviewed.rows] == [True] * len(verified) + [False] * len(failed)
    for row, values in zip(reviewed.rows, verified, strict=False):
        assert row.text == values["rationale"]
        assert (panels(row)["original"], panels(row)["rewrite"]) == (values["original"], values["rationale"])
        assert panels(row)["question"] == values["question"]
        assert row.confidence == 1 / len(values["attempts"])
    last = reviewed.rows[-1]
    assert (last.text, last.verdict, last.confidence) == (failed[-1]["attempts"][-1]["rationale"], "rejected", 0)
    rescued = reviewed_values(reviewed.kind, last, Outcome("accepted", ("ann",), "now"))
    assert rescued["completion"] == rescued["rationale"] == last.text
    assert rescued["verified_by"] == "person"
    assert open_set(tmp_path / "run" / "verified").home == tmp_path / "run" / "verified.review"


def test_a_run_of_decompositions(tmp_path):
    run_generation(generate_config(splits="train[:4]"), tmp_path / "run")
    reviewed = open_set(tmp_path / "run")
    written = load_from_disk(tmp_path / "run" / "decompositions")["train"].to_list()
    assert [row.text.splitlines() for row in reviewed.rows] == [row["answers"] for row in written]
    assert len({row.key for row in reviewed.rows}) == len(written) > 4  # several sets of a problem
    first, rewards = reviewed.rows[0], written[0]["rewards"]
    assert first.confidence == pytest.approx(sum(rewards["usefulness"]) / len(rewards["usefulness"]))
    assert first.approved == (rewards["answer_correctness"] == 1)
    edited = reviewed_values(reviewed.kind, first, Outcome("edited", ("ann",), "now", "One?\n\n Two? "))
    assert parse_row(edited).sub_questions == ("One?", "Two?")
    assert parse_row(edited).usefulness == ()
    with pytest.raises(UserError, match="at least one sub-question"):
        reviewed.kind.edited(first.values, "\n")
    half = {"question": "q", "answers": ["a", "b"], "true_answer": 1.0}
    half["rewards"] = {"answer_correctness": 0.0, "usefulness": [0.5, 1.0]}
    (row,) = open_set(write_lines(tmp_path / "half.jsonl", [half])).rows
    assert (row.confidence, row.disagreement, row.approved) == (0.75, 0.5, False)


def test_a_collate_run(tmp_path):
    run = tmp_path / "run"
    table = [
        {"question": f"q{i}", "answer": "a", "rationales": ["r0", "r1"], "utilities": [0.6, 0.2], "u_0": 0.5 + 0.2 * i}
        for i in range(2)
    ]
    Dataset.from_list(table).save_to_disk(tmp_path / "scored")
    with StageFolder(run, {}, what="COLLATE run"):
        with pytest.raises(UserError, match="no stage has written pairs yet"):
            open_set(run)
        stages, rule = Stages(run), {"winner": "utility", "filter": False, "seed": "0"}
        stages.do("pairs_0", prefer_useful, {"rows": tmp_path / "scored"}, MODES, rule, "round 0")
        stages.run()
    first, second = open_set(run).rows
    assert (first.split, first.title, first.text) == ("pairs_0", "q0 Rationale:", " r0\n\nAnswer:")
    assert (first.confidence, first.gap) == (pytest.approx(0.75), pytest.approx(0.4))
    assert (first.verdict, second.verdict) == ("above u_0", "not above u_0")


@pytest.mark.slow
def test_a_run_of_the_planner(tmp_path):
    (tmp_path / "databases").mkdir()
    make_database(tmp_path / "databases" / "shop.sqlite")
    config = planner_config()
    config.data.source, config.data.databases = (
        str(write_lines(tmp_path / "q.jsonl", QUESTIONS)),
        str(tmp_path / "databases"),
    )
    config.limits.workers, config.cache = 1, False
    run_planner(config, tmp_path / "run")
    a, b, _ = open_set(tmp_path / "run").rows
    assert (a.title, a.text, a.source) == ("How many shops?", "SELECT count(*) FROM shop;", "shop.sqlite")
    assert "no such column" in panels(a)["result of candidate 1"]
    assert (b.text, b.confidence, b.disagreement) == ("SELECT city FROM shop WHERE id < 3;", 0.6, pytest.approx(0.4))
    assert "candidate 1 (picked): 3 votes, not the gold result" in panels(b)


def test_the_pick_of_a_planner():
    def candidate(group, votes, probability=None, error=""):
        return {"group": group, "votes": votes, "probability": probability, "error": error}

    assert planner.pick([]) == -1
    assert planner.pick([candidate(0, 1), candidate(1, 2), candidate(0, 3)]) == 0  # four votes for one result
    assert planner.pick([candidate(-1, 9, error="no"), candidate(0, 1)]) == 1
    assert planner.pick([candidate(0, 9, 0.3), candidate(1, 1, 0.6), candidate(1, 1, 0.6)]) == 1


def test_an_evaluation(tmp_path):
    config = evaluation_config("gsm8k")
    lines = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(2)]
    config.data, config.sampling.n, config.sampling.temperature = str(write_lines(tmp_path / "q.jsonl", lines)), 3, 1.0
    evaluate(config, tmp_path / "run", model=FakeModel(lambda _: ["It is 2.", "It is 2.", "It is 3."]))
    reviewed = open_set(tmp_path / "run")
    assert [row.approved for row in reviewed.rows] == [False, False, False, True, True, False]
    assert [row.confidence for row in reviewed.rows[:3]] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert panels(reviewed.rows[2])["verdict"] == "wrong; answer taken: 3"
    assert panels(reviewed.rows[2])["gold answer"] == "0"


def test_data_sets_by_their_columns(tmp_path):
    pairs = [{"prompt": "p", "chosen": "c", "rejected": "r", "gap": gap} for gap in ("small", "large")]
    DatasetDict({"train": Dataset.from_list(pairs)}).save_to_disk(tmp_path / "pairs")
    assert [row.gap for row in open_set(tmp_path / "pairs").rows] == [1, 3]
    chat = [{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]}]
    (row,) = open_set(write_lines(tmp_path / "chat.jsonl", chat)).rows
    assert (row.title, row.text) == ("user: Hi", "Ho")
    edited = reviewed_values(texts.KIND, row, Outcome("edited", ("ann",), "now", "Hey"))
    assert edited["completion"] == [{"role": "assistant", "content": "Hey"}]  # the role is not in it
    rationale = [{"question": "q", "rationale": "r", "answer": "a", "confidence": 0.5}]
    (row,) = open_set(write_lines(tmp_path / "rationales.jsonl", rationale)).rows
    assert (row.text, row.confidence) == ("r", 0.5)
    assert open_set(write_lines(tmp_path / "crv.jsonl", [crv_row(0)])).kind.name == "CRV rows"
    odd = [{"prompt": "p \ud83d", "completion": "c", "confidence": float("nan")}]
    (row,) = open_set(write_lines(tmp_path / "odd.jsonl", odd)).rows
    assert (row.title, row.confidence, row.values["prompt"]) == ("p ?", None, "p \ud83d")


def test_a_set_is_the_same_by_every_name(tmp_path, monkeypatch):
    rows = write_lines(tmp_path / "rows.jsonl", [crv_row(0)])
    (tmp_path / "link.jsonl").symlink_to(rows)
    assert open_set(tmp_path / "link.jsonl").home == open_set(rows).home
    DatasetDict({"train": Dataset.from_list([{"prompt": "p", "completion": "c"}])}).save_to_disk(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set" / "train")
    assert open_set(Path("..")).home == tmp_path / "set.review"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no rows"),
        ([{"a": 1}], "rows with a are of no kind that can be reviewed"),
        ([{"prompt": "p", "completion": "c"}, {"prompt": "p"}], "row 1: no column 'completion'"),
        ([{**crv_row(0), "attempts": 3}], "row 0: a value is of another type than smallr writes"),
    ],
)
def test_rows_that_cannot_be_reviewed(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        open_set(write_lines(tmp_path / "rows.jsonl", lines))


def test_folders_that_hold_nothing_to_review(tmp_path):
    for name, message in (("none", "no such file or folder"), ("", "holds nothing that can be reviewed")):
        with pytest.raises(UserError, match=message):
            open_set(tmp_path / name)
    (tmp_path / "run.json").write_text(json.dumps({"what": "CRV run"}))
    with pytest.raises(UserError, match="no data set 'verified' yet; run smallr crv annotate to its end"):
        open_set(tmp_path)
