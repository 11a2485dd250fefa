"""What a report advises fits the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from smallr.config import add_soft_prompts, preference, rationale
from smallr.training.best import Best
from smallr.training.report import before, next_commands

WORKDIR = Path("runs/mine/a")


def advice(config, step=8, steps=8) -> str:
    trainer = SimpleNamespace(config=config, workdir=WORKDIR, step=step, steps=steps, best=Best("", 1, 0, 0.0))
    return "\n".join(next_commands(trainer))


def test_a_run_that_was_stopped_goes_on():
    assert advice(preference(), step=3) == "smallr train --workdir=runs/mine/a   # goes on from step 3"


def test_preference_training_follows_sft_and_not_itself():
    after_sft, after_pairs = advice(rationale("answer_first")), advice(preference())
    assert "smallr train cogpo --config.model=runs/mine/a" in after_sft
    assert "smallr train cogpo" not in after_pairs
    assert "another loss" in after_pairs
    own = rationale("answer_first")
    own.data.train = "rows.jsonl"
    assert "smallr train cogpo --config.model=runs/mine/a --config.data.train=PAIRS.jsonl" in advice(own)
    own = preference()
    own.data.train = "pairs.jsonl"
    assert "another loss" not in advice(own)  # on other data than the user's
    for text in (after_sft, after_pairs):
        assert "smallr convert --from=runs/mine/a --to=FOLDER" in text
        assert "smallr push --model=runs/mine/a --repo=OWNER/NAME" in text
        assert "tensorboard --logdir=runs/mine " in text


def test_a_workdir_with_a_space_can_be_pasted():
    trainer = SimpleNamespace(config=preference(), workdir=Path("my runs/a"), step=3, steps=8)
    assert next_commands(trainer)[0].startswith("smallr train --workdir='my runs/a' ")


def test_soft_prompts_are_exported_and_not_generated_with():
    text = advice(add_soft_prompts(rationale("both")))
    assert "--adapter_only" in text
    assert "generate" not in text


@pytest.mark.parametrize(
    ("epochs", "steps", "wanted"),
    [(1, 0, "--config.epochs=2 "), (0, 8, "--config.steps=16 "), (2, 8, "--config.epochs=3 --config.steps=0 ")],
)
def test_training_on_says_what_the_learning_rate_does(epochs, steps, wanted):
    config = preference()
    config.epochs, config.steps = epochs, steps
    line = next(line for line in advice(config).splitlines() if "train on" in line)
    assert wanted in line
    assert "--config.optimizer.on_extend=rewarm" in line


def test_figures_before_training_are_left_out_where_they_are_of_other_rows():
    heldout = SimpleNamespace(examples=SimpleNamespace(fingerprint="a"))
    trainer = SimpleNamespace(baseline={"data": "a", "metrics": {"loss": 1.0}}, heldout=heldout)
    assert before(trainer) == {"loss": 1.0}
    trainer.baseline["data"] = "b"
    assert before(trainer) == {}
    trainer.heldout = None
    assert before(trainer) == {}
