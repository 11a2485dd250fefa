"""Weights read from a file into their places are those that are packed from a decoder, bit for bit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh, named_sharding
from smallr.models.decoder import Decoder
from smallr.models.export import stored_tensors
from smallr.models.loading import abstract_decoder, load_decoder, open_model, stored_parameters
from smallr.models.weights import StoredParameters
from smallr.sampling.weights import Packer


class InMemory:
    """The tensors of a decoder, as a file would hold them."""

    def __init__(self, decoder: Decoder, dtype: str = "float32"):
        params = {".".join(path): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
        stored = stored_tensors(decoder.config, params.__getitem__)
        self.tensors = {name: value.astype(dtype) for name, value in stored}

    def shapes(self):
        return {name: value.shape for name, value in self.tensors.items()}

    def read(self, name, index):
        return self.tensors[name][index]


def assert_same(read, packed):
    """Checks structure, values, types and shardings."""
    (ours, structure), (wanted, other) = jax.tree.flatten(read), jax.tree.flatten(packed)
    assert structure == other
    for a, b in zip(ours, wanted, strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def check(decoder: Decoder, reader: InMemory):
    """Reads a decoder's tensors, and packs the decoder."""
    mesh = make_mesh(1, 1, 1)
    config = decoder.config
    graphdef, state = nnx.split(decoder)
    placed = [
        (
            path,
            leaf.replace(jax.device_put(leaf.get_value(), named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape))),
        )
        for path, leaf in nnx.to_flat_state(state)
    ]
    decoder = nnx.merge(graphdef, nnx.from_flat_state(placed))
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves = dict(nnx.to_flat_state(nnx.state(abstract)))
    with jax.set_mesh(mesh):
        packer = Packer(abstract, mesh)
        packed = packer(decoder)
        read = packer.read(abstract, StoredParameters(leaves, config, reader, "made up"))
        assert_same(read, packed)
        zeros = packer.read(abstract, None, layers=1)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), zeros.layers[0]) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), packed.layers[0]
    )
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(zeros))


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "family",
    ["llama", "qwen2 biases", "qwen3 qk-norm", "gemma2 soft-caps", "olmo2 norms", "gpt2 positions", "phi3 longrope"],
)
def test_every_family_is_read_as_it_is_packed(family, dtype):
    from tests.models.helpers import from_torch
    from tests.sampling.models import model

    decoder = from_torch(model(family), remat="none", dtype=dtype)
    check(decoder, InMemory(decoder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_read_as_it_is_packed(small_model, dtype):
    mesh, source = make_mesh(1, 1, 1), open_model(small_model)
    with jax.set_mesh(mesh):
        abstract = abstract_decoder(source, dtype=dtype)
        packer = Packer(abstract, mesh)
        packed = packer(load_decoder(source, mesh, dtype=dtype))
        assert_same(packer.read(abstract, stored_parameters(source, dtype=dtype)), packed)


@pytest.mark.slow
def test_the_built_in_model_is_read_as_it_is_packed(smollm2):
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        abstract = abstract_decoder(smollm2, dtype="bfloat16")
        packer = Packer(abstract, mesh)
        packed = packer(load_decoder(smollm2, mesh, dtype="bfloat16"))
        assert_same(packer.read(abstract, stored_parameters(smollm2, dtype="bfloat16")), packed)


def test_what_is_not_finite_or_not_there_is_refused(small_model):
    mesh, source = make_mesh(1, 1, 1), open_model(small_model)
    with jax.set_mesh(mesh):
        decoder, abstract = load_decoder(source, mesh), abstract_decoder(source)
        reader = InMemory(decoder)
        leaves = dict(nnx.to_flat_state(nnx.state(abstract)))
        name = next(name for name in reader.tensors if "mlp" in name)
        reader.tensors[name][0, 0] = np.nan
        stored = StoredParameters(leaves, decoder.config, reader, "made up")
        with pytest.raises(UserError, match=f"tensor {name} holds NaN"):
            Packer(abstract, mesh).read(abstract, stored)
        stored = StoredParameters(leaves, decoder.config, reader, "made up", allow_nonfinite=True)
        Packer(abstract, mesh).read(abstract, stored)
        del reader.tensors[name]
        with pytest.raises(UserError, match=f"missing: {name}"):
            StoredParameters(leaves, decoder.config, reader, "made up")


def test_what_no_file_holds_alone_is_not_read_from_one(small_model):
    assert stored_parameters(open_model("tiny-random")) is None
    source = open_model(small_model)
    assert stored_parameters(dataclasses.replace(source, open_parameters=lambda: None)) is None
