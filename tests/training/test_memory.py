"""The cost model of memory, against what XLA allocates: programs compiled here, and the table of docs/scale.md."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.abstract_step import Pairs, abstract_step
from smallr.cli.fit import KEPT_FREE
from smallr.config import preference
from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.lora import projections
from smallr.models.sizes import SIZES
from smallr.training.memory import Setting, adapter_params, estimate, most_rows
from smallr.training.optimizer import make_optimizer
from smallr.training.update_rules import NAMES as UPDATE_RULES

GIB = 2**30
SCALE = Path(__file__).parents[2] / "docs" / "scale.md"
NAMES = {"0.5B": "qwen2.5-0.5b", "1.5B": "qwen2.5-1.5b", "3B": "llama-3.2-3b", "8B": "llama-3.1-8b"}
SMALL = DecoderConfig(4096, 4, 256, 8, 4, 32, 1024, tie_embeddings=True)


def table() -> list[tuple[str, int, int, float]]:
    """Model, chips, rows of a chip and GiB of each program that libtpu compiled."""
    row = r"^\| *(?:v\d\w:\S+)? *\| ([\d.]+B) +\| 1, (\d+), 1 +\| (\d+) +\| ([\d.]+) of \d+ "
    found = re.findall(row, SCALE.read_text(), re.MULTILINE)
    return [(NAMES[model], int(chips), int(rows), float(gib)) for model, chips, rows, gib in found]


def test_estimates_are_near_the_programs_for_tpu_slices():
    cases = table()
    assert len(cases) == 12
    for model, chips, rows, gib in cases:
        setting = Setting(rows, 4096, remat="full", fsdp=chips, scored=2560 / 4096)
        assert 0.90 <= estimate(SIZES[model], setting).total / GIB / gib <= 1.26, (model, chips, rows)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "none"])
def test_estimates_are_near_what_is_compiled_here(remat):
    model = dataclasses.replace(SMALL, dtype="float32", remat=remat, attention="xla")
    step = abstract_step(model, preference(), make_mesh(1, 1, 1), Pairs(64, 64, 16, 24))
    memory = step.compile().memory_analysis()
    ours = estimate(model, Setting(64, 64, "float32", remat, scored=48 / 64, platform="cpu"))
    # The state is exact, but for the batch.
    assert memory.argument_size_in_bytes == pytest.approx(ours.parameters + ours.optimizer, rel=0.02)
    kept = ours.gradients + ours.activations + ours.working
    assert memory.temp_size_in_bytes == pytest.approx(kept, rel=0.15)


def test_parameters_of_adapters_are_counted():
    decoder = nnx.eval_shape(lambda: Decoder(SMALL, rngs=nnx.Rngs(0)))
    shapes = {".".join(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
    count = 0
    for path, row in projections(SMALL).items():
        layers, *sizes = shapes[path]
        inputs, outputs = np.prod(sizes[: row.inputs]), np.prod(sizes[row.inputs :])
        count += layers * 2 * (inputs + outputs)
    assert adapter_params(SMALL, 2) == count


SMOLLM2 = DecoderConfig(49152, 30, 576, 9, 3, 64, 1536, tie_embeddings=True)


def test_the_published_table_of_lora_holds():
    """MiB of weights in docs/adapters.md: SmolLM2-135M under adapters of rank 16."""
    for base, mib in {"float32": 532, "int8": 234, "nf4": 184}.items():
        held = estimate(SMOLLM2, Setting(4, 512, lora=16, base=base))
        assert held.parameters / 2**20 == pytest.approx(mib, abs=2)
        assert held.optimizer / 2**20 == pytest.approx(37, abs=1)


@pytest.mark.parametrize(("lora", "remat", "mib"), [(0, "dots", 1272), (16, "dots", 785), (16, "full", 267)])
def test_the_published_temporaries_hold(lora, remat, mib):
    """MiB of docs/adapters.md: 4 rows of 512 tokens on a CPU, bfloat16."""
    step = estimate(SMOLLM2, Setting(4, 512, remat=remat, lora=lora, platform="cpu"))
    assert (step.gradients + step.activations + step.working) / 2**20 == pytest.approx(mib, rel=0.05)


def test_what_costs_more_fits_fewer_rows():
    model = SIZES["qwen2.5-0.5b"]
    rows = {remat: most_rows(model, Setting(1, 2048, remat=remat), 24 * GIB) for remat in ("none", "dots", "full")}
    assert 0 < rows["none"] < rows["dots"] < rows["full"] < 1024
    setting = Setting(rows["dots"], 2048)
    assert (
        estimate(model, setting).total
        <= 24 * GIB
        < estimate(model, dataclasses.replace(setting, rows=rows["dots"] + 1)).total
    )
    assert most_rows(SIZES["llama-3.1-8b"], Setting(1, 2048), 24 * GIB) == 0
    live, parts = dataclasses.replace(setting, live=True), dataclasses.replace(setting, accumulation=2)
    assert estimate(model, live).reference == 4 * model.num_params
    assert estimate(model, parts).gradients == 2 * estimate(model, setting).gradients


def test_the_page_has_the_estimates_of_gpus():
    """Rows of docs/memory.md: model, what is trained, the most rows with dots and full, on 24 and on 80 GiB."""
    page = (SCALE.parent / "memory.md").read_text()
    cases = re.findall(r"^\| ([\d.]+B) \| (all|LoRA)(?: on `(\w+)`)? \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert len(cases) == 6
    for name, trained, base, *shown in cases:
        lora = {"lora": 16, "base": base or "float32"} if trained == "LoRA" else {}
        for gib, rows in zip((24, 80), shown, strict=True):
            found = [
                most_rows(SIZES[NAMES[name]], Setting(1, 2048, remat=remat, **lora), gib * GIB * (1 - KEPT_FREE))
                for remat in ("dots", "full")
            ]
            assert rows == ("none" if not any(found) else ", ".join(map(str, found))), (name, trained, gib)


def test_the_page_has_the_states_of_optimizers():
    page = (SCALE.parent / "memory.md").read_text()
    cases = re.findall(r"^\| ([\d.]+B) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(cases) == 4
    for name, *shown in cases:
        for optimizer, gib in zip(("adamw", "adamw8bit", "muon", "adafactor"), shown, strict=True):
            setting = Setting(1, 2048, optimizer=optimizer)
            assert f"{estimate(SIZES[NAMES[name]], setting).optimizer / GIB:.2f}" == gib, (name, optimizer)


@pytest.mark.parametrize("name", UPDATE_RULES)
def test_states_of_optimizers_are_what_optax_allocates(name):
    params = nnx.split(nnx.eval_shape(lambda: Decoder(SMALL, rngs=nnx.Rngs(0))))[1]
    config = preference().optimizer
    config.name = name
    state = jax.eval_shape(make_optimizer(config, lambda step: 0.0).init, params)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert estimate(SMALL, Setting(1, 64, optimizer=name)).optimizer == pytest.approx(held, rel=0.02)


def test_devices_of_a_row_split_the_state_and_the_activations():
    model, whole = SIZES["qwen2.5-0.5b"], Setting(1, 32768, remat="full")
    one, split = estimate(model, whole), estimate(model, dataclasses.replace(whole, context=16))
    for name in ("parameters", "optimizer", "activations"):
        assert getattr(split, name) == pytest.approx(getattr(one, name) / 16)
    assert split.total < one.total / 5


def test_the_page_has_the_estimates_of_long_rows():
    cases = re.findall(r"^\| ([\d.]+B) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)\b", SCALE.read_text(), re.MULTILINE)
    assert len(cases) == 4
    for name, *shown in cases:
        for length, gib in zip((32768, 65536, 131072), shown, strict=True):
            setting = Setting(1, length, remat="full", context=16, scored=30720 / 32768)
            assert f"{estimate(SIZES[NAMES[name]], setting).total / GIB:.1f}" == gib, (name, length)
