"""Adafactor, Muon and AdamW in 8 bits against independent implementations, on parameters of scanned layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from smallr.config import base, preference
from smallr.core.errors import UserError
from smallr.models.parameters import param
from smallr.training.adam_8bit import block_size, dequantize, quantize
from smallr.training.matrices import seen, unseen, views
from smallr.training.optimizer import check_optimizer, make_optimizer
from smallr.training.update_rules import NAMES

RATE, DECAY = 0.01, 0.1
RNG = np.random.default_rng(0)


def normal(shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def parameters() -> nnx.State:
    """Two scanned layers with a projection in, one out and a bias, and an embedding."""

    class Layers(nnx.Module):
        def __init__(self):
            self.q = param(normal, (160, 4, 40), ("embed", "heads", "head_dim"), (2,))
            self.o = param(normal, (4, 40, 160), ("heads", "head_dim", "embed"), (2,))
            self.q_bias = param(normal, (4, 40), ("heads", "head_dim"), (2,))

    class Model(nnx.Module):
        def __init__(self):
            self.layers = Layers()
            self.table = param(normal, (50, 160), ("vocab", "embed"))

    return nnx.state(Model())


def updated(name, steps=3, groups=None, **changes):
    """Parameters before, gradients of all steps, and parameters after, by dotted path as an optimizer sees them."""
    config = base().optimizer
    config.update({"name": name, "clip_norm": 0.0, "weight_decay": DECAY, "groups": groups or {}, **changes})
    optimizer = make_optimizer(config, lambda step: RATE)
    params = parameters()
    found = views(params)
    before, gradients, state = seen(params, found), [], optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        gradient = jax.tree.map(lambda x: normal(x.shape), params)
        gradients.append(seen(gradient, found))
        changes, state = update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    return jax.device_get((before, gradients, seen(params, found))), state


def test_views_show_layers_matrices_and_put_them_back():
    params = parameters()
    found = views(params)
    shapes = {path: (view.seen, view.inputs, view.block_axis if view.inputs else None) for path, view in found.items()}
    assert shapes == {
        "layers.q": ((2, 160, 160), 1, 2),
        "layers.o": ((2, 160, 160), 2, 1),
        "layers.q_bias": ((2, 4, 40), 0, None),
        "table": ((50, 160), 0, None),
    }
    again = unseen(seen(params, found), params)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parity
def test_adafactor_equals_transformers_for_each_layer():
    import torch
    from transformers.optimization import Adafactor

    (before, gradients, after), _ = updated("adafactor")
    for path in ("layers.q", "layers.o"):
        for layer in range(2):
            theirs = torch.nn.Parameter(torch.tensor(before[path][layer]))
            options = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
            optimizer = Adafactor([theirs], lr=RATE, weight_decay=DECAY, **options)
            for gradient in gradients:
                theirs.grad = torch.tensor(gradient[path][layer])
                optimizer.step()
            np.testing.assert_allclose(after[path][layer], theirs.detach().numpy(), rtol=2e-5, atol=2e-6)


def orthogonal(x):
    """Five steps of the quintic iteration of Muon's authors, on one matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_muon_orthogonalises_the_momentum_of_each_layer():
    (before, gradients, after), _ = updated("muon", steps=1)
    for layer in range(2):
        gradient = gradients[0]["layers.q"][layer].astype(np.float64)  # the momentum of a first step is along it
        step = 0.2 * np.sqrt(160) * orthogonal(gradient) + DECAY * before["layers.q"][layer]
        np.testing.assert_allclose(
            before["layers.q"][layer] - after["layers.q"][layer], RATE * step, rtol=1e-3, atol=1e-5
        )
    first = before["table"] - RATE * (np.sign(gradients[0]["table"]) + DECAY * before["table"])
    np.testing.assert_allclose(after["table"], first, rtol=1e-4, atol=1e-5, err_msg="embeddings take AdamW's step")
    bias = before["layers.q_bias"] - RATE * np.sign(gradients[0]["layers.q_bias"])
    np.testing.assert_allclose(after["layers.q_bias"], bias, rtol=1e-4, atol=1e-5, err_msg="biases too, without decay")


@pytest.mark.slow
def test_adamw_in_8_bits_stays_within_a_tenth_of_adamw():
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state
    (before, _, after), state = updated("adamw8bit", steps=12)
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state
    (same, _, exact), _ = updated("adamw", steps=12)
    for path, start in before.items():
        np.testing.assert_array_equal(start, same[path])
        change = exact[path] - start
        error = np.linalg.norm(after[path] - exact[path]) / np.linalg.norm(change)
        assert error < (0.1 if path in ("layers.q", "layers.o") else 1e-6), (path, error)
    held = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim == 3 and x.shape[1:] != (4, 40))
    assert held == pytest.approx(2 * 2 * 2 * 160 * 160 * (1 + 4 / 160), rel=1e-6), "2 bytes a weight, and scales"


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
@pytest.mark.parametrize("axis", [1, 2])
def test_codes_are_right_in_the_mean_and_within_a_step(dtype, axis):
    x = np.random.default_rng(1).normal(size=(2, 64, 96)).astype(np.float32) ** 3
    x = np.abs(x) if dtype == jnp.uint8 else x
    back = []
    for seed in range(64):
        bits = jax.random.bits(jax.random.key(seed), x.shape) & 0xFFFF
        back.append(np.asarray(dequantize(*quantize(jnp.asarray(x), axis, bits, dtype), axis)))
    top = np.abs(x).max(axis=axis, keepdims=True)
    assert block_size(64) == 64
    assert block_size(96) == 96
    steps = np.iinfo(dtype).max
    root = (np.abs(x) / top) ** 0.25
    assert (np.abs(np.stack(back)) <= top * np.minimum((root + 1.001 / steps) ** 4, 1.0001)).all()
    large = root > 0.3
    np.testing.assert_allclose(np.mean(back, axis=0)[large], x[large], rtol=0.05)  # of 64 draws


def test_a_square_above_zero_is_never_held_as_zero():
    x = jnp.asarray([[[1.0, 1e-20, 0.0]]])
    codes, _ = quantize(x, 2, jnp.zeros(x.shape, jnp.uint32), jnp.uint8)
    assert codes.tolist() == [[[255, 1, 0]]]


@pytest.mark.parametrize("name", NAMES)
def test_groups_keep_their_rates_under_every_optimizer(name):
    groups = {"still": {"learning_rate": 0.0, "parameters": r"^layers\.q$"}}
    (before, _, after), _ = updated(name, steps=1, groups=groups)
    np.testing.assert_array_equal(after["layers.q"], before["layers.q"])
    assert all((after[path] != before[path]).any() for path in ("layers.o", "layers.q_bias", "table"))


def test_unknown_optimizers_and_muon_without_matrices_are_refused():
    config = preference()
    config.optimizer.name = "adam8"
    with pytest.raises(UserError, match=r"config.optimizer.name: 'adam8' must be one of: adamw, adafactor, muon"):
        check_optimizer(config)
    config.optimizer.name, config.lora = "muon", {"rank": 4}
    with pytest.raises(UserError, match="adapters and soft prompts are none"):
        check_optimizer(config)
