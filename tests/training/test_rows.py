"""Which rows are trained on and which are held out."""

from __future__ import annotations

import json

import datasets
import pytest

from smallr.cli.fields import set_field, set_value
from smallr.config import base, finish, preference
from smallr.core.errors import UserError
from smallr.training.objective import make_objective
from smallr.training.rows import has_heldout, read_parts, read_rows, training_parts
from smallr.training.splits import load_split
from tests.data.toy_tokenizer import build

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


# --- several sources ---


@pytest.fixture
def two(mine, tmp_path):
    """Two sources with other columns: pairs as they are, and Orca's."""
    path = tmp_path / "orca.parquet"
    rows = [{"question": f"asked {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(10)]
    datasets.Dataset.from_list(rows).to_parquet(path)
    return [
        {"path": mine, "weight": 2, "columns": {"prompt": "q"}},
        {"path": str(path), "weight": 0.5, "split": "train[:8]"},
    ]


def mixed(train, **fields):
    config = preference()
    config.data.train = train
    config.update_from_flattened_dict({f"data.{name}": value for name, value in fields.items()})
    return finish(config, None)


def test_each_source_has_its_own_fields(two):
    first, second = training_parts(mixed(two))
    assert (first.split, first.columns, first.weight) == ("train", {"prompt": "q"}, 2.0)
    assert (second.split, second.columns, second.weight, second.format) == ("train[:8]", {}, 0.5, "")
    assert read_parts(mixed(two), "eval") == []
    assert [len(each.rows) for each in read_parts(mixed(two), "train")] == [40, 8]
    assert [each.available for each in read_parts(mixed(two), "train")] == [40, 10]
    assert not has_heldout(mixed(two))
    twice = training_parts(mixed([{"path": "a", "split": "x"}, {"path": "a", "split": "y"}]))
    assert [part.name for part in twice] == ["a x", "a y"]


def test_a_share_is_held_out_of_each_source(two):
    config = mixed(two, eval_fraction=0.25)
    assert [len(each.rows) for each in read_parts(config, "eval")] == [10, 2]
    assert [len(each.rows) for each in read_parts(config, "train")] == [30, 6]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([{"path": "a", "wieght": 2}], r"config.data.train\[0\]: 'wieght' must be one of.*did you mean 'weight'"),
        (
            [{"path": "a"}, {"path": "b", "kind": "sft"}],
            r"train\[1\]: 'kind'.*all sources are of the kind config.data.kind",
        ),
        ([{"path": "a", "weight": 0}], "weight must be a number above 0, found 0"),
        ([{"path": "a", "weight": "2"}], "weight must be a number above 0"),
        ([{"weight": 1}], "path must be text, found None"),
        (["a", "b"], "expected fields like"),
        ([], "give a source"),
        (3, "give a source"),
    ],
)
def test_a_source_that_cannot_be_read(train, message):
    with pytest.raises(UserError, match=message):
        training_parts(mixed(train))


def test_a_split_to_hold_out_needs_its_source(two):
    with pytest.raises(UserError, match="eval_split: of which of the sources"):
        has_heldout(mixed(two, eval_split="test"))
    with pytest.raises(UserError, match="one source"):
        read_rows(mixed(two), "train")


def test_sources_on_the_command_line(two):
    config = mixed("builtin:arithmetic/preference")
    set_field(config, "data.train", str(two))
    assert [part.weight for part in training_parts(config)] == [2.0, 0.5]
    set_field(config, "data.train", "[ab].jsonl")
    assert config.data.train == "[ab].jsonl"
    set_value(config, "data.train", two)
    assert [part.weight for part in training_parts(config)] == [2.0, 0.5]
    set_value(config, "data.train", "mine.jsonl")
    assert config.data.train == "mine.jsonl"
    with pytest.raises(UserError, match="cannot be read as a list"):
        set_field(config, "data.train", "[{path: a}]")


def test_a_mixed_split_is_packed_by_its_weights(two, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    config = mixed(two, chat=False)
    split = load_split(config, build(), make_objective(config), "train")
    assert (len(split.examples), split.available) == (48, 50)
    assert split.plan.stats(0).examples == 84
    assert split.examples_per_step() == 84 / split.plan.num_steps(1)
    drawn = split.plan.drawn(0)
    assert drawn[:40].tolist() == [2] * 40
    assert sorted(drawn[40:].tolist()) == [0] * 4 + [1] * 4
    shown = capsys.readouterr().out
    assert "weight 2: 95.2% of the examples" in shown
    assert "read as: Orca (question, chosen, rejected)" in shown
    two[1]["columns"] = {"prompt": "chosen"}  # then there is no column `chosen`
    with pytest.raises(UserError, match=r"orca.parquet: preference rows need .*missing 'chosen'"):
        load_split(mixed(two, chat=False), build(), make_objective(config), "train")
