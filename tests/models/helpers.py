"""Independent references: attention with a dense mask, and tiny models of transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.families import FAMILIES

TINY = DecoderConfig(
    vocab_size=97, num_layers=3, d_model=48, num_heads=6, num_kv_heads=2, head_dim=8, d_ff=80, qkv_bias=True
)


def llama3_model(**changes: Any) -> transformers.LlamaForCausalLM:
    """Odd sizes, grouped heads wider than d_model, Llama 3 scaling, an untied head."""
    fields = {
        "vocab_size": 131,
        "hidden_size": 60,
        "intermediate_size": 94,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": False,
    }
    return _random(transformers.LlamaForCausalLM(transformers.LlamaConfig(**(fields | changes))))


def qwen2_model(**changes: Any) -> transformers.Qwen2ForCausalLM:
    """Biases on q, k and v, tied embeddings."""
    fields = {
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }
    return _random(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**(fields | changes))))


def _random(model):
    """Every parameter random, norms and biases too: ones and zeros would hide a swap."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = 0.3 if "norm" in name or "bias" in name else 0.08
            value.copy_(torch.randn(value.shape, generator=generator) * spread + ("norm" in name))
    return model.float().eval()


def hf_dict(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """What `save_pretrained` would write as config.json."""
    return config.to_dict()


def from_torch(model: transformers.PreTrainedModel, **overrides: Any) -> Decoder:
    """A Decoder with the same numbers, translated here by the family's table."""
    config = DecoderConfig.from_hf(hf_dict(model.config), **overrides)
    decoder = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    stored = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    for path, value in by_param(stored, config, decoder).items():
        param_at(decoder, path).set_value(jnp.asarray(value))
    return decoder


def by_param(stored: dict[str, np.ndarray], config: DecoderConfig, decoder: Decoder) -> dict[str, np.ndarray]:
    """Arrays under Hugging Face names (weights, or their gradients) as whole arrays under the parameters' paths."""
    arrays, ends = {}, {}
    for tensor in FAMILIES[config.family].tensors:
        if not tensor.exists(config):
            continue
        shape = param_at(decoder, tensor.param).shape
        shape = shape[1:] if tensor.stacked else shape
        layers = range(config.num_layers if tensor.stacked else 1)
        parts = [stored[tensor.name.format(layer=layer)] for layer in layers]
        if tensor.fused is not None:
            start = ends.get(tensor.name, 0)
            ends[tensor.name] = start + tensor.stored_shape(shape)[tensor.fused]
            parts = [np.moveaxis(part, tensor.fused, 0)[start : ends[tensor.name]] for part in parts]
            parts = [np.moveaxis(part, 0, tensor.fused) for part in parts]
        params = [tensor.to_param(part, shape) for part in parts]
        arrays[tensor.param] = np.stack(params) if tensor.stacked else params[0]
    return arrays


def param_at(tree: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    for part in path.split("."):
        tree = getattr(tree, part)
    return tree


def whole(length: int, rows: int = 1) -> tuple[jax.Array, jax.Array]:
    """Positions and horizon of rows that are one plain sequence."""
    return jnp.broadcast_to(jnp.arange(length), (rows, length)), jnp.full((rows, length), length)


def dense_attention(q, k, v, horizon, positions, window=None, softcap=None):
    """The rule of the design page, written as a mask over the whole square, in float64 loops over heads."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    horizon, positions = np.asarray(horizon), np.asarray(positions)
    batch, length, heads, dim = q.shape
    groups = heads // k.shape[2]
    out = np.zeros_like(q)
    for b in range(batch):
        mask = np.zeros((length, length), bool)
        for row in range(length):
            for key in range(row + 1):
                near = window is None or int(positions[b, row]) - int(positions[b, key]) < window
                mask[row, key] = row < int(horizon[b, key]) and near
        for h in range(heads):
            scores = q[b, :, h] @ k[b, :, h // groups].T / np.sqrt(dim)
            scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
            top = np.where(mask, scores, -1e30).max(1, keepdims=True)
            weights = np.where(mask, np.exp(np.minimum(scores - top, 0)), 0)
            out[b, :, h] = weights / np.maximum(weights.sum(1, keepdims=True), 1e-300) @ v[b, :, h // groups]
    return out


def packed_rule(layout: list[list[tuple[int, ...]]], length: int) -> tuple[jax.Array, jax.Array]:
    """Positions and horizon of rows of examples (prefix, completion, completion...), then padding."""
    positions, horizon = np.zeros((2, len(layout), length), np.int32)
    for b, examples in enumerate(layout):
        start = 0
        for prefix, *completions in examples:
            end = start + prefix + sum(completions)
            horizon[b, start : start + prefix] = end
            positions[b, start : start + prefix] = np.arange(prefix)
            start += prefix
            for completion in completions:
                horizon[b, start : start + completion] = start + completion
                positions[b, start : start + completion] = prefix + np.arange(completion)
                start += completion
    return jnp.asarray(positions), jnp.asarray(horizon)


def with_fields(config: DecoderConfig, **changes: Any) -> DecoderConfig:
    """`dataclasses.replace`, for short tests."""
    return dataclasses.replace(config, **changes)
