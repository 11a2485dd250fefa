"""Mistral beside transformers."""

from __future__ import annotations

import pytest
import transformers

from smallr.models.config import DecoderConfig
from tests.models.families.checks import check_parity, check_sees_beyond, check_table, tiny

MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


@pytest.mark.parity
def test_parity_past_the_window():
    model = tiny(transformers.MistralConfig, num_hidden_layers=2, sliding_window=9, head_dim=10)
    check_parity(model)
    check_sees_beyond(model, window=10)
    check_table(model)


def test_published_size():
    config = DecoderConfig.from_hf(MISTRAL_7B)
    assert (config.num_params, config.layer_windows) == (7_241_732_096, (4096,) * 32)
    assert DecoderConfig.from_hf(MISTRAL_7B | {"sliding_window": None}).window is None
