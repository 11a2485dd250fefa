"""Qwen3 beside transformers."""

from __future__ import annotations

import pytest
import transformers

from smallr.models.config import DecoderConfig
from tests.models.families.checks import check_parity, check_sees_beyond, check_table, config_of, tiny

QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.mark.parity
def test_parity_with_windows_in_the_upper_layers():
    model = tiny(transformers.Qwen3Config, head_dim=10, use_sliding_window=True, sliding_window=7, max_window_layers=2)
    config = config_of(model)
    assert config.layer_windows == (None, None, 7, 7)
    check_parity(model)
    check_sees_beyond(model, window=8)
    check_table(model)


def test_published_size():
    config = DecoderConfig.from_hf(QWEN3_06B)
    assert (config.num_params, config.window, config.qk_norm) == (596_049_920, None, "head")
