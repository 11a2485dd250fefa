"""Describes Qwen3: Llama with a norm of each head's query and key; the layers' windows as in Qwen2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama, qwen2
from smallr.models.families.base import Family, Tensor, check_neutral, required

QK_NORMS = (
    Tensor("model.layers.{layer}.self_attn.q_norm.weight", "layers.attention.q_norm.scale"),
    Tensor("model.layers.{layer}.self_attn.k_norm.weight", "layers.attention.k_norm.scale"),
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: qwen3` describes."""
    check_neutral(hf, handled=("attention_bias", "use_sliding_window", "sliding_window"))
    required(hf, "head_dim")  # it is not hidden_size / num_attention_heads
    return DecoderConfig(family="qwen3", qk_norm="head", **qwen2.windows(hf), **llama.base_fields(hf))


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    config=config,
    tensors=(*llama.TENSORS, *llama.ATTENTION_BIASES, *QK_NORMS),
    gguf_architectures=("qwen3",),
)
