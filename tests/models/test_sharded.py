"""Loading and computing on 8 simulated devices, in a process of such devices."""

from __future__ import annotations

import pytest

from tests.models.files import save_folder, save_gguf
from tests.models.helpers import llama3_model

pytestmark = [pytest.mark.parity, pytest.mark.process]

CHILD = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import Mesh
from smallr.models.loading import load_decoder, open_model
from smallr.core.sharding import make_mesh, partition_spec

assert jax.device_count() == 8
mesh, alone = make_mesh(2, 2, 2), Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
tokens = jnp.asarray(np.random.default_rng(0).integers(0, 128, (4, 150)))
positions = jnp.broadcast_to(jnp.arange(150), (4, 150))
horizon = jnp.asarray(np.where(np.arange(150) < 60, 60, np.where(np.arange(150) < 140, 140, 0)))[None].repeat(4, 0)

def loss(decoder):
    hidden = decoder(tokens, positions, horizon)[:, :140]
    return jnp.mean(jnp.sin(hidden.astype(jnp.float32) @ decoder.unembedding().T)), hidden

for name in sys.argv[1:]:
    source = open_model(name)
    split, whole = load_decoder(source, mesh), load_decoder(source, alone)
    for (path, a), (_, b) in zip(nnx.to_flat_state(nnx.state(split)), nnx.to_flat_state(nnx.state(whole)), strict=True):
        a, axes = a[...], a.get_metadata("axes")
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b[...]), err_msg=str(path))
        assert a.sharding.spec == partition_spec(axes, a.shape, mesh), path
        parts = 2 ** sum(entry is not None for entry in a.sharding.spec)
        assert len(a.addressable_shards) == 8
        for shard in a.addressable_shards:
            assert shard.data.size * parts == a.size, (path, shard.data.shape, a.shape)
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(b[...])[shard.index])
        expected = {"q": 4, "k": 4, "o": 4, "gate": 4, "table": 4, "scale": 1}.get(path[-1])
        assert expected in (None, parts), (path, parts)

    # Both files hold one model, so its arithmetic is compared once.
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 3e-2)) if name == sys.argv[1] else ():
        split, whole = (load_decoder(source, m, dtype=dtype) for m in (mesh, alone))
        with jax.set_mesh(mesh):
            grads, hidden = nnx.jit(nnx.grad(loss, has_aux=True))(split)
        with jax.set_mesh(alone):
            wanted, expected = nnx.jit(nnx.grad(loss, has_aux=True))(whole)
        pairs = [(hidden, expected), *zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True)]
        for a, b in pairs:
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            error = np.linalg.norm(a - b) / np.linalg.norm(b)
            assert error <= tolerance, (dtype, a.shape, error)
print("shards agree")
"""


def test_every_device_holds_its_shard_and_computes_the_same(tmp_path, eight_devices):
    model = llama3_model(
        num_hidden_layers=2, num_key_value_heads=2, num_attention_heads=4, hidden_size=64, vocab_size=128, head_dim=16
    )
    folder = save_folder(model, tmp_path / "folder")
    file = save_gguf(model, tmp_path / "model.gguf")
    done = eight_devices(CHILD, str(folder), str(file))
    assert "shards agree" in done.stdout
    assert "Involuntary full rematerialization" not in done.stderr, done.stderr[-2000:]
