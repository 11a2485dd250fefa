"""A base in 8 or 4 bits: codes, what is held, and the products against the dequantised weights."""

from __future__ import annotations

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.decoder import Decoder
from smallr.models.lora import LoRA, attach, is_adapter_path, projections, quantize_projections
from smallr.models.quantized import Quantized, quantize, rounded
from tests.models.helpers import TINY, param_at, whole

pytestmark = pytest.mark.usefixtures("cpu_mesh")

FORMATS = ["int8", "int4", "nf4"]
BITS = {"int8": 8, "int4": 4, "nf4": 4}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("shape", "inputs"), [((2, 128, 3, 10), 1), ((2, 3, 48, 20), 2), ((2, 90, 7), 1)])
def test_packed_codes_are_those_of_qwix_and_take_the_bits_that_they_claim(format, shape, inputs):
    weight = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    ours = quantize(weight, format, inputs)
    block = {128: 64, 48: 48, 90: 45 if format == "int8" else 30}[shape[inputs]]
    channels = [axis for axis in range(len(shape)) if axis != inputs]
    theirs = qwix.quantize(weight, format, channelwise_axes=channels, tiled_axes={inputs: block})
    dense = np.asarray(qwix.dequantize(theirs))
    np.testing.assert_array_equal(ours.dense(), dense)
    assert ours.shape == shape
    assert ours.codes.nbytes == weight.size * BITS[format] // 8
    assert ours.scale.size == weight.size // block
    layer = jax.tree.map(lambda x: x[1], ours)
    np.testing.assert_array_equal(layer.dense(), dense[1])
    np.testing.assert_array_equal(rounded(np.asarray(weight), format, inputs), dense)
    relative = np.abs(dense - weight).mean() / np.abs(weight).mean()
    assert relative < {"int8": 0.01, "int4": 0.15, "nf4": 0.12}[format]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "remat"), [("int8", "none"), ("int4", "full"), ("nf4", "full")])
def test_hidden_states_and_gradients_are_those_of_the_dequantised_base(format, remat):
    config = dataclasses.replace(TINY, remat=remat)
    mesh, tokens = make_mesh(1, 1, 1), jnp.asarray(np.random.default_rng(0).integers(0, 97, (2, 24)))

    def built(prepare):
        decoder = Decoder(config, rngs=nnx.Rngs(0))
        attach(decoder, LoRA(4, 8.0), 0, mesh)
        prepare(decoder)
        graphdef, params, base = nnx.split(decoder, lambda path, _: is_adapter_path(path), ...)
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), params)

        def loss(params):
            hidden = nnx.merge(graphdef, params, base)(tokens, *whole(24, 2))
            return jnp.sum(jnp.sin(hidden))

        return jax.jit(jax.value_and_grad(loss))(params), base

    def dense(decoder):
        for path, row in projections(config).items():
            variable = param_at(decoder, path)
            variable.set_value(jnp.asarray(rounded(np.asarray(variable.get_value()), format, row.inputs)))

    (expected, theirs), whole_base = built(dense)
    (value, ours), held = built(lambda decoder: quantize_projections(decoder, format, mesh))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    weights = [leaf.get_value() for _, leaf in nnx.to_flat_state(held)]
    assert sum(isinstance(weight, Quantized) for weight in weights) == 7
    bytes_held = [sum(x.nbytes for x in jax.tree.leaves(base)) for base in (held, whole_base)]
    assert bytes_held[0] < bytes_held[1] * 0.5


def test_what_cannot_be_done_is_said(monkeypatch):
    mesh, decoder = make_mesh(1, 1, 1), Decoder(TINY, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"config\.lora\.base: 'int3' must be one of: float32, int8"):
        quantize_projections(decoder, "int3", mesh)
    with pytest.raises(UserError, match="even number of inputs"):
        quantize(jnp.ones((2, 15, 4)), "nf4", 1)
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"pip install qwix"):
        quantize_projections(decoder, "nf4", mesh)
