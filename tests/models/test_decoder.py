"""Packing, shared prompts, padding, remat and bfloat16 do not change what the decoder computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smallr.models.decoder import Decoder
from tests.models.helpers import TINY, packed_rule, whole, with_fields

pytestmark = pytest.mark.usefixtures("cpu_mesh")

LENGTH = 128  # two tiles of keys
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, LENGTH))


def _decoder(**changes) -> Decoder:
    """Weights large enough that attention is not uniform."""
    decoder = Decoder(with_fields(TINY, **changes), rngs=nnx.Rngs(3))
    graphdef, state = nnx.split(decoder)
    scaled = [
        (path, leaf.replace(leaf[...] * (1 if "scale" in path else 6))) for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(scaled))


@jax.jit
def _hidden(decoder: Decoder, tokens, positions, horizon):
    return decoder(tokens, positions, horizon)


def _alone(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    positions, horizon = whole(len(tokens))
    return np.asarray(_hidden(decoder, jnp.asarray(tokens)[None], positions, horizon)[0])


@pytest.mark.slow
def test_a_sequence_among_others_is_the_sequence_alone():
    decoder = _decoder()
    positions, horizon = packed_rule([[(25, 15), (30, 10), (3, 7)], [(70, 50)]], LENGTH)
    packed = np.asarray(_hidden(decoder, jnp.asarray(TOKENS), positions, horizon))
    for row, start, stop in [(0, 0, 40), (0, 40, 80), (0, 80, 90), (1, 0, 120)]:
        np.testing.assert_allclose(packed[row, start:stop], _alone(decoder, TOKENS[row, start:stop]), atol=1e-5)


@pytest.mark.slow
def test_a_shared_prompt_is_two_sequences_in_values_and_gradients():
    decoder = _decoder()
    graphdef, state = nnx.split(decoder)
    prompt, chosen, rejected = TOKENS[0, :48], TOKENS[0, 48:76], TOKENS[0, 76:]
    cotangent = jax.random.normal(jax.random.key(1), (LENGTH, TINY.d_model))
    positions, horizon = packed_rule([[(48, 28, 52)]], LENGTH)

    def shared(state):
        hidden = nnx.merge(graphdef, state)(jnp.asarray(TOKENS[:1]), positions, horizon)[0]
        return jnp.sum(hidden * cotangent), hidden

    def apart(state):
        decoder = nnx.merge(graphdef, state)
        rows = [np.concatenate([prompt, completion]) for completion in (chosen, rejected)]
        first, second = (decoder(jnp.asarray(row)[None], *whole(len(row)))[0] for row in rows)
        hidden = jnp.concatenate([first, second[48:]])
        return jnp.sum(hidden * cotangent), (hidden, second[:48])

    grads, hidden = jax.jit(jax.grad(shared, has_aux=True))(state)
    wanted, (expected, prompt_again) = jax.jit(jax.grad(apart, has_aux=True))(state)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    np.testing.assert_allclose(hidden[:48], prompt_again, atol=1e-5)
    _assert_close(grads, wanted, 1e-5)


@pytest.mark.slow
def test_padding_gives_no_nan_and_no_gradient():
    graphdef, state = nnx.split(_decoder())
    positions, horizon = packed_rule([[(20, 10)], []], LENGTH)

    def loss(state, tokens, rows, length):
        decoder = nnx.merge(graphdef, state)
        hidden = decoder(*(x[:rows, :length] for x in (tokens, positions, horizon)))
        return jnp.sum(hidden[0, :30] ** 3), hidden

    tokens = jnp.asarray(TOKENS)
    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(2, 3))
    grads, hidden = grad(state, tokens, 2, LENGTH)
    assert np.isfinite(hidden).all()
    unpadded, _ = grad(state, tokens, 1, 30)
    _assert_close(grads, unpadded, 1e-5)
    everything = jax.jit(jax.grad(lambda state: jnp.sum(loss(state, tokens, 2, LENGTH)[1] ** 2)))(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "both"])
def test_remat_does_not_change_gradients(place):
    positions, horizon = packed_rule([[(25, 20), (30, 13, 16)], [(70, 50)]], LENGTH)

    def gradients(remat: str):
        graphdef, state = nnx.split(_decoder(remat=remat, norm_place=place))

        def loss(state):
            hidden = nnx.merge(graphdef, state)(jnp.asarray(TOKENS), positions, horizon)
            return jnp.sum(jnp.sin(hidden.astype(jnp.float32)))

        return jax.jit(jax.grad(loss))(state)

    none = gradients("none")
    for remat in ("dots", "full"):
        _assert_close(gradients(remat), none, 1e-5)


def _products(jaxpr) -> int:
    """Counts the products of a program, those of its loops and branches included."""
    inner = [param for eqn in jaxpr.eqns for param in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)]
    own = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
    return own + sum(_products(getattr(param, "jaxpr", param)) for param in inner if _is_jaxpr(param))


def _is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


@pytest.mark.slow
@pytest.mark.parametrize(("place", "again"), [("before", 1), ("after", 0), ("both", 0)])
def test_dots_computes_at_most_attentions_last_product_again(place, again):
    def products(remat: str) -> int:
        graphdef, state = nnx.split(_decoder(remat=remat, norm_place=place))
        loss = jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(jnp.asarray(TOKENS), *whole(LENGTH, 2))))
        return _products(jax.make_jaxpr(loss)(state).jaxpr)

    none, dots, full = (products(remat) for remat in ("none", "dots", "full"))
    assert dots == none + again < full, (none, dots, full)


@pytest.mark.slow
def test_remat_keeps_less():
    def temporary_bytes(remat: str) -> int:
        graphdef, state = nnx.split(_decoder(remat=remat, num_layers=6, qkv_bias=False))
        loss = jax.jit(
            jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(jnp.asarray(TOKENS), *whole(LENGTH, 2))))
        )
        return loss.lower(state).compile().memory_analysis().temp_size_in_bytes

    none, dots, full = (temporary_bytes(remat) for remat in ("none", "dots", "full"))
    assert full < 0.8 * dots < 0.8 * 0.8 * none, (none, dots, full)


@pytest.mark.slow
def test_bfloat16_is_within_its_rounding():
    positions, horizon = packed_rule([[(25, 20), (30, 13, 16)], [(70, 50)]], LENGTH)
    wide = np.asarray(_hidden(_decoder(), jnp.asarray(TOKENS), positions, horizon))
    narrow = _hidden(_decoder(dtype="bfloat16"), jnp.asarray(TOKENS), positions, horizon)
    assert narrow.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(narrow, np.float32) - wide) / np.linalg.norm(wide)
    assert error < 0.05, error


def test_positions_are_relative():
    """Rotary scores depend on differences of positions only, so a shifted example is the same example."""
    decoder = _decoder()
    positions, horizon = whole(50)
    tokens = jnp.asarray(TOKENS[:1, :50])
    shifted = _hidden(decoder, tokens, positions + 37, horizon)
    np.testing.assert_allclose(_hidden(decoder, tokens, positions, horizon), shifted, atol=2e-4)
    stretched = _hidden(decoder, tokens, positions * 2, horizon)
    assert np.abs(stretched - shifted).max() > 1e-2


def test_parameters_are_named_float32_masters():
    decoder = _decoder(dtype="bfloat16")
    flat = dict(nnx.to_flat_state(nnx.state(decoder)))
    assert all(param[...].dtype == jnp.float32 for param in flat.values())
    axes = {".".join(path): param.get_metadata("axes") for path, param in flat.items()}
    assert all(len(names) == flat[tuple(path.split("."))].ndim for path, names in axes.items())
    assert axes["layers.attention.q"] == ("layers", "embed", "heads", "head_dim")
    assert axes["layers.mlp.down"] == ("layers", "mlp", "embed")
    assert axes["embed.table"] == axes["head.table"] == ("vocab", "embed")
    assert all(names[0] == "layers" for path, names in axes.items() if path.startswith("layers."))


def test_unembedding_is_the_embedding_when_tied():
    tied, untied = _decoder(tie_embeddings=True), _decoder()
    np.testing.assert_array_equal(tied.unembedding(), tied.embed.table[...])
    np.testing.assert_array_equal(untied.unembedding(), untied.head.table[...])
    assert not hasattr(tied, "head")


def _assert_close(got, want, tolerance: float) -> None:
    """Every leaf within `tolerance` of the largest entry of the expected leaf."""
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        scale = float(jnp.abs(b).max())
        assert float(jnp.abs(a - b).max()) <= tolerance * scale, (jax.tree_util.keystr(path), scale)
