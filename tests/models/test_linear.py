"""The dense product: values, gradients against autodiff and finite differences, and what is rounded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from smallr.models.linear import linear, transpose_minor


def _arrays(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "inputs", "equation"),
    [
        ((2, 5, 6), (6, 7), 1, "bti,io->bto"),
        ((2, 5, 6), (6, 3, 4), 1, "bti,ihd->bthd"),
        ((2, 5, 3, 4), (3, 4, 6), 2, "bthd,hdo->bto"),
    ],
)
def test_values_and_gradients_are_those_of_einsum(x_shape, w_shape, inputs, equation):
    x, w, bias = _arrays(0, x_shape, w_shape, w_shape[inputs:])

    def ours(x, w, bias):
        return jnp.sum(jnp.sin(linear(x, w, bias, dtype="float32", inputs=inputs)))

    def reference(x, w, bias):
        return jnp.sum(jnp.sin(jnp.einsum(equation, x, w, precision="highest") + bias))

    np.testing.assert_allclose(ours(x, w, bias), reference(x, w, bias), rtol=1e-5)
    for got, want in zip(
        jax.grad(ours, (0, 1, 2))(x, w, bias), jax.grad(reference, (0, 1, 2))(x, w, bias), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_finite_differences():
    x, w, direction = _arrays(1, (4, 6), (6, 5), (6, 5))

    def loss(w):
        return float(jnp.sum(linear(x, w, dtype="float32") ** 2))

    step = 1e-2
    slope = (loss(w + step * direction) - loss(w - step * direction)) / (2 * step)  # exact for a quadratic
    grad = jax.grad(lambda w: jnp.sum(linear(x, w, dtype="float32") ** 2))(w)
    np.testing.assert_allclose(jnp.sum(grad * direction), slope, rtol=1e-4)


def test_bfloat16_weight_gradient_is_summed_and_returned_in_float32():
    x, w, dout = _arrays(2, (2, 300, 16), (16, 24), (2, 300, 24))
    x16, dout16 = x.astype(jnp.bfloat16), dout.astype(jnp.bfloat16)
    out, pullback = jax.vjp(lambda x, w: linear(x, w, dtype="bfloat16"), x16, w)
    dx, dw = pullback(dout16)
    assert (out.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = np.einsum("bti,bto->io", np.asarray(x16, np.float64), np.asarray(dout16, np.float64))
    assert np.abs(dw - exact).max() < 1e-4  # rounding a result of this size to bfloat16 would cost 0.2
    exact_out = np.asarray(x16, np.float64) @ np.asarray(w.astype(jnp.bfloat16), np.float64)
    assert np.abs(np.asarray(out, np.float64) - exact_out).max() <= np.abs(exact_out).max() * 2**-8


def test_bias_gradient_is_float32():
    x, w, bias = _arrays(3, (2, 400, 8), (8, 4), (4,))
    grad = jax.grad(lambda bias: jnp.sum(linear(x, w, bias, dtype="bfloat16").astype(jnp.float32)))(bias)
    np.testing.assert_array_equal(grad, np.full(4, 800.0, np.float32))


def test_bias_is_added_before_rounding():
    """256.5 is no bfloat16 number; 256.5 - 256 is."""
    x, w = jnp.asarray([[256.0, 0.5]]), jnp.ones((2, 1))
    assert float(linear(x, w, jnp.asarray([-256.0]), dtype="bfloat16")[0, 0]) == 0.5


def test_float32_asks_for_full_precision():
    x, w = _arrays(4, (3, 6), (6, 5))
    program = jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(linear(x, w, dtype="float32")), (0, 1)))(x, w)
    asked = [
        eqn.params["precision"]
        for eqn in jax.tree.leaves(_equations(program.jaxpr))
        if eqn.primitive.name == "dot_general"
    ]
    assert len(asked) >= 3
    assert set(asked) == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}


def _equations(jaxpr) -> list:
    """All equations, those of inner programs too."""
    inner = [_equations(sub) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return [*jaxpr.eqns, *inner]


def test_mismatch_names_the_shapes():
    x, w = _arrays(5, (3, 6), (7, 5))
    with pytest.raises(ValueError, match=r"x \(3, 6\) are not the first 1 of w \(7, 5\)"):
        linear(x, w, dtype="float32")


def test_transpose_minor_inside_and_outside_of_jit():
    x = jnp.arange(24.0).reshape(2, 3, 4).astype(jnp.bfloat16)
    np.testing.assert_array_equal(transpose_minor(x), x.swapaxes(1, 2))
    np.testing.assert_array_equal(jax.jit(transpose_minor)(x), x.swapaxes(1, 2))
