"""Tokenised sets are found again by their content, and only by it; what is on disk is whole or made again."""

from __future__ import annotations

import errno
import json

import datasets
import numpy as np
import pytest

from smallr.data import token_set
from smallr.data import tokenize as tokenize_module
from smallr.data.encode import Encoder
from smallr.data.packing import Sizes
from smallr.data.tokenize import TokenizeOptions, tokenize
from tests.data.conftest import TOY
from tests.data.tokens import whole
from tests.data.toy_tokenizer import CHATML, build

PAIRS = [
    {"prompt": "How many?", "chosen": " 12 apples", "rejected": " 7", "beta": 0.5, "gap": "large"},
    {"prompt": "", "chosen": "a", "rejected": "b", "beta": None, "gap": None},
    {"prompt": "Which?", "chosen": " no", "rejected": " yes it is", "beta": None, "gap": "medium"},
]


def test_arrays_are_those_of_the_examples(run):
    tokens = run(PAIRS, chat=True)
    examples = list(tokens)
    sizes = Sizes.of(examples)
    assert tokens.prefix_lengths.tolist() == sizes.prefix.tolist()
    assert tokens.completion_lengths.sum(axis=1).tolist() == sizes.completion_tokens.tolist()
    assert tokens.num_scored.sum(axis=1).tolist() == sizes.scored.tolist()
    assert tokens.num_scored.tolist() == [[sum(b.roles > 0) for b in e.completions] for e in examples]
    assert np.diff(tokens.starts).tolist() == (sizes.prefix + sizes.completion_tokens).tolist()
    assert tokens.rows.tolist() == [e.row for e in examples] == [0, 2]
    assert tokens.columns["gap"].tolist() == [e.columns["gap"] for e in examples] == [2, 1]
    np.testing.assert_array_equal(tokens.columns["beta"], np.array([0.5, np.nan], np.float32))
    assert all(e.columns.keys() == examples[0].columns.keys() for e in examples)
    for array in (examples[0].prefix, *(x for b in examples[0].completions for x in (b.tokens, b.roles))):
        assert array.dtype == np.int32
    np.testing.assert_array_equal(tokens[-1].prefix, examples[-1].prefix)
    with pytest.raises(IndexError):
        tokens[2]


def test_cache_is_found_again_and_mapped(run, monkeypatch):
    first = run(PAIRS)
    assert first.report.dropped["empty prompt"].rows == [1]
    monkeypatch.setattr(Encoder, "__call__", lambda *args: pytest.fail("tokenised again"))
    again = run(PAIRS)
    assert isinstance(again.tokens, np.memmap)
    assert not again.tokens.flags.writeable
    assert again.fingerprint == first.fingerprint
    assert again.report == first.report
    assert [whole(e) for e in again] == [whole(e) for e in first]
    TOY(["a", "b c"], padding=True, truncation=True, max_length=3)  # leaves its mark in the Rust tokenizer
    assert run(PAIRS).fingerprint == first.fingerprint


def test_cache_is_missed_when_anything_changes(run, monkeypatch, tmp_path):
    def entries():
        return len(list((tmp_path / "tokens").iterdir()))

    seen = {run(PAIRS).fingerprint}
    assert entries() == 1
    changed = [
        lambda: run([{**PAIRS[0], "beta": 0.25}, *PAIRS[1:]]),
        lambda: run([{**PAIRS[0], "chosen": " 13 apples"}, *PAIRS[1:]]),
        lambda: run(PAIRS[::-1]),
        lambda: run(PAIRS, build(bos=True)),
        lambda: run(PAIRS, chat=True),
        lambda: run(PAIRS, build(template=CHATML.replace("kind", "strict")), chat=True),
    ]
    for number, change in enumerate(changed, start=2):
        seen.add(change().fingerprint)
        assert (entries(), len(seen)) == (number, number)
    run(PAIRS, max_length=999)  # the same tokens, another report
    assert entries() == 8
    monkeypatch.setattr(tokenize_module, "VERSION", tokenize_module.VERSION + 1)
    run(PAIRS)
    assert entries() == 9


def test_a_damaged_entry_is_made_again(run, tmp_path, caplog):
    first = run(PAIRS)
    (entry,) = (tmp_path / "tokens").iterdir()
    for damage in (
        lambda: (entry / "tokens.npy").write_bytes((entry / "tokens.npy").read_bytes()[:-4]),
        lambda: (entry / "roles.npy").unlink(),
        lambda: (entry / "meta.json").write_text("{"),
        lambda: (entry / "columns.npy").write_bytes(b""),
    ):
        damage()
        caplog.clear()
        again = run(PAIRS)
        assert "made again" in caplog.text
        assert [whole(e) for e in again] == [whole(e) for e in first]
        assert again.report.total == 3


def test_a_write_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENXIO, "no such device")

    with monkeypatch.context() as patch:
        patch.setattr(token_set.np, "save", fail)
        with pytest.raises(OSError, match="no such device"):
            run(PAIRS)
    assert list((tmp_path / "tokens").iterdir()) == []
    assert len(run(PAIRS)) == 2


def test_no_pickle_is_read(run, tmp_path):
    run(PAIRS)
    (entry,) = (tmp_path / "tokens").iterdir()
    np.save(entry / "rows.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle=False|Object arrays|Array can't be memory-mapped"):
        token_set.TokenSet(entry)


def test_default_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    rows = datasets.Dataset.from_list(PAIRS)
    tokens = tokenize(rows, TOY, TokenizeOptions("preference", 99), source="here")
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    assert json.loads((entry / "meta.json").read_text())["fingerprint"] == tokens.fingerprint
    assert tokenize(rows, TOY, TokenizeOptions("preference", 99), source="there").report.source == "there"


def test_a_set_written_in_parts_is_that_written_at_once(run, monkeypatch, tmp_path):
    """More completions in one part than in another, and columns at all three levels."""
    rows = [
        {"prompt": f"q {i}", "completions": ["a", "b b"][: 1 + i % 2], "score": [0.5, i][: 1 + i % 2]} for i in range(7)
    ]
    options = {"kind": "completions", "completion_columns": ("score",)}
    at_once = run(rows, **options)
    (entry,) = (tmp_path / "tokens").iterdir()
    entry.rename(tmp_path / "at_once")
    monkeypatch.setattr(token_set, "_PART", 2)
    in_parts = run(rows, **options)
    files = {path.name: path.read_bytes() for path in entry.iterdir() if path.suffix == ".npy"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "at_once").iterdir() if path.suffix == ".npy"}
    assert in_parts.fingerprint == at_once.fingerprint
    assert in_parts.completion_columns["score"].tolist()[:2] == [[0.5, 0.0], [0.5, 1.0]]
