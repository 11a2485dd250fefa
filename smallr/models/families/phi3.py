"""Describes Phi-3 and Phi-4-mini (arXiv 2404.14219): q, k, v in one tensor, gate and up in another; partial, long RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, Tensor, check_neutral, rope_dict, rope_of

_QKV, _GATE_UP = "model.layers.{layer}.self_attn.qkv_proj.weight", "model.layers.{layer}.mlp.gate_up_proj.weight"
_FUSED = {f"layers.{name}" for name in ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")}
TENSORS = (
    *(tensor for tensor in llama.TENSORS if tensor.param not in _FUSED),
    Tensor(_QKV, "layers.attention.q", "linear", fused=0),
    Tensor(_QKV, "layers.attention.k", "linear", fused=0),
    Tensor(_QKV, "layers.attention.v", "linear", fused=0),
    Tensor(_GATE_UP, "layers.mlp.gate", "linear", fused=0),
    Tensor(_GATE_UP, "layers.mlp.up", "linear", fused=0),
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: phi3` describes."""
    check_neutral(hf, handled=("sliding_window", "partial_rotary_factor"))
    rope = rope_dict(hf)
    partial = rope.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    theta, scaling = rope_of(hf, partial=True)
    fields = llama.base_fields({**hf, "rope_parameters": None, "rope_scaling": None})
    fields |= {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": int(fields["head_dim"] * partial)}
    return DecoderConfig(family="phi3", window=hf.get("sliding_window"), **fields)


def gguf_config(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the dict in Phi-3's words: no window is none, not 0, and the original length stands outside the scaling too."""
    original = (hf.get("rope_scaling") or {}).get("original_max_position_embeddings")
    own = {"original_max_position_embeddings": original} if original else {}
    return {**hf, **own, "sliding_window": hf.get("sliding_window") or None}


FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    config=config,
    tensors=TENSORS,
    gguf_architectures=("phi3",),
    gguf_config=gguf_config,
)
