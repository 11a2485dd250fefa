"""Describes Mistral 7B and its descendants: Llama, with a sliding window in every layer of the first version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.models.config import DecoderConfig
from smallr.models.families import llama
from smallr.models.families.base import Family, check_neutral


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that a `config.json` with `model_type: mistral` describes."""
    check_neutral(hf, handled=("sliding_window",))
    return DecoderConfig(family="mistral", window=hf.get("sliding_window"), **llama.base_fields(hf))


# GGUF files of Mistral say "llama", and are read as such.
FAMILY = Family(name="mistral", model_types=("mistral",), config=config, tensors=llama.TENSORS)
