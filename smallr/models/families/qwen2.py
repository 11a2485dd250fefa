"""Describes Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window in its upper layers if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, check_neutral, required, windows_of


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: qwen2` describes."""
    check_neutral(hf, handled=("use_sliding_window", "sliding_window"))
    return DecoderConfig(family="qwen2", **windows(hf), **llama.base_fields(hf) | {"qkv_bias": True})


def windows(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the window of the layers from `max_window_layers` on, if the file switches it on."""
    layers, first = int(required(hf, "num_hidden_layers")), hf.get("max_window_layers")
    first = 28 if first is None else int(first)
    kinds = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    return windows_of(hf, kinds, hf.get("sliding_window") if hf.get("use_sliding_window") else None)


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    config=config,
    tensors=(*llama.TENSORS, *llama.QKV_BIASES),
    gguf_architectures=("qwen2",),
)
