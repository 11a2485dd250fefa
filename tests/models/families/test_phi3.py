"""Phi-3 and Phi-4-mini beside transformers."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.loading import load_decoder, open_model
from tests.models.families.checks import check_parity, check_sees_beyond, check_table, config_of, logits_of, tiny
from tests.models.families.models import phi3
from tests.models.files import save_folder
from tests.models.helpers import from_torch, packed_rule

PHI4_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [32.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}


@pytest.mark.parity
@pytest.mark.parametrize("length", [24, 37], ids=["short", "long"])
def test_parity_with_long_rope(length):
    model = phi3()
    assert config_of(model).rotary_dim == 6
    check_parity(model, length=length)
    check_table(model)


@pytest.mark.parity
def test_parity_with_a_window():
    model = tiny(transformers.Phi3Config, num_hidden_layers=2, sliding_window=9)
    check_parity(model)
    check_sees_beyond(model, window=10)


@pytest.mark.parity
def test_a_packed_row_of_short_and_long_examples_is_its_examples():
    """Which divisors an example gets depends on its own length alone."""
    decoder = from_torch(phi3())
    tokens = np.random.default_rng(0).integers(1, 101, (1, 52))
    positions, horizon = packed_rule([[(20,), (32,)]], 52)
    packed = nnx.jit(lambda decoder, tokens: decoder(tokens, positions, horizon))(decoder, tokens)
    alone = [logits_of(decoder, tokens[:, :20]), logits_of(decoder, tokens[:, 20:])]
    logits = np.asarray(packed) @ np.asarray(decoder.unembedding()).T
    np.testing.assert_allclose(logits, np.concatenate(alone, axis=1), atol=2e-5)


@pytest.mark.parity
def test_a_folder_with_fused_tensors(tmp_path):
    model = phi3()
    got, want = load_decoder(open_model(str(save_folder(model, tmp_path))), make_mesh()), from_torch(model)
    for path in ("q", "k", "v", "o"):
        np.testing.assert_array_equal(getattr(got.layers.attention, path), getattr(want.layers.attention, path))
    for path in ("gate", "up", "down"):
        np.testing.assert_array_equal(getattr(got.layers.mlp, path), getattr(want.layers.mlp, path))


def test_published_size():
    config = DecoderConfig.from_hf(PHI4_MINI)
    assert (config.num_params, config.rotary_dim, config.window) == (3_836_021_760, 96, 262144)
    assert config.rope_scaling.attention_factor == pytest.approx(1.190238, abs=1e-6)
    with pytest.raises(UserError, match=r"rope scaling 'longrope' in config.json has no 'short_factor'"):
        DecoderConfig.from_hf(PHI4_MINI | {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}})
