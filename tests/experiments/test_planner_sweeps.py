"""The sweep over settings of a discriminator, on word problems with a scripted judge."""

from __future__ import annotations

import json

import pytest

from experiments.planner.judges import compare, main
from experiments.planner.sweeps import configs, sweep
from smallr.core.errors import UserError
from smallr.methods.planner import opening
from smallr.methods.planner.config import base
from smallr.methods.planner.pipeline import run_planner
from tests.methods.planner.test_discriminators import Reasoner, reply


@pytest.mark.slow
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
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n| ") >= 6
    assert rows[2]["base_low"] <= rows[2]["base"] <= rows[2]["base_high"]
    assert "minus the vote" in table
    assert (tmp_path / "table.csv").exists()
    assert (tmp_path / "budget.png").stat().st_size > 1000
    asked = len(prompts)
    sweep(config, tmp_path, ["base", "few_shot", "results", "budget"], [16, 32])
    assert len(prompts) == asked
    assert config.discriminator.modes == ("naive",)  # the config is as it was
    assert [name for name, _ in configs(config, ["no_schema"], [])] == ["no_schema"]
    with pytest.raises(UserError, match="nobody proposes"):
        list(configs(config, ["swapped"], []))
    config.generator.model = "other"
    ((_, swapped),) = configs(config, ["swapped"], [])
    assert (swapped.generator.model, swapped.discriminator.model) == ("fake", "other")


def test_judges_of_the_same_candidates_are_compared(tmp_path, monkeypatch, capsys):
    config = base()
    config.task, config.data.source, config.data.sample = "arithmetic", "builtin:arithmetic", 6
    config.discriminator.model, config.discriminator.kinds = "fake", ("reasoning",)
    config.discriminator.modes, config.discriminator.rules = ("naive",), ("hard",)
    for name, word in (("yes", "true"), ("long", "false")):
        said = reply(f'{{"correct": {word}}}')
        model = Reasoner(lambda prompt, said=said: said if len(prompt) % 2 else reply('{"correct": true}'))
        monkeypatch.setattr(opening, "open_configured", lambda *_, model=model, **__: model)
        config.discriminator.think = word == "true"  # another stage
        run_planner(config, tmp_path / name)
    config.data.sample = 5
    run_planner(config, tmp_path / "fewer")
    main([f"yes={tmp_path / 'yes'}", f"long={tmp_path / 'long'}", f"--out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "naive hard" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["yes, reasoning naive hard", "long, reasoning naive hard"]
    rows = compare({"yes": tmp_path / "yes", "long": tmp_path / "long"})
    picks = [json.loads((tmp_path / name / "report.json").read_text())["chosen"]["correct"] for name in ("yes", "long")]
    one, other = (pick["rerank, reasoning naive hard"] for pick in picks)
    assert one != other
    assert rows[0]["first"] is None
    assert (tmp_path / "out" / "judges.png").stat().st_size > 1000
    found, first = (row["found"]["pairwise_accuracy"] for row in (rows[1], rows[0]))
    assert rows[1]["pairs"][0] == pytest.approx(found - first)
    assert rows[1]["first"]["better"] == sum(b and not a for a, b in zip(one, other, strict=True))
    assert rows[1]["first"]["worse"] == sum(a and not b for a, b in zip(one, other, strict=True))
    with pytest.raises(UserError, match="other questions"):
        compare({"yes": tmp_path / "yes", "fewer": tmp_path / "fewer"})
    with pytest.raises(UserError, match=r"no report\.json"):
        compare({"yes": tmp_path / "nowhere"})
