"""Describes GPT-2 and DistilGPT2: learned positions, LayerNorm, biases everywhere, weights stored [inputs, outputs]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.core.errors import UserError
from smallr.data.errors import shorten
from smallr.models.config import DecoderConfig
from smallr.models.families.base import Family, Tensor, activation_of, required

_LAYER = "transformer.h.{layer}."
_ATTENTION = _LAYER + "attn.c_attn."
TENSORS = (
    Tensor("transformer.wte.weight", "embed.table"),
    Tensor("transformer.wpe.weight", "position.table"),
    Tensor(_LAYER + "ln_1.weight", "layers.attention_norm.scale"),
    Tensor(_LAYER + "ln_1.bias", "layers.attention_norm.bias"),
    Tensor(_ATTENTION + "weight", "layers.attention.q", "conv1d", fused=1),
    Tensor(_ATTENTION + "weight", "layers.attention.k", "conv1d", fused=1),
    Tensor(_ATTENTION + "weight", "layers.attention.v", "conv1d", fused=1),
    Tensor(_ATTENTION + "bias", "layers.attention.q_bias", "flat", fused=0),
    Tensor(_ATTENTION + "bias", "layers.attention.k_bias", "flat", fused=0),
    Tensor(_ATTENTION + "bias", "layers.attention.v_bias", "flat", fused=0),
    Tensor(_LAYER + "attn.c_proj.weight", "layers.attention.o", "conv1d", inputs=2),
    Tensor(_LAYER + "attn.c_proj.bias", "layers.attention.o_bias"),
    Tensor(_LAYER + "ln_2.weight", "layers.mlp_norm.scale"),
    Tensor(_LAYER + "ln_2.bias", "layers.mlp_norm.bias"),
    Tensor(_LAYER + "mlp.c_fc.weight", "layers.mlp.up", "conv1d"),
    Tensor(_LAYER + "mlp.c_fc.bias", "layers.mlp.up_bias"),
    Tensor(_LAYER + "mlp.c_proj.weight", "layers.mlp.down", "conv1d"),
    Tensor(_LAYER + "mlp.c_proj.bias", "layers.mlp.down_bias"),
    Tensor("transformer.ln_f.weight", "final_norm.scale"),
    Tensor("transformer.ln_f.bias", "final_norm.bias"),
    Tensor("lm_head.weight", "head.table", when="!tie_embeddings"),
)
_NEUTRAL: Mapping[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: gpt2` describes. Its dropout is not applied."""
    for key, value in _NEUTRAL.items():
        if hf.get(key, value) != value:
            raise UserError(
                f"config.json of model_type 'gpt2': {key} = {shorten(hf[key])} is not supported (it must be {value})"
            )
    d_model, heads = int(required(hf, "n_embd")), int(required(hf, "n_head"))
    return DecoderConfig(
        family="gpt2",
        vocab_size=int(required(hf, "vocab_size")),
        num_layers=int(required(hf, "n_layer")),
        d_model=d_model,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d_model // heads,
        d_ff=int(hf.get("n_inner") or 4 * d_model),
        learned_positions=True,
        norm="layer",
        norm_eps=float(hf.get("layer_norm_epsilon") or 1e-5),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        activation=activation_of(hf, "activation_function", "gelu_new"),
        tie_embeddings=bool(hf.get("tie_word_embeddings", True)),
        max_positions=int(required(hf, "n_positions")),
    )


# config.json names GPT-2's sizes in its own way.
_SIZES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
}


def gguf_config(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the dict in GPT-2's words."""
    keep = ("model_type", "vocab_size", "layer_norm_epsilon", "tie_word_embeddings")
    return {key: hf[key] for key in keep} | {key: hf[name] for key, name in _SIZES.items()}


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    config=config,
    tensors=TENSORS,
    aliases=((r"^(?!transformer\.|lm_head\.)", "transformer."),),  # the first files have no such prefix
    ignored=r"\.attn\.(masked_)?bias$",  # the causal mask
    gguf_architectures=("gpt2",),
    gguf_config=gguf_config,
)
