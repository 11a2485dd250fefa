"""SmolLM3 beside transformers."""

from __future__ import annotations

import pytest
import transformers

from smallr.models.config import DecoderConfig
from tests.models.families.checks import check_parity, check_sees_beyond, check_table, config_of, tiny

SMOLLM3_3B = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}


@pytest.mark.parity
def test_parity_with_layers_that_do_not_rotate():
    model = tiny(transformers.SmolLM3Config, num_hidden_layers=5, no_rope_layers=[1, 0, 1, 1, 0])
    assert config_of(model).nope_layers == (1, 4)
    check_parity(model)
    check_sees_beyond(model, nope_layers=(1,))
    check_table(model)


def test_published_size():
    config = DecoderConfig.from_hf(SMOLLM3_3B)
    assert (config.num_params, config.tie_embeddings) == (3_075_098_624, True)
    assert config.nope_layers == (3, 7, 11, 15, 19, 23, 27, 31, 35)
    by_interval = {key: value for key, value in SMOLLM3_3B.items() if key not in ("no_rope_layers", "layer_types")}
    assert DecoderConfig.from_hf(by_interval) == config
