"""Products with rows: against numpy in float64, and which operand stands on the left."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.models.projection import FEW, TransposedWeight, products_of_rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [(1,), (2,), (4, 3), (FEW,), (FEW + 1,), ()])
def test_products_are_those_of_numpy(dtype, batch):
    rng = np.random.default_rng(0)
    x, rows = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((*batch, 48), (80, 48)))
    wanted = np.asarray(x, np.float64) @ np.asarray(rows, np.float64).T
    got = jax.jit(products_of_rows)(x, rows)
    assert got.shape == (*batch, 80)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=3e-5)


def test_fused_outputs_of_few_vectors_and_of_many_are_equal():
    rng = np.random.default_rng(1)
    weight = TransposedWeight(jnp.asarray(rng.normal(size=(24 + 16, 32)), jnp.float32), ((3, 8), (16,)))
    x = jnp.asarray(rng.normal(size=(FEW + 8, 1, 32)), jnp.float32)
    many = weight.products(x, 1)
    few = weight.products(x[:8], 1)
    assert [part.shape for part in few] == [(8, 1, 3, 8), (8, 1, 16)]
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b[:8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "is_left"), [(32, True), (FEW + 1, False)])
def test_few_vectors_stand_on_the_right(count, is_left):
    x, rows = jnp.ones((count, 48)), jnp.ones((80, 48))
    program = jax.jit(products_of_rows).lower(x, rows).compile().as_text()
    assert (f"f32[80,{count}]{{1,0}} dot(" in program) == is_left
    assert (f"f32[{count},80]{{1,0}} dot(" in program) != is_left


def test_one_bfloat16_vector_makes_no_float32_copy_of_the_rows():
    x, rows = jnp.ones((1, 256), jnp.bfloat16), jnp.ones((1024, 256), jnp.bfloat16)
    memory = jax.jit(products_of_rows).lower(x, rows).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * rows.size
