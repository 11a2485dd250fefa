"""The command: export, report, and training on reviewed rows alone."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict, Features, load_from_disk

from smallr.cli.main import main
from smallr.data.reviewed import COLUMN, FEATURE
from smallr.methods.crv.rows import FEATURES
from smallr.review.decisions import Decisions
from smallr.review.folders import open_set
from smallr.review.queues import audit_order
from smallr.training.rows import read_parts
from tests.review.made import crv_row, write_lines
from tests.runs import smoke


def failure(capsys, *argv):
    assert main([*map(str, argv)]) == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def rows(tmp_path):
    """A data set of CRV rows: accepted, edited, rejected, disputed, and one that nobody has seen."""
    DatasetDict({"train": Dataset.from_list([crv_row(i) for i in range(5)], features=FEATURES)}).save_to_disk(
        tmp_path / "rows"
    )
    reviewed = open_set(tmp_path / "rows")
    ann, bob = (Decisions(reviewed.home, name) for name in ("ann", "bob"))
    for row, decision in zip(reviewed.rows, ("accepted", "edited", "rejected", "accepted"), strict=False):
        ann.add(row, decision, "One more." if decision == "edited" else "")
    bob.add(reviewed.rows[3], "rejected")
    ann.close()
    bob.close()
    return tmp_path / "rows"


def test_an_export_holds_the_decisions_and_the_edits(rows, tmp_path, capsys):
    assert main(["review", str(rows), f"--export={tmp_path / 'out'}"]) == 0
    assert "1 accepted, 1 edited, 1 rejected, 1 disputed, 1 open" in capsys.readouterr().out
    out = load_from_disk(tmp_path / "out")["train"]
    assert out.features == Features({**FEATURES, COLUMN: FEATURE})
    before = load_from_disk(rows)["train"]
    assert [row[COLUMN]["status"] for row in out] == ["accepted", "edited", "rejected", "disputed", ""]
    assert out[1]["rationale"] == out[1]["completion"] == "One more."
    assert (out[0]["verified_by"], out[1]["verified_by"]) == ("rule and agent", "person")
    assert out[1][COLUMN]["original"] == before[1]["rationale"]
    assert (out[3][COLUMN]["by"], out[4][COLUMN]["by"]) == (["ann", "bob"], [])
    assert out[0][COLUMN]["when"].startswith("20")
    assert {**out[0], COLUMN: None} == {**before[0], COLUMN: None}
    assert main(["review", str(rows), f"--export={tmp_path / 'kept.jsonl'}", "--accepted_only"]) == 0
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert [(row["row"], row["split"]) for row in kept] == [(0, "train"), (1, "train")]
    assert main(["pairs", f"--crv={tmp_path / 'out'}", f"--out={tmp_path / 'pairs'}"]) == 0  # it stays a CRV data set
    capsys.readouterr()
    assert "not an empty folder" in failure(capsys, "review", rows, f"--export={tmp_path / 'out'}")
    assert "belongs to --export" in failure(capsys, "review", rows, "--accepted_only")
    lines = write_lines(tmp_path / "lines.jsonl", [crv_row(0)])
    assert "ends in .jsonl" in failure(capsys, "review", lines, f"--export={tmp_path / 'x'}")
    assert "is what is reviewed" in failure(capsys, "review", lines, f"--export={lines}")
    (tmp_path / "link.jsonl").symlink_to(lines)
    assert "is what is reviewed" in failure(capsys, "review", lines, f"--export={tmp_path / 'link.jsonl'}")
    assert "no row of" in failure(capsys, "review", lines, f"--export={tmp_path / 'y.jsonl'}", "--accepted_only")
    (tmp_path / "lines.jsonl.review").write_text("")
    assert "lines.jsonl.review" in failure(capsys, "review", lines, "--report")


def test_what_was_reviewed_stays_reviewed_when_its_export_is_reviewed(rows, tmp_path):
    assert main(["review", str(rows), f"--export={tmp_path / 'out'}"]) == 0
    reviewed = open_set(tmp_path / "out")
    eve = Decisions(reviewed.home, "eve")
    eve.add(reviewed.rows[4], "accepted")
    eve.close()
    assert main(["review", str(tmp_path / "out"), f"--export={tmp_path / 'again'}"]) == 0
    found = [row[COLUMN] for row in load_from_disk(tmp_path / "again")["train"]]
    assert [each["status"] for each in found] == ["accepted", "edited", "rejected", "disputed", "accepted"]
    assert (found[3]["by"], found[4]["by"]) == (["ann", "bob"], ["eve"])


@pytest.mark.parametrize("suffix", ["", ".jsonl"])
def test_training_takes_accepted_and_edited_rows_alone(rows, tmp_path, capsys, suffix):
    target = tmp_path / f"out{suffix}"
    assert main(["review", str(rows), f"--export={target}"]) == 0
    config = smoke("sft")
    config.data.train, config.data.train_split, config.data.eval = str(target), "", ""
    assert len(read_parts(config, "train")[0].rows) == 5
    config.data.require_review = True
    (found,) = read_parts(config, "train")
    assert found.rows["completion"][:] == [crv_row(0)["completion"], "One more."]
    assert (list(found.numbers), found.available) == ([0, 1], 5)
    assert "2 of 5 rows are kept" in found.review
    assert all(part in found.review for part in ("1 rejected", "1 disputed", "1 not reviewed"))
    config.data.train = str(rows)
    with pytest.raises(ValueError, match=r"has no column 'reviewed'; review it with smallr review"):
        read_parts(config, "train")
    bare = {"prompt": "p", "completion": "c", "reviewed": {"status": "rejected"}}
    config.data.train = str(write_lines(tmp_path / "none.jsonl", [bare]))
    with pytest.raises(ValueError, match=r"none of the 1 rows of .* is accepted or edited \(1 rejected\)"):
        read_parts(config, "train")
    config.data.train = str(write_lines(tmp_path / "bad.jsonl", [{**bare, "reviewed": {"status": "fine"}}]))
    with pytest.raises(ValueError, match=r"row 0: column 'reviewed': expected a status of: accepted"):
        read_parts(config, "train")
    config.data.train_split = "train[1:]"
    config.data.train = str(write_lines(tmp_path / "part.jsonl", [bare, {**bare, "reviewed": {"status": "fine"}}]))
    with pytest.raises(ValueError, match="row 1: column 'reviewed'"):
        read_parts(config, "train")


def test_the_report(tmp_path, capsys):
    lines = [crv_row(i, verdicts=("right",) if i % 2 else ("rejected",)) for i in range(60)]
    reviewed = open_set(write_lines(tmp_path / "rows.jsonl", lines))
    order = audit_order(reviewed.rows, 3)
    ann, bob = (Decisions(reviewed.home, name) for name in ("ann", "bob"))
    for place, index in enumerate(order[:20]):
        row = reviewed.rows[index]
        ann.add(row, "accepted" if row.approved else "rejected", audit=3)
        if place < 10:
            bob.add(row, "accepted" if row.approved or place == 0 else "rejected")
    ann.add(reviewed.rows[order[30]], "rejected", audit=3)  # behind a hole: not a part of the sample
    wrong = sum(not reviewed.rows[i].approved for i in order[:20])
    for person in (ann, bob):
        person.close()
    assert main(["review", str(tmp_path / "rows.jsonl"), "--report"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((reviewed.home / "report.json").read_text())
    assert shown == (reviewed.home / "report.md").read_text()
    # Where the two do not agree on a row, it is not accepted as written either.
    assert [report["rest"][name] for name in ("checked", "found", "rows")] == [20, wrong, 39]
    assert report["rest"]["low"] <= report["rest"]["wrong"] <= report["rest"]["high"]
    assert f"{report['rest']['found']} of 20 rows are not accepted as written" in shown
    by_verdict = {each["group"]: each for each in report["by_verdict"]}
    assert by_verdict["right"]["accepted"] == by_verdict["right"]["decided"] == 20 - wrong
    assert {each["group"] for each in report["by_source"]} == {"all", "source 0", "source 1"}
    (between,) = report["between_reviewers"]
    assert (between["first"], between["second"], between["rows"]) == ("ann", "bob", 10)
    agreement = 1.0 if reviewed.rows[order[0]].approved else 0.9
    assert between["agreement"] == agreement
    with_agent = {each["first"]: each for each in report["with_verdict"]}
    assert with_agent["ann"]["agreement"] >= 20 / 21
    assert "## Person and agent" in shown


def test_a_report_without_an_audit_says_so(rows, capsys):
    assert main(["review", str(rows), "--report"]) == 0
    shown = capsys.readouterr().out
    assert "No audit sample was reviewed" in shown
    assert "1 accepted, 1 edited, 1 rejected, 1 disputed, 1 open" in shown


def test_help_names_the_keys(capsys):
    assert main(["review", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "a accept, r reject, e edit, u unsure" in shown
    assert "--accepted_only" in shown
