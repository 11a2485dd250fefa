"""Sizes of some public models, from their `config.json`, for questions that need no weights."""

from __future__ import annotations

from collections.abc import Mapping

from smallr.models.config import DecoderConfig

_QWEN2 = {"rope_theta": 1e6, "tie_embeddings": True, "qkv_bias": True, "norm_eps": 1e-6, "family": "qwen2"}
SIZES: Mapping[str, DecoderConfig] = {
    # vocab, layers, d_model, heads, kv heads, head_dim, d_ff
    "qwen2.5-0.5b": DecoderConfig(151936, 24, 896, 14, 2, 64, 4864, **_QWEN2),
    "qwen2.5-1.5b": DecoderConfig(151936, 28, 1536, 12, 2, 128, 8960, **_QWEN2),
    "llama-3.2-3b": DecoderConfig(128256, 28, 3072, 24, 8, 128, 8192, rope_theta=5e5, tie_embeddings=True),
    "llama-3.1-8b": DecoderConfig(128256, 32, 4096, 32, 8, 128, 14336, rope_theta=5e5),
}
