"""Describes Llama 1-3, SmolLM and SmolLM2, and everything else that says `model_type: llama`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families.base import Family, Tensor, check_neutral, required, rope_of

TENSORS = (
    Tensor("model.embed_tokens.weight", "embed.table"),
    Tensor("model.layers.{layer}.input_layernorm.weight", "layers.attention_norm.scale"),
    Tensor("model.layers.{layer}.self_attn.q_proj.weight", "layers.attention.q", "linear"),
    Tensor("model.layers.{layer}.self_attn.k_proj.weight", "layers.attention.k", "linear"),
    Tensor("model.layers.{layer}.self_attn.v_proj.weight", "layers.attention.v", "linear"),
    Tensor("model.layers.{layer}.self_attn.o_proj.weight", "layers.attention.o", "linear", inputs=2),
    Tensor("model.layers.{layer}.post_attention_layernorm.weight", "layers.mlp_norm.scale"),
    Tensor("model.layers.{layer}.mlp.gate_proj.weight", "layers.mlp.gate", "linear"),
    Tensor("model.layers.{layer}.mlp.up_proj.weight", "layers.mlp.up", "linear"),
    Tensor("model.layers.{layer}.mlp.down_proj.weight", "layers.mlp.down", "linear"),
    Tensor("model.norm.weight", "final_norm.scale"),
    Tensor("lm_head.weight", "head.table", when="!tie_embeddings"),
)
_LAYER = "model.layers.{layer}."
QKV_BIASES = (
    Tensor(_LAYER + "self_attn.q_proj.bias", "layers.attention.q_bias", "flat", when="qkv_bias"),
    Tensor(_LAYER + "self_attn.k_proj.bias", "layers.attention.k_bias", "flat", when="qkv_bias"),
    Tensor(_LAYER + "self_attn.v_proj.bias", "layers.attention.v_bias", "flat", when="qkv_bias"),
)
ATTENTION_BIASES = (*QKV_BIASES, Tensor(_LAYER + "self_attn.o_proj.bias", "layers.attention.o_bias", when="o_bias"))
MLP_BIASES = (
    Tensor(_LAYER + "mlp.gate_proj.bias", "layers.mlp.gate_bias", when="mlp_bias"),
    Tensor(_LAYER + "mlp.up_proj.bias", "layers.mlp.up_bias", when="mlp_bias"),
    Tensor(_LAYER + "mlp.down_proj.bias", "layers.mlp.down_bias", when="mlp_bias"),
)


def base_fields(hf: Mapping[str, Any], theta: float = 10000.0, tied: bool = False) -> dict[str, Any]:
    """Returns fields that Llama and its descendants spell alike; a family without the biases has `check_neutral` refuse them.

    Args:
      hf: the dict.
      theta: rotary base where the file says none.
      tied: whether the head is the embedding where the file says nothing.
    """
    theta, scaling = rope_of(hf, theta)
    heads, d_model = int(required(hf, "num_attention_heads")), int(required(hf, "hidden_size"))
    return {
        "vocab_size": int(required(hf, "vocab_size")),
        "num_layers": int(required(hf, "num_hidden_layers")),
        "d_model": d_model,
        "num_heads": heads,
        "num_kv_heads": int(hf.get("num_key_value_heads") or heads),
        "head_dim": int(hf.get("head_dim") or d_model // heads),
        "d_ff": int(required(hf, "intermediate_size")),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": float(required(hf, "rms_norm_eps")),
        "qkv_bias": bool(hf.get("attention_bias")),
        "o_bias": bool(hf.get("attention_bias")),
        "mlp_bias": bool(hf.get("mlp_bias")),
        "tie_embeddings": bool(hf.get("tie_word_embeddings", tied)),
        "max_positions": int(required(hf, "max_position_embeddings")),
    }


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: llama` describes."""
    check_neutral(hf, handled=("attention_bias", "mlp_bias"))
    return DecoderConfig(family="llama", **base_fields(hf))


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    config=config,
    tensors=(*TENSORS, *ATTENTION_BIASES, *MLP_BIASES),
    gguf_architectures=("llama",),
    gguf_interleaved=True,
)
