"""What a compiled step is known by: every field of a config that it is made of."""

from __future__ import annotations

import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from smallr.config import ilql, preference, rationale, unpaired
from smallr.core.reuse import Kept
from smallr.core.sharding import make_mesh
from smallr.data.packing import RowShape
from smallr.training import rounds
from smallr.training.objective import make_objective
from smallr.training.optimizer import Horizon
from smallr.training.policy import NOTHING, ModelFunctions
from smallr.training.references import Reference
from smallr.training.rounds import CompiledSteps, Round, configured_step
from tests.tiny import CONFIG

# Other values of fields that are no plain numbers, and of such whose range is narrow.
OTHERS = {
    "optimizer.name": "muon",
    "optimizer.schedule": "linear",
    "optimizer.on_extend": "rewarm",
    "objective.loss": "robust",
    "objective.reference": "live",
    "objective.divergence": "js",
    "objective.weighting": "wpo",
    "objective.normalise": "step",
    "objective.normalisation": "sum",
    "objective.amplify": 2.0,
    "objective.window": 64,
    "objective.ld_alpha": 0.5,
}
# Fields that are read outside of the step: which objective it is, and how a live reference moves (`Reference.program`).
ELSEWHERE = ("objective.name", "objective.sync_every", "objective.sync_mixing", "optimizer.groups")


def _identity(config: ConfigDict, *, steps: int = 10, reference: Reference | None = None):
    graphdef = nnx.graphdef(nnx.Dict(a=1))
    made_of = ModelFunctions(graphdef), make_objective(config), (Horizon(0, steps),), NOTHING, make_mesh(1, 1, -1)
    return configured_step(config, *made_of, reference or Reference.cached("digest"))[1]


def _changed(config: ConfigDict):
    """Yields a config for each field of optimizer, objective and step, in which that field alone is another."""
    fields = [f"{group}.{name}" for group in ("optimizer", "objective") for name in config[group]]
    for field in (*fields, "batch.accumulation", "compute.logp_chunk"):
        group, name = field.split(".")
        value = config[group][name]
        if field in ELSEWHERE or (field == "batch.accumulation" and make_objective(config).whole_step):
            continue
        new = OTHERS.get(field, not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else None)
        if new is None:
            new = 0.5 * value if value else 0.25
        if value in (None, new):
            continue
        other = config.copy_and_resolve_references()
        other[group][name] = new
        yield field, other


@pytest.mark.parametrize("make", [preference, unpaired, ilql, lambda: rationale("both")])
def test_no_two_configs_of_a_step_meet(make):
    known = {_identity(make()): "as it is"}
    assert _identity(make()) in known
    for field, config in _changed(make()):
        key = _identity(config)
        assert key not in known, f"{field} is taken for {known[key]}"
        known[key] = field
    assert len(known) > 15


def test_groups_horizons_and_references_are_known_apart():
    def grouped(**fields) -> ConfigDict:
        config = preference()
        config.optimizer.groups = ConfigDict({"embed": {"learning_rate": 1e-4, **fields}})
        return config

    moving = [Reference.moving(*how) for how in ((2, 0.5), (3, 0.5), (2, 0.6))]
    kinds = [Reference.none(), Reference.columns(), Reference.live(NOTHING), Reference.base(), *moving]
    keys = [
        *(_identity(grouped(**fields)) for fields in ({}, {"weight_decay": 0.5}, {"parameters": "layers"})),
        *(_identity(preference(), steps=steps) for steps in (10, 20)),
        *(_identity(preference(), reference=each) for each in kinds),
    ]
    assert len(set(keys)) == len(keys)


def test_a_program_is_of_the_settings_under_which_it_was_compiled(monkeypatch):
    monkeypatch.setattr(rounds, "PROGRAMS", Kept(4))
    step, shape = jax.jit(lambda x: x @ x), RowShape(CONFIG.d_model, 4, 1)

    def program():
        return CompiledSteps().get(step, "made of", (jax.numpy.ones((2, 2)),), shape, Round())

    first = program()
    assert program() is first
    with jax.default_matmul_precision("highest"):
        other = program()
    assert other is not first
    assert program() is first
