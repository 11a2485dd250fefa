"""Describes SmolLM3: Llama whose every fourth layer has no rotary positions (arXiv 2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, check_neutral, windows_of

_HANDLED = (
    "attention_bias",
    "mlp_bias",
    "no_rope_layers",
    "no_rope_layer_interval",
    "use_sliding_window",
    "sliding_window",
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: smollm3` describes."""
    check_neutral(hf, handled=_HANDLED)
    fields = llama.base_fields(hf, theta=2e6, tied=True)
    rotates = hf.get("no_rope_layers")  # 1 where a layer does rotate
    if rotates is None:
        interval = int(hf.get("no_rope_layer_interval") or 4)
        rotates = [(layer + 1) % interval for layer in range(fields["num_layers"])]
    nope = tuple(layer for layer in range(fields["num_layers"]) if not rotates[layer])
    kinds = ["sliding_attention" if layer in nope else "full_attention" for layer in range(fields["num_layers"])]
    windows = windows_of(hf, kinds, hf.get("sliding_window") if hf.get("use_sliding_window") else None)
    return DecoderConfig(family="smollm3", nope_layers=nope, **windows, **fields)


FAMILY = Family(
    name="smollm3",
    model_types=("smollm3",),
    config=config,
    tensors=(*llama.TENSORS, *llama.ATTENTION_BIASES, *llama.MLP_BIASES),
    gguf_architectures=("smollm3",),
    gguf_interleaved=True,
)
