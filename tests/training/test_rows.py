"""Which rows are trained on and which are held out."""

from __future__ import annotations

import json

import pytest

from smallr.config import base, finish
from smallr.core.errors import UserError
from smallr.training.rows import has_heldout, read_rows

ROWS = 40


@pytest.fixture
def mine(tmp_path):
    """A file of one's own: 40 pairs."""
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"q": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}) for i in range(ROWS)]
    path.write_text("\n".join(lines))
    return str(path)


def config_of(train: str, **fields):
    config = base()
    config.data.train = train
    config.data.columns.prompt = "q"
    config.update_from_flattened_dict({f"data.{name}": value for name, value in fields.items()})
    return config


def prompts(config, name: str) -> list[str]:
    return read_rows(config, name).rows["prompt"][:]


def test_all_of_ones_own_rows_are_trained_on_and_none_is_held_out(mine):
    config = config_of(mine)
    assert not has_heldout(config)
    assert read_rows(config, "eval") is None
    found = read_rows(config, "train")
    assert (found.part.split, len(found.rows), found.available) == ("train", ROWS, ROWS)


def test_a_part_that_is_held_out_is_not_trained_on(mine):
    config = config_of(mine, eval_split="train[-10:]")
    assert has_heldout(config)
    assert prompts(config, "eval") == [f"question {i}" for i in range(30, 40)]
    assert prompts(config, "train") == [f"question {i}" for i in range(30)]
    config = config_of(mine, eval=mine, eval_split="train[:25%]", train_split="train[5:20]")
    assert prompts(config, "train") == [f"question {i}" for i in range(10, 20)]


def test_a_share_that_is_held_out(mine):
    config = config_of(mine, eval_fraction=0.05)
    held, trained = prompts(config, "eval"), prompts(config, "train")
    assert (len(held), len(trained)) == (2, 38)
    assert sorted(held + trained) == sorted(f"question {i}" for i in range(ROWS))
    assert prompts(config, "eval") == held
    config.seed = 1
    assert prompts(config, "eval") != held


def test_a_file_of_held_out_rows(mine, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"q": "asked", "chosen": "a", "rejected": "b"}))
    config = config_of(mine, eval=str(other))
    assert prompts(config, "eval") == ["asked"]
    assert len(prompts(config, "train")) == ROWS


def test_built_in_rows_have_their_own_parts_and_names(mine):
    config = base()
    assert (len(read_rows(config, "train").rows), len(read_rows(config, "eval").rows)) == (240, 60)
    config.data.eval = ""
    assert not has_heldout(config)
    config = config_of(mine, eval="builtin:arithmetic/preference")  # whose column is not `q`
    assert len(prompts(config, "eval")) == 60
    with pytest.raises(UserError, match=r"'q'"):  # a map for them names their own columns
        read_rows(config_of("builtin:arithmetic/sft"), "train")
    config = base()
    config.data.train = "builtin:arithmetic/sft"
    assert {"prompt", "completion"} <= set(read_rows(config, "train").rows.column_names)
    config = finish(base(), "smoke")
    assert (len(read_rows(config, "train").rows), len(read_rows(config, "eval").rows)) == (32, 16)
    config.data.train, config.data.columns.prompt = mine, "q"
    assert len(read_rows(config, "train").rows) == ROWS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval_fraction": 1.0}, "eval_fraction=1.0: must be at least 0 and below 1"),
        ({"eval_fraction": 0.001}, "of 40 rows it leaves one of the parts empty"),
        ({"eval_fraction": 0.1, "eval_split": "train[:2]"}, "leave out eval and eval_split, or it"),
        ({"eval_split": "train"}, "holds no rows besides train"),
        ({"eval_split": "test"}, "no split 'test'; there is train"),
    ],
)
def test_what_leaves_nothing_or_contradicts_itself(mine, fields, message):
    config = config_of(mine, **fields)
    with pytest.raises(UserError, match=message):
        _ = [read_rows(config, name) for name in ("train", "eval")]
