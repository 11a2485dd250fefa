"""One engine for all runs: texts are those of each run by itself; with adapters the base is loaded and held once."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from smallr.config import add_lora
from smallr.methods.collate import writer as module
from smallr.methods.collate.config import training_config
from smallr.methods.collate.data import mixed_modes, opened
from smallr.methods.collate.writer import Writer
from smallr.models.lora import LoRA
from smallr.training.trainer import Trainer
from tests.methods.collate.small import MODES, ROWS, small_config, write_model

pytestmark = pytest.mark.slow

PROMPTS = [row["question"] for row in ROWS[:5]]
OPTIONS = {"seed": 0, "round": 1, "sampling": {"max_tokens": 6, "temperature": 1.0}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A run of all parameters, and two of adapters behind it."""
    home = tmp_path_factory.mktemp("writer")
    config = training_config(small_config(home, write_model(home / "model")), "tuning")
    rows = opened(mixed_modes(home, ROWS[:4], MODES, False))

    def trained(name: str, config: ConfigDict) -> Path:
        with Trainer(config, home / name) as trainer:
            trainer.load_data(rows)
            trainer.fit()
        return home / name

    def changed(**changes) -> ConfigDict:
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.update_from_flattened_dict(changes)
        return own

    tuned = trained("tuned", changed(model=str(home / "model"), steps=1))
    found = [tuned]
    for seed in (0, 1):
        adapted = changed(model=str(tuned), seed=seed, steps=1)
        with adapted.unlocked():
            add_lora(adapted, 2, 64.0)
            adapted.optimizer.learning_rate = 0.3
        found.append(trained(f"adapters{seed}", adapted))
    return found


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_adapters_are_swapped_beside_one_base(tmp_path, runs, monkeypatch):
    alone = [
        Writer(dtype="float32", decode_slots=2).complete(fresh(tmp_path / f"alone{number}"), run, PROMPTS, OPTIONS)
        for number, run in enumerate(runs)
    ]
    loaded, load = [], module.load_trained
    monkeypatch.setattr(module, "load_trained", lambda name, *a, **k: loaded.append(name) or load(name, *a, **k))
    shared = Writer(dtype="float32", decode_slots=2, lora=LoRA(2, 64.0))
    sizes = []
    for number, run in enumerate([*runs, runs[1]]):
        texts = shared.complete(fresh(tmp_path / f"shared{number}"), run, PROMPTS, OPTIONS)
        assert texts == alone[number if number < 3 else 1]
        sizes.append(shared.num_bytes)
    assert loaded == [str(runs[0])]
    assert len({str(texts) for texts in alone}) == 3  # the runs do write differently
    assert len({size["base"] for size in sizes}) == 1
    adapters = [size for name, size in sizes[-1].items() if name != "base"]
    assert len(adapters) == 3
    assert sum(adapters) < sizes[-1]["base"]
    layers = nnx.state(shared._decoder.layers)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(layers) if isinstance(leaf, jax.Array))
    assert held == adapters[0]  # the engine alone holds the base


def test_a_block_is_written_again_as_it_was(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 2)
    whole = Writer(dtype="float32", decode_slots=2).complete(fresh(tmp_path / "a"), runs[0], PROMPTS, OPTIONS)
    assert [each["reason"] for each in whole] == ["length"] * 5
    lines = (tmp_path / "a" / "journal.jsonl").read_text().splitlines(keepends=True)
    fresh(tmp_path / "b")
    (tmp_path / "b" / "journal.jsonl").write_text(lines[0] + lines[1][:20])  # killed while the second block was kept
    assert Writer(dtype="float32", decode_slots=2).complete(tmp_path / "b", runs[0], PROMPTS, OPTIONS) == whole
    other = Writer(dtype="float32", decode_slots=2).complete(
        fresh(tmp_path / "c"), runs[0], PROMPTS, {**OPTIONS, "round": 2}
    )
    assert np.mean([a == b for a, b in zip(other, whole, strict=True)]) < 0.5
