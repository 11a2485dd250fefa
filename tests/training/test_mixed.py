"""A run on several sources: every example under the reference, weights in the epochs, and resumed bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from smallr.cli import config_files
from smallr.training.digest import tree_digest
from smallr.training.trainer import Trainer
from tests.runs import smoke


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two files of pairs in two formats; of the second, half an epoch."""
    folder = tmp_path_factory.mktemp("rows")
    for name, prompt, count in (("a", "prompt", 12), ("b", "question", 8)):
        rows = [
            {prompt: f"{name} {i}", "chosen": f"yes, {i} of them", "rejected": "no" * (1 + i % 3)} for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = smoke("dpo", **{"epochs": 2, "steps": 0, "batch.row_length": 128, "eval_every": 0, "checkpoint.every": 2})
    config.data.train = [
        ConfigDict({"path": str(folder / "a.jsonl"), "weight": 2}),
        {"path": str(folder / "b.jsonl"), "weight": 0.5},
    ]
    return config


@pytest.mark.slow
def test_a_mixed_run_goes_on_as_if_it_had_not_stopped(config, tmp_path, capsys):
    with Trainer(config, tmp_path / "whole") as whole:
        report = whole.fit()
        expected = tree_digest(whole.params)
        training = whole.training
    steps = report["steps"]
    assert steps == training.plan.num_steps(2) > 3
    assert np.isfinite(training.columns["ref_chosen"]).all()
    seen = np.bincount([i for n in range(steps) for row in training.plan.step(n) for i in row], minlength=20)
    assert seen.tolist() == [4] * 12 + [1] * 8  # two epochs: twice each time, and one half each time
    shown = capsys.readouterr().out
    assert "weight 0.5: 14.3% of the examples" in shown
    assert "20 of 20 rows, 0 dropped; 28 examples" in shown
    with Trainer(config, tmp_path / "part") as part:
        part.fit(until=2)
    again = config_files.of_run(tmp_path / "part")  # as `smallr train --workdir=…` goes on
    with Trainer(again, tmp_path / "part") as part:
        part.fit()
        assert tree_digest(part.params) == expected
    assert "resuming" in capsys.readouterr().out
