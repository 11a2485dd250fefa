"""LoRA is x W + scale x A B: values and gradients against the dense product, dropout, targets."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.decoder import Decoder
from smallr.models.export import parameter_shapes
from smallr.models.loading import load_decoder, open_model
from smallr.models.lora import LoRA, adapters, attach, is_adapter_path, merged, projections, quantiser, targets
from smallr.training import policy as policy_module
from smallr.training.policy import NOTHING, ModelFunctions, load_policy, prepare_policy
from tests.models.helpers import TINY, whole
from tests.runs import smoke

CONFIG = dataclasses.replace(TINY, remat="full")
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 24))


@pytest.fixture(autouse=True)
def _one_platform():
    """The CPU's way of attention and products is traced alone."""
    with jax.set_mesh(make_mesh(1, 1, 1)):
        yield


def built(lora: LoRA, seed: int = 0) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A decoder with adapters whose B is not zero: graph, adapters, base."""
    decoder = Decoder(CONFIG, rngs=nnx.Rngs(0))
    attach(decoder, lora, seed, make_mesh(1, 1, 1))
    graphdef, params, base = nnx.split(decoder, lambda path, _: is_adapter_path(path), ...)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), params)
    return graphdef, params, jax.tree.map(lambda x: x * 4, base)


@jax.jit
def hidden_states(decoder: Decoder) -> jax.Array:
    return decoder(jnp.asarray(TOKENS), *whole(24, 2))


def loss(decoder: Decoder) -> jax.Array:
    hidden = hidden_states(decoder)
    return jnp.sum(jnp.sin(hidden @ decoder.unembedding().T)) / 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [LoRA(4, 8.0), LoRA(3, 6.0, rslora=True, target=r"mlp\.down|attention\.(o|q)$")],
    ids=["all projections", "some, rsLoRA"],
)
def test_values_and_gradients_are_those_of_the_dense_weights(lora):
    graphdef, params, base = built(lora)
    scale = lora.alpha / (np.sqrt(lora.rank) if lora.rslora else lora.rank)
    named = {".".join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(params)}
    paths = {path.rpartition("_lora.")[0] for path in named}
    assert paths == set(targets(CONFIG, lora))
    plain = nnx.graphdef(nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0))))

    def dense(named: dict[str, jax.Array]) -> jax.Array:
        leaves = []
        for path, leaf in nnx.to_flat_state(base):
            name = ".".join(path)
            if name in paths:
                delta = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(named[f"{name}_lora.a"], named[f"{name}_lora.b"])
                leaf = leaf.replace(leaf.get_value() + scale * delta)
            leaves.append((path, leaf))
        return loss(nnx.merge(plain, nnx.from_flat_state(leaves)))

    expected, theirs = jax.jit(jax.value_and_grad(dense))(named)
    value, ours = jax.jit(jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params, base))))(params)
    assert abs(float(expected - loss(nnx.merge(plain, base)))) > 1e-2, "the adapters do next to nothing"
    np.testing.assert_allclose(value, expected, rtol=3e-5)
    for path, leaf in nnx.to_flat_state(ours):
        reference = theirs[".".join(path)]
        size = np.abs(reference).max()
        assert size > 0
        np.testing.assert_allclose(leaf.get_value() / size, reference / size, atol=1e-4, err_msg=str(path))


@pytest.mark.slow
def test_merged_weights_give_the_same_hidden_states():
    lora = LoRA(4, 8.0)
    graphdef, params, base = built(lora)
    decoder = nnx.merge(graphdef, params, base)
    expected = hidden_states(decoder)
    plain = Decoder(CONFIG, rngs=nnx.Rngs(0))
    nnx.update(plain, base)
    for path in targets(CONFIG, lora):
        part, name = path.split(".")[1:]
        adapter = getattr(getattr(decoder.layers, part), f"{name}_lora")
        variable = getattr(getattr(plain.layers, part), name)
        a, b = (np.asarray(x.get_value()) for x in (adapter.a, adapter.b))
        variable.set_value(jnp.asarray(merged(np.asarray(variable.get_value()), a, b, lora.scale)))
    np.testing.assert_allclose(hidden_states(plain), expected, atol=2e-5 * np.abs(expected).max())


def test_fresh_adapters_add_nothing_and_have_the_size_that_peft_gives():
    decoder = Decoder(CONFIG, rngs=nnx.Rngs(0))
    expected = hidden_states(decoder)
    attach(decoder, LoRA(8, 16.0), 0, make_mesh(1, 1, 1))
    np.testing.assert_array_equal(hidden_states(decoder), expected)
    a = decoder.layers.attention.o_lora.a
    assert a.shape == (3, 6, 8, 8)
    assert decoder.layers.attention.o_lora.b.shape == (3, 8, 48)
    assert 0.95 / np.sqrt(48) < np.abs(a[...]).max() <= 1 / np.sqrt(48)
    assert len(list(adapters(decoder))) == 7
    first, second = decoder.layers.attention.q_lora.a[...], decoder.layers.attention.k_lora.a[...]
    assert not np.array_equal(first, second), "two projections began alike"


@pytest.mark.slow
def test_dropout_is_of_the_training_step_alone_and_follows_its_key():
    config = smoke("cogpo_lora", **{"lora.dropout": 0.25, "lora.rank": 4})
    mesh = make_mesh(1, 1, 1)
    trained = prepare_policy(Decoder(CONFIG, rngs=nnx.Rngs(0)), config, mesh)
    policy, frozen = trained.policy, trained.frozen
    params = jax.tree.map(lambda x: x + 0.05, trained.params)

    def hidden(decoder: Decoder) -> np.ndarray:
        return np.asarray(hidden_states(decoder))

    still = hidden(policy.decoder(params, frozen))
    keys = [jax.random.key(n) for n in (0, 1)]
    dropped = [hidden(policy.decoder(params, frozen, key)) for key in (*keys, keys[0])]
    np.testing.assert_array_equal(dropped[0], dropped[2])
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    assert np.abs(dropped[0] - still).max() > 1e-3
    base = ModelFunctions(policy.base)
    np.testing.assert_array_equal(hidden(policy.base_decoder(frozen)), hidden(base.decoder(frozen, NOTHING)))

    adapter = policy.decoder(params, frozen, keys[0]).layers.attention.q_lora
    masks = adapter.key[...]
    assert len({tuple(row) for row in np.asarray(masks).tolist()}) == CONFIG.num_layers, "layers share their masks"


def test_dropped_inputs_are_zero_and_the_others_grow_by_what_keeps_the_mean():
    decoder = Decoder(CONFIG, rngs=nnx.Rngs(0))
    attach(decoder, LoRA(48, 48.0, dropout=0.25, target="mlp.gate"), 0, make_mesh(1, 1, 1))
    adapter = decoder.layers.mlp.gate_lora
    eye = jnp.eye(48)
    one = type(adapter)(nnx.Param(eye), nnx.Param(jnp.eye(48, 80)), LoRA(48, 48.0, dropout=0.25))
    one.key = nnx.Variable(jax.random.key_data(jax.random.key(3)))
    out = np.asarray(one(jnp.ones((2000, 48)), dtype="float32", inputs=1))[:, :48]
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    assert abs((out == 0).mean() - 0.25) < 0.01


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0, "alpha": 1.0}, "config.lora.rank"),
        ({"rank": 4, "alpha": 1.0, "dropout": 1.0}, "config.lora.dropout"),
        ({"rank": 4, "alpha": 1.0, "target": "("}, "no regular expression"),
        ({"rank": 4, "alpha": 1.0, "target": "embed"}, r"layers\.attention\.q"),
    ],
)
def test_bad_fields_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        targets(CONFIG, LoRA(**fields))


def test_projections_are_the_products_of_the_layers():
    names = {"attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down"}
    assert set(projections(CONFIG)) == {f"layers.{name}" for name in names}


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_base_is_quantised_while_it_is_read(format, small_model, monkeypatch):
    """It equals one that is quantised afterwards, and at no time is more than one projection held in float32."""
    config, mesh, source = smoke("cogpo_lora", **{"lora.base": format}), make_mesh(1, 1, 1), open_model(small_model)
    whole = prepare_policy(load_decoder(source, mesh), config, mesh)
    dense = sum(leaf.get_value().nbytes for _, leaf in nnx.to_flat_state(nnx.state(load_decoder(source, mesh))))
    before, held = {id(array) for array in jax.live_arrays()}, []

    def watched(*args):
        quantise = quantiser(*args)

        def convert(path, variable):
            held.append(sum(array.nbytes for array in jax.live_arrays() if id(array) not in before))
            return quantise(path, variable)

        return convert

    monkeypatch.setattr(policy_module, "quantiser", watched)
    read = load_policy(source, config, mesh)
    assert read.digest == whole.digest
    for ours, theirs in zip(jax.tree.leaves(read.frozen), jax.tree.leaves(whole.frozen), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    frozen = sum(array.nbytes for array in jax.tree.leaves(read.frozen))
    largest = 4 * max(math.prod(parameter_shapes(source.config)[path]) for path in projections(source.config))
    assert max(held) <= frozen + largest + 4096
    assert max(held) < dense
