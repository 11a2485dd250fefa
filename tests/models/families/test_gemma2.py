"""Gemma 2 beside transformers."""

from __future__ import annotations

import pytest
import transformers

from smallr.models.config import DecoderConfig
from tests.models.families.checks import check_parity, check_sees_beyond, check_table, config_of, tiny

GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}


@pytest.mark.parity
def test_parity_with_soft_caps_and_alternating_windows():
    caps = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
    model = tiny(transformers.Gemma2Config, head_dim=10, query_pre_attn_scalar=5, sliding_window=8, **caps)
    assert config_of(model).layer_windows == (8, None, 8, None)
    check_parity(model)
    check_sees_beyond(model, window=9, attention_softcap=50.0)
    check_table(model)


def test_published_size():
    config = DecoderConfig.from_hf(GEMMA2_2B)
    assert (config.num_params, config.tie_embeddings) == (2_614_341_888, True)
    assert (config.attention_softcap, config.final_softcap, config.query_scale) == (50.0, 30.0, 1 / 16)
    assert config.full_layers == tuple(range(1, 26, 2))
