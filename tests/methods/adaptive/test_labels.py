"""When the student of a router is loaded, and when it is freed."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
from datasets import Dataset

from smallr.methods.adaptive import labels
from smallr.training.rows import Part, SplitRows

CONFIG = SimpleNamespace(labels=SimpleNamespace(margin=0.0, max_tokens=4))


class Student:
    """Answers nothing, and finds every other answer easier after thought."""

    def answer(self, questions, modes, max_tokens):
        return SimpleNamespace(items=[SimpleNamespace(rationale="so", complete=True) for _ in questions])

    def answer_nll(self, questions, answers, rationales=None):
        return [1.0 if rationales is None else i % 2 * 2.0 for i, _ in enumerate(questions)]


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Weak references to the students that were loaded; splits are given by `opened.splits`."""
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path))
    found = SimpleNamespace(students=[], splits={})

    def load(config):
        student = Student()
        found.students.append(weakref.ref(student))
        return student

    monkeypatch.setattr(labels, "_opened", load)
    monkeypatch.setattr(labels, "_student_key", lambda config: "key")
    monkeypatch.setattr(
        labels,
        "read_rows",
        lambda config, name: SplitRows(Part("mine", name), found.splits[name], 2) if name in found.splits else None,
    )
    return found


def unlabelled(name):
    return Dataset.from_list([{"question": f"{name} {i}?", "answer": "4"} for i in range(2)])


def test_a_student_that_labels_one_split_is_freed_when_the_other_has_labels(opened):
    given = Dataset.from_list([{"question": "?", "label": 1}])
    opened.splits = {"train": given, "eval": unlabelled("eval")}
    training, heldout = labels.labelled_rows(CONFIG)
    assert training is given
    assert heldout["label"] == [1, 0]
    assert len(opened.students) == 1
    gc.collect()
    assert opened.students[0]() is None, "the student is still in memory"


def test_one_student_labels_both_splits_and_none_is_loaded_for_labels_that_are_kept(opened):
    opened.splits = {"train": unlabelled("train"), "eval": unlabelled("eval")}
    first = labels.labelled_rows(CONFIG)
    assert len(opened.students) == 1
    again = labels.labelled_rows(CONFIG)
    assert len(opened.students) == 1
    assert [split["label"] for split in again] == [split["label"] for split in first]
