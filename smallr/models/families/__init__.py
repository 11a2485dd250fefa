"""Holds one table per family for names and layouts. A new family is one file here, one entry below, and one test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallr.core.errors import UserError
from smallr.models.families import gemma2, gemma3, gpt2, llama, mistral, olmo2, phi3, qwen2, qwen3, smollm3
from smallr.models.families.base import Family, Tensor, beyond_llama

__all__ = ["FAMILIES", "Family", "Tensor", "family_of"]

_MODULES = (llama, qwen2, qwen3, smollm3, mistral, gemma2, gemma3, phi3, olmo2, gpt2)
FAMILIES: Mapping[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def family_of(hf: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`, by its `model_type`.

    Raises:
      UserError: the type is missing or not supported; the supported ones are named.
    """
    model_type = hf.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    supported = ", ".join(name for family in FAMILIES.values() for name in family.model_types)
    named = f", architectures {hf['architectures']}" if hf.get("architectures") else ""
    raise UserError(
        f"config.json: model_type {model_type!r}{named} is not supported; supported: {supported}. "
        f"What this one says beyond Llama: {beyond_llama(hf)}"
    )
