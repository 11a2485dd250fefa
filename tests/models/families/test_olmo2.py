"""OLMo 2 beside transformers."""

from __future__ import annotations

import pytest
import transformers

from smallr.models.config import DecoderConfig
from tests.models.families.checks import check_parity, check_table, tiny

OLMO2_1B = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}


@pytest.mark.parity
def test_parity():
    model = tiny(transformers.Olmo2Config, num_hidden_layers=2)
    check_parity(model)
    check_table(model)


def test_published_size():
    assert DecoderConfig.from_hf(OLMO2_1B).num_params == 1_484_916_736
