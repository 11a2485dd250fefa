"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window in its upper layers if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, Tensor, check_neutral, required

TENSORS = (
    *llama.TENSORS,
    Tensor("model.layers.{layer}.self_attn.q_proj.bias", "layers.attention.q_bias", "flat", when="qkv_bias"),
    Tensor("model.layers.{layer}.self_attn.k_proj.bias", "layers.attention.k_bias", "flat", when="qkv_bias"),
    Tensor("model.layers.{layer}.self_attn.v_proj.bias", "layers.attention.v_bias", "flat", when="qkv_bias"),
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a `config.json` with `model_type: qwen2` describes."""
    check_neutral(hf, handled=("use_sliding_window", "sliding_window"))
    return DecoderConfig(family="qwen2", qkv_bias=True, window=_window(hf), **llama.base_fields(hf))


def _window(hf: Mapping[str, Any]) -> int | None:
    """The window when all layers have one (`max_window_layers` is the first layer with it), else None."""
    if not hf.get("use_sliding_window") or hf.get("sliding_window") is None:
        return None
    layers, first = int(required(hf, "num_hidden_layers")), int(hf.get("max_window_layers", 28))
    kinds = hf.get("layer_types") or ["full_attention"] * min(first, layers) + ["sliding_attention"] * (layers - first)
    if set(kinds) == {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"}:
        return int(hf["sliding_window"])
    raise UserError(
        f"config.json of model_type 'qwen2': use_sliding_window with max_window_layers = {first} of {layers} layers "
        "mixes windowed and full layers, which is not supported (all layers alike are)"
    )


FAMILY = Family(name="qwen2", model_types=("qwen2",), config=config, tensors=TENSORS, gguf_architectures=("qwen2",))
