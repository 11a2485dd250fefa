"""The sweep over settings of a discriminator, on word problems with a scripted judge."""

from __future__ import annotations

from experiments.planner.sweeps import configs, sweep
from smallr.methods.planner import opening
from smallr.methods.planner.config import base
from tests.methods.planner.test_discriminators import Reasoner, reply


def test_each_setting_is_a_run_and_a_row(tmp_path, monkeypatch):
    prompts = []

    def verdict(prompt: str):
        prompts.append(prompt)
        return reply('{"correct": true}' if len(prompt) % 2 else "no idea")

    monkeypatch.setattr(opening, "open_configured", lambda *_, **__: Reasoner(verdict))
    config = base()
    config.task, config.data.source, config.data.sample = "arithmetic", "builtin:arithmetic", 3
    config.discriminator.model, config.discriminator.kinds = "fake", ("reasoning",)
    config.discriminator.modes, config.discriminator.rules = ("naive",), ("soft",)
    rows = sweep(config, tmp_path, ["base", "few_shot", "results", "budget"], [16, 32])
    assert [(row["setting"], row["variant"]) for row in rows] == [
        ("base", "reasoning naive soft"),
        ("few_shot", "reasoning naive soft"),
        ("results", "reasoning exec soft"),
        ("results", "reasoning pro soft"),
        ("budget_16", "reasoning naive soft"),
        ("budget_32", "reasoning naive soft"),
    ]
    assert any("A box holds 4 rows" in prompt for prompt in prompts)
    assert any("It returns:" in prompt for prompt in prompts)
    assert (tmp_path / "table.md").read_text().count("\n| ") >= 6
    assert (tmp_path / "table.csv").exists()
    assert (tmp_path / "budget.png").stat().st_size > 1000
    asked = len(prompts)
    sweep(config, tmp_path, ["base", "few_shot", "results", "budget"], [16, 32])
    assert len(prompts) == asked
    assert config.discriminator.modes == ("naive",)  # the config is as it was
    assert [name for name, _ in configs(config, ["no_schema"], [])] == ["no_schema"]
