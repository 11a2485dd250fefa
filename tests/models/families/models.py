"""A tiny random model of transformers for each family and each kind of layer: odd sizes, grouped heads, short windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers

from tests.models.families.checks import tiny
from tests.models.helpers import llama3_model, qwen2_model

LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [3.0, 5.0, 9.0],
    "original_max_position_embeddings": 24,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
Maker = Callable[..., Any]  # of a model; naming its class here would import all of torch that transformers uses


def phi3(**fields) -> transformers.PreTrainedModel:
    """Partial rotary positions, LongRoPE from 24 tokens on."""
    sizes = {"hidden_size": 72, "num_hidden_layers": 2, "max_position_embeddings": 96}
    rope = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 24}
    return tiny(transformers.Phi3Config, **sizes | rope | fields)


def gemma3(**fields) -> transformers.PreTrainedModel:
    """Two rotary bases, one of them scaled."""
    kinds = ["sliding_attention", "full_attention"] * 2
    own = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 6, "rope_parameters": GEMMA3_ROPE}
    return tiny(transformers.Gemma3TextConfig, layer_types=kinds, **own | fields)


def gpt2(**fields) -> transformers.PreTrainedModel:
    """As many positions as the parity checks use."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "n_inner": 58, "max_position_embeddings": 37}
    return tiny(transformers.GPT2Config, bos_token_id=0, eos_token_id=0, **sizes | fields)


# What is special about each is in its name; the names are those of docs/models.md.
MODELS: Mapping[str, Maker] = {
    "Llama 3, scaled RoPE": llama3_model,
    "Llama, YaRN": lambda **fields: llama3_model(
        **{"tie_word_embeddings": True, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}} | fields
    ),
    "Llama, biases": lambda **fields: tiny(
        transformers.LlamaConfig, **{"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 2} | fields
    ),
    "Qwen2": qwen2_model,
    "Qwen2, windows": lambda **fields: qwen2_model(
        **{"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1} | fields
    ),
    "Qwen3, windows": lambda **fields: tiny(
        transformers.Qwen3Config,
        **{"head_dim": 10, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2} | fields,
    ),
    "Qwen3, biases": lambda **fields: tiny(
        transformers.Qwen3Config, **{"head_dim": 10, "attention_bias": True, "num_hidden_layers": 2} | fields
    ),
    "SmolLM3": lambda **fields: tiny(
        transformers.SmolLM3Config, **{"num_hidden_layers": 5, "no_rope_layers": [1, 0, 1, 1, 0]} | fields
    ),
    "Mistral, window": lambda **fields: tiny(
        transformers.MistralConfig, **{"num_hidden_layers": 2, "sliding_window": 9, "head_dim": 10} | fields
    ),
    "Gemma 2": lambda **fields: tiny(
        transformers.Gemma2Config,
        **{
            "head_dim": 10,
            "query_pre_attn_scalar": 5,
            "sliding_window": 8,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        }
        | fields,
    ),
    "Gemma 3": gemma3,
    "Phi-3, LongRoPE": phi3,
    "Phi-3, window": lambda **fields: tiny(
        transformers.Phi3Config, **{"num_hidden_layers": 2, "sliding_window": 9} | fields
    ),
    "OLMo 2": lambda **fields: tiny(transformers.Olmo2Config, **{"num_hidden_layers": 2} | fields),
    "GPT-2": gpt2,
}
