"""What a decoder is: sizes, rotary embedding, and how it is computed.

One frozen dataclass serves every family. A family's file in `smallr.models.families` translates the
Hugging Face `config.json` into it; GGUF metadata is first written as such a dict (`smallr.models.gguf`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from smallr.errors import UserError

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")
ATTENTION = ("xla",)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies differ from theta^(-2i/d); see `smallr.models.rope` for the formulas.

    Attributes:
      kind: "linear" divides all by `factor`; "llama3" divides the low ones and blends between
        `low_freq_factor` and `high_freq_factor`; "yarn" ramps between `beta_fast` and `beta_slow`;
        "factors" divides frequency i by `factors[i]`.
      original_max_positions: context length before the extension (llama3, yarn).
      attention_factor: what cos and sin are multiplied by (yarn).
      truncate: yarn rounds the ends of its ramp to whole frequencies.
    """

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Llama-style decoder: RMSNorm, grouped-query attention with rotary positions, SwiGLU.

    Attributes:
      family: the family that named the tensors ("llama", "qwen2"); a key of `smallr.models.families.FAMILIES`.
      vocab_size: rows of the embedding, padding rows included.
      num_kv_heads: divides num_heads.
      qkv_bias: biases on the q, k and v projections.
      tie_embeddings: the head is the embedding.
      max_positions: context length that the model was trained for.
      window: None, or query sees keys at most window - 1 positions back.
      attention_softcap: None, or scores become cap * tanh(score / cap).
      final_softcap: the same for logits; applied where logits are made, not in the decoder.
      dtype: compute dtype; masters, norms, softmax and sums are float32.
      remat: what the backward pass computes again: "none" keeps all, "dots" keeps the products of each
        layer, "full" keeps only each layer's input.
      attention: implementation of `smallr.models.attention.attention`.

    Raises:
      UserError: a size or choice that makes no decoder, named.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tie_embeddings: bool = False
    max_positions: int = 2048
    window: int | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    family: str = "llama"
    dtype: str = "float32"
    remat: str = "full"
    attention: str = "xla"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"DecoderConfig.{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"DecoderConfig: {self.num_kv_heads} kv heads do not divide {self.num_heads} heads")
        if self.head_dim % 2:
            raise UserError(f"DecoderConfig.head_dim must be even for rotary positions, got {self.head_dim}")
        if self.window is not None and self.window < 1:
            raise UserError(f"DecoderConfig.window must be None or at least 1, got {self.window}")
        for name, choices in (("dtype", DTYPES), ("remat", REMAT), ("attention", ATTENTION)):
            if getattr(self, name) not in choices:
                known = ", ".join(choices)
                raise UserError(f"config.compute.{name} must be one of {known}, got {getattr(self, name)!r}")

    @staticmethod
    def from_hf(hf: Mapping[str, Any], **overrides: Any) -> DecoderConfig:
        """Translates a Hugging Face `config.json`, read as a dict.

        Args:
          hf: the dict; both the `rope_scaling`/`rope_theta` and the newer `rope_parameters` spelling.
          **overrides: fields of DecoderConfig to replace, e.g. `dtype="bfloat16"`.

        Raises:
          UserError: an unsupported `model_type` (the supported ones are named), or a key whose value
            changes the mathematics in a way that this decoder does not compute.
        """
        from smallr.models.families import family_of  # the families build DecoderConfigs

        return dataclasses.replace(family_of(hf).config(hf), **overrides)

    @property
    def layer_matmul_params(self) -> int:
        """Weights of one layer that take part in products (no norms, no biases)."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.d_model * self.d_ff

    @property
    def num_params(self) -> int:
        """All parameters, a tied head counted once."""
        bias = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.qkv_bias else 0
        layer = self.layer_matmul_params + bias + 2 * self.d_model
        tables = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + tables + self.d_model

    def forward_flops(self, tokens: float, attended: float, scored: float) -> float:
        """FLOPs of a forward pass, a multiply-add counted as two; the backward pass takes twice as many again.

        Included: the layers' products for `tokens` tokens, q·k and p·v for `attended` visible (query, key)
        pairs (so the causal half, not the square), the head for `scored` tokens. Not included: lookups,
        norms, softmax, activation functions, and whatever remat computes again.
        """
        layers = 2 * self.num_layers * self.layer_matmul_params * tokens
        pairs = 4 * self.num_layers * self.num_heads * self.head_dim * attended
        return layers + pairs + 2 * self.vocab_size * self.d_model * scored

    def flops_per_token(self, length: int) -> float:
        """Forward FLOPs per token of one causal sequence of `length` tokens, every token scored."""
        window = min(length, self.window or length)
        attended = window * (window + 1) / 2 + (length - window) * window
        return self.forward_flops(length, attended, length) / length
