"""Describes Gemma 2 (arXiv 2408.00118): soft-caps, a window in every other layer, norms before and after each part."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, Tensor, activation_of, check_neutral, required, windows_of

_LAYER = "model.layers.{layer}."
# What Llama calls post_attention_layernorm stands before its MLP; Gemma has four norms, and names them all.
TENSORS = (
    *(tensor for tensor in llama.TENSORS if tensor.param != "layers.mlp_norm.scale"),
    *llama.ATTENTION_BIASES,
    Tensor(_LAYER + "post_attention_layernorm.weight", "layers.attention_post_norm.scale"),
    Tensor(_LAYER + "pre_feedforward_layernorm.weight", "layers.mlp_norm.scale"),
    Tensor(_LAYER + "post_feedforward_layernorm.weight", "layers.mlp_post_norm.scale"),
)
HANDLED = (
    "attention_bias",
    "hidden_act",
    "hidden_activation",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
    "rope_local_base_freq",
)


def gemma_fields(hf: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """Returns fields that the Gemmas spell alike."""
    required(hf, "head_dim")  # it is not hidden_size / num_attention_heads
    return {
        "norm_place": "both",
        "norm_offset": 1.0,
        "activation": activation_of(hf, "hidden_activation", "gelu_pytorch_tanh"),
        "embedding_scale": int(required(hf, "hidden_size")) ** 0.5,
        "query_scale": float(required(hf, "query_pre_attn_scalar")) ** -0.5,
        **llama.base_fields(hf, theta=theta, tied=True),
    }


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: gemma2` describes."""
    check_neutral(hf, handled=HANDLED)
    layers = int(required(hf, "num_hidden_layers"))
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    return DecoderConfig(
        family="gemma2",
        attention_softcap=hf.get("attn_logit_softcapping", 50.0),
        final_softcap=hf.get("final_logit_softcapping", 30.0),
        **windows_of(hf, kinds, hf.get("sliding_window", 4096)),
        **gemma_fields(hf, theta=10000.0),
    )


def gguf_config(hf: Mapping[str, Any], largest: int) -> Mapping[str, Any]:
    """Adds the query scale, which GGUF files leave out: llama.cpp tells the 27B by its `largest` number of layers."""
    scale = hf.get("attention_multiplier")
    is_largest = hf["num_hidden_layers"] == largest
    scalar = hf["hidden_size"] / hf["num_attention_heads"] if is_largest else hf["head_dim"]
    scalar = scalar if scale is None else scale**-2
    return {**hf, "query_pre_attn_scalar": scalar, "attention_multiplier": None}


FAMILY = Family(
    name="gemma2",
    model_types=("gemma2",),
    config=config,
    tensors=TENSORS,
    gguf_architectures=("gemma2",),
    gguf_config=partial(gguf_config, largest=46),
)
