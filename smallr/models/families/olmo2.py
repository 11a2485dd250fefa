"""Describes OLMo 2 (arXiv 2501.00656): norms on the output of attention and MLP, and of all queries and keys of a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, Tensor, check_neutral

_NORMS = {"layers.attention_norm.scale", "layers.mlp_norm.scale"}
TENSORS = (
    *(tensor for tensor in llama.TENSORS if tensor.param not in _NORMS),
    *llama.ATTENTION_BIASES,
    Tensor("model.layers.{layer}.self_attn.q_norm.weight", "layers.attention.q_norm.scale", "flat"),
    Tensor("model.layers.{layer}.self_attn.k_norm.weight", "layers.attention.k_norm.scale", "flat"),
    Tensor("model.layers.{layer}.post_attention_layernorm.weight", "layers.attention_post_norm.scale"),
    Tensor("model.layers.{layer}.post_feedforward_layernorm.weight", "layers.mlp_post_norm.scale"),
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: olmo2` describes."""
    check_neutral(hf, handled=("attention_bias",))
    return DecoderConfig(family="olmo2", norm_place="after", qk_norm="all", **llama.base_fields(hf))


FAMILY = Family(
    name="olmo2",
    model_types=("olmo2",),
    config=config,
    tensors=TENSORS,
    gguf_architectures=("olmo2",),
)
