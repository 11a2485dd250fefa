"""The configs of decomposition through `smallr train`, on a few decompositions of made-up problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from absl import logging

import smallr
from smallr.cli.main import main
from smallr.data.sources import load_rows
from smallr.data.tokenize import tokenize
from smallr.methods.decomposition.rows import Decomposition
from smallr.methods.decomposition.training_rows import write_training_sets
from smallr.training.checks import warn_of_start
from smallr.training.opening import open_trained
from smallr.training.options import tokenize_options
from tests.runs import metrics


def decompositions(problems: int) -> list[Decomposition]:
    """Two decompositions of each problem: a useful one with the right answer, and one that is neither."""
    rows = []
    for number in range(problems):
        question = f"Tom has {number} apples and buys {number + 2} more. How many has he?"
        good = ("How many did he have?", "How many did he buy?", "How many has he?")
        rows.append(Decomposition(question, good, 1, (1.0, 1.0, 2 / 3), 2.0 * number + 2))
        rows.append(Decomposition(question, ("Who is Tom?",), 0, (0.0,), 2.0 * number + 2))
    return rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decomposition")
    write_training_sets(folder, {"train": decompositions(8), "test": decompositions(2)})
    return folder


def train(name: str, rows: Path, folder: str, workdir: Path, *flags: str) -> dict:
    """Trains two steps without evaluation in one go; returns the last line of metrics."""
    fixed = ("--config.steps=2", "--config.eval_every=0", "--config.batch.row_length=256", "--config.data.eval=")
    data = (f"--config.data.train={rows / folder}", "--config.data.eval_split=", f"--workdir={workdir}")
    assert main(["train", f"decomposition/{name}:smoke", *fixed, *data, *flags]) == 0
    return metrics(workdir)[-1]


@pytest.mark.slow
def test_every_config_trains_from_the_bc_run(rows, tmp_path, caplog):
    train("bc", rows, "bc", tmp_path / "bc")
    start = f"--config.model={tmp_path / 'bc'}"
    train("filtered_bc", rows, "filtered_bc", tmp_path / "filtered_bc", start)
    with caplog.at_level(logging.WARNING):
        line = train("ilql", rows, "ilql_full", tmp_path / "ilql", start, "--config.freeze=.")
    assert "should begin from a policy" not in caplog.text
    assert line["reward"] > 0
    for name in ("dpo", "cogpo"):
        assert 0 < train(name, rows, "pairs", tmp_path / name, start)["loss"] < 1
    flags = ["--chat=false", "--max_tokens=2", f"--advantage={tmp_path / 'ilql'}"]
    assert main(["generate", "Tom", *flags]) == 0


def test_published_masking_counts_the_problem_too(rows):
    scored = {}
    for argument in ("smoke", "published"):
        config = smallr.load_config(f"decomposition/bc:{argument}", model="tiny-random")
        found = tokenize(
            load_rows(str(rows / "bc"), "train"), open_trained("tiny-random").tokenizer(), tokenize_options(config)
        )
        example = next(iter(found))
        scored[argument] = int((example.completions[0].roles > 0).sum())
        text = sum(len(part) for part in (example.prefix, example.completions[0].tokens))
    assert scored["smoke"] < scored["published"]
    assert scored["published"] >= text - 1, "all tokens but the first"


def test_ilql_without_a_bc_start_warns_and_the_arguments_choose_rows(caplog):
    config = smallr.load_config("decomposition/ilql:smoke")
    with caplog.at_level(logging.WARNING):
        warn_of_start(config)
    assert "config.model: objective ilql should begin from a policy that was cloned" in caplog.text
    assert smallr.load_config("decomposition/ilql:sparse").data.train == "runs/decomposition/ilql_sparse"
    assert smallr.load_config("decomposition/ilql").data.train == "runs/decomposition/ilql_full"
    assert smallr.load_config("decomposition/bc:published").data.format == "text"
