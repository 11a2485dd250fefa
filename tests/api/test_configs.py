"""Configs from Python, held against the command line's."""

from __future__ import annotations

import pytest

import smallr
from smallr.cli.parsing import Parser


def test_fields_are_those_of_the_command_line(tmp_path):
    parser = Parser("train", "")
    parser.config(trains=True)
    argv = ("cogpo", "--lora", "--config.lora.rank=4", "--config.steps=1e3", "--config.objective.beta.large=0.4")
    expected = parser.parse(argv).config
    changes = {"lora": {"rank": 4}, "steps": 1e3, "objective": {"beta": {"large": 0.4}}}
    config = smallr.load_config("cogpo", **changes)
    assert config.to_json() == expected.to_json()
    assert type(config.steps) is int
    dotted = {"lora.rank": 4, "steps": "1000", "objective.beta.large": "0.4"}
    assert smallr.load_config("cogpo", **dotted).to_json() == expected.to_json()
    (tmp_path / "mine.py").write_text("from configs.dpo import get_config\n")
    assert smallr.load_config(tmp_path / "mine.py").to_json() == smallr.load_config("dpo").to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1}, "config.lr: no such field; did you mean optimizer.learning_rate"),
        ({"optimizer": {"lr": 1}}, "config.optimizer.lr: no such field"),
        ({"optimizer": 1}, "is a group"),
        ({"steps": 1.5}, "must be a whole number, like 0"),
        ({"steps": True}, "must be a whole number"),
        ({"steps": None}, "must be a whole number"),
        ({"data.chat": 1}, "must be a truth value, like True"),
        ({"model": 3}, "must be a text"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(smallr.UserError, match=message):
        smallr.load_config("cogpo", **changes)


def test_an_objective_of_another_name_replaces_the_configs():
    config = smallr.load_config("sft", objective={"name": "mine", "gamma": 2.0})
    assert config.objective.to_dict() == {"name": "mine", "gamma": 2.0}


def test_a_trainer_without_a_workdir_makes_one_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with smallr.Trainer(smallr.load_config("sft:smoke")) as trainer:
        assert trainer.workdir.parent.as_posix() == "runs/sft"
        assert trainer.workdir.is_dir()
