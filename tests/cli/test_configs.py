"""The list of configs, and the fields of one with their meanings."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from smallr.cli import config_files, fields
from smallr.cli.main import main
from smallr.config import add_labels, add_lora, add_soft_prompts, choice, preference, unpaired
from smallr.losses.preference import LOSSES

NAMES = config_files.names()


def test_a_line_each(capsys):
    assert main(["configs"]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert any(line.split()[:1] == [name] and len(line.split()) > 2 for line in out.splitlines()), name


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_a_meaning(name):
    check(config_files.load(name)[0])


def test_fields_that_no_config_of_ours_has():
    check(add_lora(unpaired()))
    check(add_labels(add_soft_prompts(choice())))
    for loss in LOSSES:
        check(preference(loss))


def check(config: ConfigDict) -> None:
    """Each field has a meaning, or its group has one for all of its fields."""
    for path, value in fields.flat(config):
        if not isinstance(value, ConfigDict):
            assert fields.meaning(config, path) or fields.meaning(config, path.rpartition(".")[0]), path


def test_a_field_is_shown_with_its_value_and_meaning(capsys):
    assert main(["configs", "show", "simpo"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "objective.simpo_gamma" in line]
    assert line.split(maxsplit=1) == ["objective.simpo_gamma=1.0", "target margin of the two rewards"]
    shown = [line.split("=")[0].strip() for line in out.splitlines() if line.startswith("  ") and "=" in line]
    wanted = [path for path, value in fields.flat(config_files.load("simpo")[0]) if not isinstance(value, ConfigDict)]
    assert set(wanted) <= set(shown)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("eval/")])
def test_a_config_says_how_to_run_it(name):
    text = config_files.docstring(name)
    plans = name.startswith("planner/") and "judge" not in name
    of_folder = {"crv/annotate": "crv"} | ({name: "plan"} if plans else {})
    of_folder |= dict.fromkeys(("decomposition/generate", "decomposition/solve"), "decompose")
    command = of_folder.get(name, "collate" if name.startswith("collate/") else "train")
    assert f"smallr {command} " in text
    assert "Hardware:" in text
    assert "Time:" in text
    assert "Expect:" in text


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("eval/")])
def test_an_evaluation_says_what_it_measures(name):
    assert "smallr evaluate " in config_files.docstring(name)
    assert "Metric:" in config_files.docstring(name)
