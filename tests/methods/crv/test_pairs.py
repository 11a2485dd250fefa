"""Pairs of a CRV run, and training on what a run leaves."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from rich.console import Console

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.data import builtin
from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.reading import mistake, style
from smallr.data.rows import GAPS
from smallr.data.saving import save_splits
from smallr.methods.crv.holdout import Holdout
from smallr.methods.crv.names import ROLES
from smallr.methods.crv.pairs import build_pairs, make_pairs, row_pairs
from smallr.methods.crv.pipeline import run_crv
from smallr.methods.crv.rows import TeacherRow, blank
from tests.methods.crv.fakes import small, write_rows
from tests.runs import metrics, smoke, train


@pytest.fixture(scope="module")
def crv(tmp_path_factory) -> Path:
    """A finished run of oracle agents: 20 training rows and 10 test rows."""
    folder = tmp_path_factory.mktemp("crv")
    parts = builtin.make_questions(seed=11, train=20, test=10)
    rows = {name: Dataset.from_list(list(builtin.teacher_rows(part, name))) for name, part in parts.items()}
    save_splits(DatasetDict(rows), folder / "rows")
    run_crv(small(str(folder / "rows"), **{"data.splits": "train,test"}), folder / "run", Console(file=io.StringIO()))
    return folder / "run"


def row(question: str = "Why?", label: str = "easy", *, correct: bool = True, wrong: int = 2, **changes) -> dict:
    """A verified row."""
    found = blank(TeacherRow("train", 0, "s", question, "4", "short"), question, dict.fromkeys(ROLES, "m"))
    fits = "short" if label == "medium" and correct else "long and good"
    found.update(label=label, rationale=fits, rewritten=fits != "short", original_correct=correct)
    found["incorrect"] = [
        {"rationale": f"wrong {i}", "source": "student", "answer": str(i), "reason": "wrong answer"}
        for i in range(wrong)
    ]
    return {**found, **changes}


def accepted(number: int) -> dict:
    """What a review says of a row: every other one is accepted, the first too."""
    return {"status": "rejected" if number % 2 else "accepted", "by": ["ann"], "when": "now", "original": ""}


def test_a_review_goes_along_to_the_text_that_was_reviewed():
    rows = [row("Why?", reviewed=accepted(0)), row("How?", reviewed=accepted(1)), row("When?", reviewed=None)]
    outcome = make_pairs(rows)
    assert outcome.rejected == 1
    statuses = {
        (pair["question"], pair["gap"]): pair["reviewed"] and pair["reviewed"]["status"] for pair in outcome.pairs
    }
    assert statuses == {
        ("Why?", "small"): "accepted",
        ("Why?", "medium"): None,  # the teacher's own rationale is chosen, which nobody has seen
        ("Why?", "large"): "accepted",
        **{("When?", gap): None for gap in GAPS},
    }


def test_the_three_gaps_of_a_row():
    found = {pair["gap"]: pair for pair in row_pairs(row())}
    assert [(gap, found[gap]["chosen"], found[gap]["rejected"]) for gap in GAPS] == [
        ("small", "long and good", "short"),
        ("medium", "short", "wrong 0"),
        ("large", "long and good", "wrong 1"),
    ]
    assert [(found[gap]["chosen_from"], found[gap]["rejected_from"]) for gap in GAPS] == [
        ("rethought", "teacher"),
        ("teacher", "student"),
        ("rethought", "student"),
    ]
    assert [found[gap]["rejected_answer"] for gap in GAPS] == ["", "0", "1"]


def test_what_fits_as_it_is_gives_a_large_pair_alone():
    (pair,) = row_pairs(row(label="medium"))
    assert (pair["gap"], pair["chosen"], pair["chosen_from"]) == ("large", "short", "teacher")
    (pair,) = row_pairs(row(label="medium", correct=False))  # it was mended
    assert (pair["gap"], pair["chosen"], pair["chosen_from"]) == ("large", "long and good", "rethought")


def test_a_wrong_original_is_never_chosen_and_no_incorrect_leaves_the_small_pair():
    assert [pair["gap"] for pair in row_pairs(row(correct=False))] == ["large"]
    assert [pair["gap"] for pair in row_pairs(row(wrong=0))] == ["small"]
    medium, large = list(row_pairs(row(wrong=1)))[1:]
    assert medium["rejected"] == large["rejected"] == "wrong 0"


def test_mixes():
    rows = [row(f"q{i}") for i in range(6)] + [row(f"m{i}", "medium") for i in range(4)]
    natural = make_pairs(rows)
    assert natural.natural == {"small": 6, "medium": 6, "large": 10}
    assert natural.not_small == {"fits as it is": 4}

    def mixed(mix: str, seed: int = 0) -> dict[str, int]:
        return dict(Counter(pair["gap"] for pair in make_pairs(rows, mix, seed=seed).pairs))

    assert mixed("natural") == {"small": 6, "medium": 6, "large": 10}
    assert mixed("balanced") == {"small": 6, "medium": 6, "large": 6}
    assert mixed("1:1:2") == {"small": 5, "medium": 5, "large": 10}
    assert mixed("0:0:1") == {"large": 10}
    assert mixed("3:1:0") == {"small": 6, "medium": 2}
    chosen = [[pair["question"] for pair in make_pairs(rows, "balanced", seed=seed).pairs] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    for mix in ("even", "1:1", "0:0:0", "1:-1:1", ""):
        with pytest.raises(UserError, match=r"expected natural, balanced, or shares"):
            make_pairs(rows, mix)
    with pytest.raises(UserError, match="there are no pairs of the small gap"):
        make_pairs(rows[6:], "balanced")


def test_duplicates_and_contamination_are_counted():
    rows = [row("Why?"), row("Why?"), row("How  many are THERE"), row("Who?")]
    outcome = make_pairs(rows, holdout=Holdout(["how many are there?", "unrelated"]))
    assert outcome.duplicates == 3
    assert outcome.contaminated == ["How  many are THERE"]
    assert Counter(pair["question"] for pair in outcome.pairs) == {"Why?": 3, "Who?": 3}


def test_holdouts_are_read_from_data_sets(tmp_path):
    both = write_rows(tmp_path / "both", [{"question": "One?"}], ("train", "test"))
    lines = tmp_path / "svamp.jsonl"
    lines.write_text(json.dumps({"Body": "There are 2.", "Question": "How many?"}) + "\n")
    found = Holdout.load([both, f"{both}@train", str(lines)])
    assert len(found) == 3
    assert "one (test)" in found
    assert "there are 2 how many" in found
    assert len(Holdout.load("")) == 0
    (tmp_path / "other.jsonl").write_text('{"text": "One?"}\n')
    with pytest.raises(UserError, match="none of its columns text holds a question"):
        Holdout.load(str(tmp_path / "other.jsonl"))
    with pytest.raises(UserError, match="no split 'dev'"):
        Holdout.load(f"{both}@dev")


def test_pairs_of_a_run(crv, tmp_path, capsys):
    held = load_from_disk(crv / "verified")["train"].to_list()[3]
    holdout = write_rows(tmp_path / "held", [{"question": held["question"].lower()}])
    flags = [f"--crv={crv}", f"--out={tmp_path / 'pairs'}", f"--holdout={holdout}", "--mix=balanced"]
    assert main(["pairs", *flags]) == 0
    report = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert report["splits"]["train"]["contaminated"] == [held["question"]]
    built = load_from_disk(tmp_path / "pairs")
    for split, rows in built.items():
        counts = Counter(rows["gap"])
        assert len(set(counts.values())) == 1
        assert dict(counts) == report["splits"][split]["pairs"]
        for pair in rows:
            problem = find_problem(pair["question"])
            assert pair["question"] != held["question"]
            assert not mistake(problem, pair["chosen"])
            assert bool(mistake(problem, pair["rejected"])) == (pair["gap"] != "small")
            assert (style(problem, pair["chosen"]) == "fitted") == (pair["gap"] != "medium")
    again = build_pairs(crv / "verified", tmp_path / "again", holdout=[f"{crv}/verified@test"], exempt=["test"])
    assert again["splits"]["train"]["contaminated_rows"] == again["splits"]["test"]["contaminated_rows"] == 0
    assert sum(again["splits"]["test"]["pairs"].values()) > 0
    assert "reviewed" not in built["train"].column_names
    reviewed = load_from_disk(crv / "verified").map(lambda _, i: {"reviewed": accepted(i)}, with_indices=True)
    reviewed.save_to_disk(tmp_path / "checked")
    half = build_pairs(tmp_path / "checked", tmp_path / "half")
    assert half["splits"]["train"]["rejected_in_review"] == len(reviewed["train"]) // 2
    statuses = [pair["reviewed"] and pair["reviewed"]["status"] for pair in load_from_disk(tmp_path / "half")["train"]]
    assert set(statuses) == {"accepted", None}
    for wrong, message in (
        ({"crv": tmp_path / "none"}, "holds no data set `verified`"),
        ({"crv": tmp_path / "pairs"}, "not the verified rows of a CRV run"),
        ({"crv": crv, "exempt": ["dev"]}, "no split 'dev'"),
        ({"crv": crv, "holdout": [f"{crv}/verified@train", f"{crv}/verified@test"]}, "give no pairs"),
    ):
        with pytest.raises(UserError, match=message):
            build_pairs(**{"out": tmp_path / "x", **wrong})
    assert main(["pairs", f"--crv={tmp_path / 'none'}", f"--out={tmp_path / 'x'}"]) == 1
    assert re.search(r"smallr: .* holds no data set", capsys.readouterr().err)


@pytest.mark.slow
def test_what_a_run_leaves_is_trained_on(crv, tmp_path):
    build_pairs(crv, tmp_path / "pairs")
    changes = {"steps": 1, "eval_every": 0, "data.eval": "", "batch.row_length": 320, "batch.rows": 1}
    train(smoke("crv.sft", **{**changes, "data.train": str(crv / "verified")}), tmp_path / "sft")
    (sft,) = metrics(tmp_path / "sft")
    assert 5 < sft["loss"] < 15, "a random model's nats a token, of 1280"
    train(smoke("cogpo", **{**changes, "data.train": str(tmp_path / "pairs")}), tmp_path / "cogpo")
    (cogpo,) = metrics(tmp_path / "cogpo")
    assert cogpo["loss"] == pytest.approx(0.693147, abs=1e-4)
