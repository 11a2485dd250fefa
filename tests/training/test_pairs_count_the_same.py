"""By default each pair of a run counts the same over an epoch, in every config of preferences."""

from __future__ import annotations

import importlib

import pytest

from smallr.losses.preference import LOSSES, RECIPES
from smallr.training.objective import make_objective
from tests.runs import smoke


@pytest.mark.parametrize("name", ["cogpo", "dpo", "simpo", "kto", "cogpo_lora", "cogpo_qlora"])
def test_configs_of_preferences_count_pairs_alike(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.objective.normalise == "epoch"
    assert make_objective(config).normalise == "epoch"


@pytest.mark.parametrize("name", [*LOSSES, *RECIPES])
def test_every_loss_does(name):
    assert make_objective(smoke(f"preference:{name}")).normalise == "epoch"
