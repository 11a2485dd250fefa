"""What layers keep for the backward pass: by name, bfloat16 as bits, without changing a number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.models.remat import keep, keep_residual, rematerialised

LAYERS, TOKENS, WIDTH = 3, 5, 8


def loss(weights, x, remat, name="projection"):
    """Three layers of a product and a nonlinearity, as the decoder scans them."""

    def layer(x, w):
        y = keep((x @ w).astype(weights.dtype), name)
        return x + jnp.sin(y.astype(jnp.float32)).astype(x.dtype), None

    x, _ = jax.lax.scan(rematerialised(layer, remat), x, weights)
    return jnp.sum(jnp.square(x.astype(jnp.float32)))


def inputs(dtype):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(LAYERS, WIDTH, WIDTH)), dtype)
    return weights, jnp.asarray(rng.normal(size=(TOKENS, WIDTH)), dtype)


def stacks(dtype, remat, name="projection"):
    """Shapes and dtypes of what the forward scan stacks for the backward one."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda w, x: loss(w, x, remat, name)))(*inputs(dtype))
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    forward = scans[0]
    return [(v.aval.shape, v.aval.dtype) for v in forward.outvars if v.aval.shape[:1] == (LAYERS,)]


def test_named_products_are_stacked_as_bits_in_bfloat16_and_as_they_are_in_float32():
    shape = (LAYERS, TOKENS, WIDTH)
    assert (shape, jnp.uint16) in stacks(jnp.bfloat16, "dots")
    assert (shape, jnp.uint16) not in stacks(jnp.bfloat16, "full")
    assert (shape, jnp.uint16) not in stacks(jnp.bfloat16, "dots", name="something else")
    assert len(stacks(jnp.float32, "dots")) == len(stacks(jnp.float32, "full")) + 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_do_not_depend_on_what_is_kept(dtype):
    kept = {
        remat: jax.jit(jax.value_and_grad(loss), static_argnums=2)(*inputs(dtype), remat) for remat in ("dots", "full")
    }
    np.testing.assert_array_equal(kept["dots"][0], kept["full"][0])
    np.testing.assert_array_equal(kept["dots"][1].astype(np.float32), kept["full"][1].astype(np.float32))
    assert np.any(kept["dots"][1].astype(np.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeping_is_the_identity_with_derivative_one(dtype):
    x = jnp.asarray([1.5, -2.0, 0.0, 3e38, -1e-38], dtype)
    np.testing.assert_array_equal(keep(x, "projection").astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(keep_residual(x, "projection").astype(np.float32), x.astype(np.float32))
    value, tangent = jax.jvp(lambda x: keep(x, "projection"), (x,), (2 * jnp.ones_like(x),))
    assert value.dtype == tangent.dtype == dtype
    np.testing.assert_array_equal(tangent.astype(np.float32), np.full(5, 2.0))
