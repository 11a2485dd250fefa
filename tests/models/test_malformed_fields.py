"""Every field of every family's config.json, and every rotary parameter, with values of all types and sizes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import transformers

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.schema import check_config

FAMILIES = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "mistral": transformers.MistralConfig,
    "phi3": transformers.Phi3Config,
    "olmo2": transformers.Olmo2Config,
    "gpt2": transformers.GPT2Config,
    "smollm3": transformers.SmolLM3Config,
}
VALUES = [None, True, -1, 0, 2**70, 0.5, 1e308, float("nan"), "x", "9" * 999, [None], ["x"] * 2, [], {}, {"a": [1]}]


def changed(base: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The dict with one field left out or of another value, inside its objects as well."""
    for name, value in itertools.product(base, VALUES):
        yield name, value, {**base, name: value}
    for name in base:
        yield name, "missing", {key: value for key, value in base.items() if key != name}
        if isinstance(base[name], dict):
            for inner, value, content in changed(base[name]):
                yield f"{name}.{inner}", value, {**base, name: content}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field(family):
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    base = FAMILIES[family](**{layers: 2}).to_dict()
    check_config(base)
    DecoderConfig.from_hf(base)
    wrong, refused = [], 0
    for name, value, content in changed(base):
        start = time.perf_counter()
        try:
            check_config(content)
            DecoderConfig.from_hf(content)
        except UserError as error:
            refused += 1
            if not 20 < len(str(error)) < 700:
                wrong.append((name, str(value)[:20], str(error)[:100]))
        except Exception as error:
            wrong.append((name, str(value)[:20], repr(error)))
        if time.perf_counter() - start > 2:
            wrong.append((name, str(value)[:20], "slow"))
    assert wrong == []
    assert refused > 100
