"""Value and Q heads against dense ones, their target copy, and their places on a mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import MESH_AXES, make_mesh
from smallr.losses import TokenScores, head_scores
from smallr.models.decoder import Decoder
from smallr.models.heads import HeadOptions, attach_heads, fill_heads, follow, is_target_path, split_targets
from tests.tiny import CONFIG, VOCAB

EVEN = dataclasses.replace(CONFIG, vocab_size=64)  # so that two devices can share it
OPTIONS = HeadOptions(values=2, q=2, target=True, target_mixing=0.25)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return filled(make_mesh(1, 1, 1))


def filled(mesh) -> Decoder:
    """A decoder with heads whose parameters are all far from zero."""
    decoder = Decoder(EVEN, rngs=nnx.Rngs(0))
    attach_heads(decoder, OPTIONS, 1, mesh)
    rng = np.random.default_rng(0)
    shapes = {".".join(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(decoder.heads))}
    values = {path: rng.normal(size=shape).astype(np.float32) / 4 for path, shape in shapes.items()}
    fill_heads(decoder, values.__getitem__, mesh)
    return decoder


def case():
    rng = np.random.default_rng(1)
    return rng.normal(size=(2, 7, 32)).astype(np.float32), rng.integers(0, VOCAB, (2, 7)).astype(np.int32)


def scored(q, hidden, target) -> TokenScores:
    return head_scores(q.units(hidden), q.table[...], target, chunk=10)


def units(module, hidden):
    """The hidden units written out, one head after the other."""
    up, bias = np.asarray(module.up[...], np.float64), np.asarray(module.up_bias[...], np.float64)
    return [np.maximum(hidden @ up[:, h] + bias[h], 0) for h in range(up.shape[1])]


def test_fresh_heads_say_zero_and_the_copy_equals_its_heads():
    decoder = Decoder(CONFIG, rngs=nnx.Rngs(0))
    attach_heads(decoder, OPTIONS, 1, make_mesh(1, 1, 1))
    hidden, target = case()
    assert not np.any(decoder.heads.value(hidden))
    assert not np.any(scored(decoder.heads.q, hidden, target).logits)
    np.testing.assert_allclose(scored(decoder.heads.q, hidden, target).log_sum_exp, np.log(VOCAB), rtol=1e-6)
    for ours, theirs in zip(
        *(jax.tree.leaves(nnx.state(m)) for m in (decoder.heads.q, decoder.heads.target_q)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_heads_equal_dense_ones_written_out(decoder):
    hidden, target = case()
    value = decoder.heads.value
    for h, own in enumerate(units(value, hidden)):
        expected = own @ np.asarray(value.down[...], np.float64)[h] + np.asarray(value.down_bias[...])[h]
        np.testing.assert_allclose(value(hidden)[h], expected, atol=1e-5)
    scores = scored(decoder.heads.q, hidden, target)
    for h, own in enumerate(units(decoder.heads.q, hidden)):
        logits = own @ np.asarray(decoder.heads.q.table[...], np.float64)[h].T
        picked = np.take_along_axis(logits, target[..., None], -1)[..., 0]
        np.testing.assert_allclose(scores.logits[h], picked, atol=1e-5)
        np.testing.assert_allclose(scores.log_sum_exp[h], np.log(np.exp(logits).sum(-1)), atol=1e-5)
        np.testing.assert_allclose(decoder.heads.q.all_values(hidden)[h], logits, atol=1e-5)


def loss_of(graphdef, params, hidden, target):
    """A loss in which every head has a part, the target copy too."""
    heads = nnx.merge(graphdef, params)
    q, target_q = scored(heads.q, hidden, target), scored(heads.target_q, hidden, target)
    terms = (heads.value(hidden), q.logits, q.log_sum_exp, q.logps, target_q.logits)
    return sum((k + 1) * jnp.sum(jnp.sin(term)) for k, term in enumerate(terms))


def test_gradients_equal_those_of_dense_heads(decoder):
    hidden, target = case()
    graphdef, params = nnx.split(decoder.heads)

    def dense(params):
        heads = nnx.merge(graphdef, params)
        terms = [heads.value(hidden)]
        for module in (heads.q, heads.target_q):
            logits = module.all_values(hidden)
            picked = jnp.take_along_axis(logits, jnp.broadcast_to(target, logits.shape[:3])[..., None], -1)[..., 0]
            log_sum_exp = jax.nn.logsumexp(logits, -1)
            terms += [picked, log_sum_exp, picked - log_sum_exp] if module is heads.q else [picked]
        return sum((k + 1) * jnp.sum(jnp.sin(term)) for k, term in enumerate(terms))

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(jax.grad(lambda p: loss_of(graphdef, p, hidden, target)))(params)
        theirs = jax.jit(jax.grad(dense))(params)
    for (path, a), (_, b) in zip(nnx.to_flat_state(ours), nnx.to_flat_state(theirs), strict=True):
        np.testing.assert_allclose(a.get_value(), b.get_value(), atol=1e-4, rtol=1e-5, err_msg=".".join(path))


def compare_eight_devices() -> None:
    """Runs in the process of eight devices: values and gradients on a mesh of 2 x 2 x 2 devices equal those of one device."""
    hidden, target = case()
    found = []
    for mesh in (jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1, 1), MESH_AXES), make_mesh(2, 2, 2)):
        heads = filled(mesh).heads
        graphdef, params = nnx.split(heads)
        with jax.set_mesh(mesh):
            found.append(jax.jit(jax.value_and_grad(lambda p, g=graphdef: loss_of(g, p, hidden, target)))(params))
    assert heads.value.up[...].sharding.shard_shape((32, 2, 64)) == (16, 2, 32)
    assert heads.q.table[...].sharding.shard_shape((2, 64, 64)) == (2, 32, 32)
    (one, alone), (eight, spread) = found
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    for (path, a), (_, b) in zip(nnx.to_flat_state(spread), nnx.to_flat_state(alone), strict=True):
        np.testing.assert_allclose(a.get_value(), b.get_value(), atol=1e-4, rtol=1e-4, err_msg=".".join(path))


@pytest.mark.process
def test_eight_devices_equal_one(eight_devices):
    eight_devices("from tests.models import test_heads; test_heads.compare_eight_devices()")


def test_the_target_copy_follows_by_hand(decoder):
    online, targets = split_targets(nnx.state(decoder))
    assert {path[:2] for path, _ in nnx.to_flat_state(targets)} == {("heads", "target_q")}
    assert not any(is_target_path(path) for path, _ in nnx.to_flat_state(online))
    moved = follow(targets, online, 0.25)
    q, target = decoder.heads.q.table[...], decoder.heads.target_q.table[...]
    np.testing.assert_allclose(
        moved["heads"]["target_q"]["table"].get_value(), 0.25 * q + 0.75 * target, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(follow(targets, online, 1.0)["heads"]["target_q"]["table"].get_value(), q)
    plain = nnx.state(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    assert split_targets(plain)[0] is plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": 0}, "at least one head"),
        ({"q": -1}, "none negative"),
        ({"width": 0}, "config.heads.width: 0"),
        ({"target": True}, "config.heads.q is 0"),
        ({"target_mixing": 1.5}, "config.heads.target_mixing: 1.5"),
    ],
)
def test_options_out_of_bounds(fields, message):
    with pytest.raises(UserError, match=message):
        HeadOptions(**fields)
