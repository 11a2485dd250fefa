"""Decisions on disk, what follows from several of them, and queues."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from smallr.core.errors import UserError
from smallr.core.files import FileError
from smallr.core.locks import LockedError
from smallr.review.decisions import Decisions, outcome, read_all
from smallr.review.folders import open_set
from smallr.review.queues import Filter, audit_order, queue
from smallr.review.session import ChangedError, Session
from smallr.review.worddiff import own_words
from tests.review.made import crv_row, write_lines


@pytest.fixture
def reviewed(tmp_path):
    verdicts = [("right",), ("rejected", "right"), ("rejected", "rejected"), ("wrong answer", "wrong answer", "right")]
    return open_set(write_lines(tmp_path / "rows.jsonl", [crv_row(i, verdicts=verdicts[i % 4]) for i in range(8)]))


def people(reviewed, *names):
    return [Decisions(reviewed.home, name) for name in names]


def test_a_decision_is_read_again_and_undone(reviewed):
    (ann,) = people(reviewed, "ann")
    first, second, *_ = reviewed.rows
    ann.add(first, "accepted")
    ann.add(second, "edited", "Better.")
    ann.add(first, "rejected")
    ann.close()
    assert outcome(first, read_all(reviewed.home)).status == "rejected"
    found = outcome(second, read_all(reviewed.home))
    assert (found.status, found.by, found.text) == ("edited", ("ann",), "Better.")
    (ann,) = people(reviewed, "ann")
    assert ann.undo() is None  # of another session
    ann.add(first, "unsure")
    ann.add(first, "accepted")
    assert [ann.undo(), outcome(first, ann.all()).status] == [first.key, "unsure"]
    assert [ann.undo(), outcome(first, ann.all()).status] == [first.key, "rejected"]
    assert outcome(first, read_all(reviewed.home)).status == "rejected"
    ann.add(second, "edited", second.text)
    assert outcome(second, ann.all()).status == "accepted"
    for decision, text, message in (("edited", " ", "not empty"), ("maybe", "", "must be one of: accepted, edited")):
        with pytest.raises(UserError, match=message):
            ann.add(second, decision, text)
    with pytest.raises(UserError, match="no text to accept"):
        ann.add(dataclasses.replace(second, text=""), "accepted")
    ann.close()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (("accepted", "accepted"), "accepted"),
        (("accepted", "edited"), "edited"),
        (("rejected", "rejected"), "rejected"),
        (("accepted", "rejected"), "disputed"),
        (("edited", "rejected"), "disputed"),
        (("unsure", "accepted"), "accepted"),
        (("unsure", "unsure"), "unsure"),
        ((), "open"),
    ],
)
def test_what_follows_from_two(reviewed, said, status):
    row, both = reviewed.rows[0], people(reviewed, "ann", "bob")
    for person, decision in zip(both, said, strict=False):
        person.add(row, decision, "Other." if decision == "edited" else "")
    assert outcome(row, both[0].all()).status == status
    for person in both:
        person.close()


def test_a_reviewer_is_one_process_and_has_a_name(reviewed):
    (ann,) = people(reviewed, "ann")
    with ThreadPoolExecutor() as other, pytest.raises(LockedError, match="works on this review, as ann"):
        other.submit(Decisions, reviewed.home, "ann").result()
    ann.close()
    with pytest.raises(UserError, match=r"--reviewer=\.\./x: give a name"):
        Decisions(reviewed.home, "../x")
    (reviewed.home / "bob.jsonl").write_text("{}\n")
    with pytest.raises(FileError, match=r"bob.jsonl, line 1: damaged"):
        Decisions(reviewed.home, "ann")


def test_a_row_that_has_changed_since_its_review(tmp_path, reviewed):
    (ann,) = people(reviewed, "ann")
    for row in reviewed.rows[:2]:
        ann.add(row, "accepted")
    session = Session(reviewed, ann)
    number = session.make_queue(Filter(status="all"))["queue"]
    digest = session.row(number, 0)["digest"]
    write_lines(
        tmp_path / "rows.jsonl",
        [{**row.values, **({"rationale": "Anew."} if row.number == 0 else {})} for row in reviewed.rows],
    )
    with pytest.raises(ChangedError, match="written anew since it was shown; nothing was stored"):
        session.decide(number, 0, digest, "rejected", "")
    told = session.row(number, 0)
    assert (told["status"], told["outdated"], told["own"]) == ("changed", ["ann"], None)
    assert session.counts()["outdated"] == 1
    assert [row.number for row in (session.reviewed.rows[i] for i in session_queue(session, status="changed"))] == [0]
    assert outcome(session.reviewed.rows[1], ann.all()).status == "accepted"
    session.decide(number, 0, told["digest"], "rejected", "")
    assert session.counts()["outdated"] == 0
    ann.close()


def session_queue(session, **wanted):
    return queue(session.reviewed.rows, session.decisions.all(), "ann", Filter(**wanted), twice=False)


def test_queues_filter_and_order(reviewed):
    (ann,) = people(reviewed, "ann")
    session = Session(reviewed, ann)
    rows = reviewed.rows
    assert [rows[i].confidence for i in session_queue(session, order="confidence")] == sorted(
        row.confidence for row in rows
    )
    assert [rows[i].disagreement for i in session_queue(session, order="disagreement")][:2] == [1.0, 1.0]
    assert {rows[i].source for i in session_queue(session, source="source 1")} == {"source 1"}
    assert session_queue(session, verdict="rejected") == [2, 6]
    assert session_queue(session, order="source")[:4] == [0, 2, 4, 6]
    ann.add(rows[3], "rejected")
    assert 3 not in session_queue(session)
    assert session_queue(session, status="rejected") == session_queue(session, status="mine") == [3]
    for wanted, message in (({"order": "size"}, "must be one of: place"), ({"sample": -1}, "whole number")):
        with pytest.raises(UserError, match=message):
            Filter(**wanted)
    ann.close()


def test_an_audit_sample_is_random_and_stays_the_same_when_rows_are_added(reviewed):
    order = audit_order(reviewed.rows, 0)
    assert sorted(order) == list(range(8))
    assert order != audit_order(reviewed.rows, 1)
    fewer = [row for row in reviewed.rows if row.number != 5]
    assert [fewer[i].number for i in audit_order(fewer, 0)] == [i for i in order if i != 5]
    firsts = [
        audit_order([dataclasses.replace(row, key=f"{seed}{row.key}") for row in reviewed.rows], 0)[0]
        for seed in range(400)
    ]
    assert min(firsts.count(i) for i in range(8)) > 25  # each is first 50 times on average


def test_two_on_one_row_at_a_time_are_both_kept_and_the_second_is_told(reviewed):
    ann, bob = people(reviewed, "ann", "bob")
    sessions = [Session(reviewed, person) for person in (ann, bob)]
    shown = [session.row(session.make_queue(Filter())["queue"], 0) for session in sessions]
    assert [each["others"] for each in shown] == [[], []]
    first = sessions[0].decide(1, 0, shown[0]["digest"], "accepted", "")
    second = sessions[1].decide(1, 0, shown[1]["digest"], "rejected", "")
    assert first["row"]["others"] == []
    assert [each["reviewer"] for each in second["row"]["others"]] == ["ann"]
    assert second["row"]["status"] == "disputed"
    assert {name: own[shown[0]["key"]].decision for name, own in read_all(reviewed.home).items()} == {
        "ann": "accepted",
        "bob": "rejected",
    }
    for person in (ann, bob):
        person.close()


def test_twice_keeps_a_row_open_for_a_second_who_does_not_see_the_first(reviewed):
    ann, bob, eve = people(reviewed, "ann", "bob", "eve")
    row = reviewed.rows[0]
    ann.add(row, "accepted")
    assert 0 not in queue(reviewed.rows, bob.all(), "bob", Filter(), twice=False)
    session = Session(reviewed, bob, twice=True)
    made = session.make_queue(Filter())
    told = session.row(made["queue"], 0)
    assert (told["key"], told["others"], told["status"]) == (row.key, [], "decided by another")
    assert not queue(reviewed.rows, bob.all(), "bob", Filter("accepted"), twice=True)  # nor does a filter tell
    told = session.decide(made["queue"], 0, row.digest, "accepted", "")["row"]
    assert queue(reviewed.rows, bob.all(), "bob", Filter("accepted"), twice=True) == [0]
    assert [each["decision"] for each in told["others"]] == ["accepted"]
    assert 0 not in queue(reviewed.rows, eve.all(), "eve", Filter(), twice=True)
    for person in (ann, bob, eve):
        person.close()


def test_words_of_a_text_alone():
    parts = own_words("We add  two\nand get 5.", "We add 2\nand get 5.")
    assert "".join(text for _, text in parts) == "We add  two\nand get 5."
    assert [text for kind, text in parts if kind == "own"] == ["  two"]
    assert own_words("", "x") == []
    assert own_words(" \n", "x") == [("own", " \n")]
