"""Defines what a decoder is: sizes, rotary embedding, and how it is computed.

One frozen dataclass serves every family. A family's file in `smallr.models.families` translates the
Hugging Face `config.json` into it; GGUF metadata is first written as such a dict (`smallr.models.gguf`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from smallr.core.errors import UserError
from smallr.models.schema import check_config

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")
# See `smallr.models.attention.attention`.
ATTENTION = ("auto", "xla", "tpu", "gpu", "cudnn", "cudnn_packed", "splash")
NORMS = ("rms", "layer")
NORM_PLACES = ("before", "after", "both")
QK_NORMS = ("none", "head", "all")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Says how the rotary frequencies differ from theta^(-2i/d); see `smallr.models.rope` for the formulas.

    Attributes:
      kind: "linear" divides all by `factor`; "llama3" divides the low ones and blends between
        `low_freq_factor` and `high_freq_factor`; "yarn" ramps between `beta_fast` and `beta_slow`;
        "factors" divides frequency i by `factors[i]`; "longrope" does so in examples that are no longer than
        `original_max_positions`, and divides by `long_factors[i]` in longer ones.
      original_max_positions: context length before the extension (llama3, yarn, longrope).
      attention_factor: what cos and sin are multiplied by (yarn, longrope).
      truncate: yarn rounds the ends of its ramp to whole frequencies.
    """

    kind: Literal["linear", "llama3", "yarn", "factors", "longrope"]
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Describes a decoder: what differs between families and models, and how it is computed.

    The defaults are Llama's: RMSNorm before each part of a layer, grouped-query attention with rotary positions,
    SwiGLU.

    Attributes:
      family: the family that named the tensors; a key of `smallr.models.families.FAMILIES`.
      vocab_size: rows of the embedding, padding rows included.
      num_kv_heads: divides num_heads.
      rotary_dim: None, or how many of a head's dimensions rotate: the first ones.
      local_rope_theta: None, or the rotary base of the layers with a window, which then have no scaling (Gemma 3).
      nope_layers: indices of the layers without rotary positions (SmolLM3).
      learned_positions: a table of max_positions vectors is added to the embedding, and nothing rotates (GPT-2).
      norm: "rms" or "layer".
      norm_place: "before" attention and MLP, on their output ("after", OLMo 2), or "both" (Gemma 2).
      norm_offset: added to the scales of RMSNorm.
      qk_norm: RMSNorm of queries and keys before they rotate: "none", each "head" by itself with one scale for
        all, or "all" heads together.
      qkv_bias, o_bias, mlp_bias: biases on those projections.
      gated_mlp: act(x gate) * (x up), not act(x up).
      activation: "silu", "gelu", or "gelu_tanh", its approximation.
      embedding_scale: what looked-up embeddings are multiplied by.
      tie_embeddings: the head is the embedding.
      max_positions: context length that the model was trained for.
      query_scale: None, or what scores are multiplied by in place of head_dim^-0.5.
      window: None, or query sees keys at most window - 1 positions back.
      full_layers: indices of the layers that the window does not bound.
      attention_softcap: None, or scores become cap * tanh(score / cap).
      final_softcap: the same for logits; applied where logits are made, not in the decoder.
      dtype: compute dtype; masters, norms, softmax and sums are float32.
      remat: what the backward pass computes again: "none" keeps all, "dots" keeps the products of each
        layer, "full" keeps only each layer's input.
      attention: implementation of `smallr.models.attention.attention`.
      attention_sequences: of a row at most, for implementations that unshare prompts: its completions; 0: one for every
        16 tokens.

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
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    nope_layers: tuple[int, ...] = ()
    learned_positions: bool = False
    norm: str = "rms"
    norm_place: str = "before"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    qk_norm: str = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True
    activation: str = "silu"
    embedding_scale: float = 1.0
    tie_embeddings: bool = False
    max_positions: int = 2048
    query_scale: float | None = None
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    attention_softcap: float | None = None
    final_softcap: float | None = None
    family: str = "llama"
    dtype: str = "float32"
    remat: str = "full"
    attention: str = "auto"
    attention_sequences: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"DecoderConfig.{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"DecoderConfig: {self.num_kv_heads} kv heads do not divide {self.num_heads} heads")
        if self.rotary % 2 or self.rotary > self.head_dim:
            raise UserError(
                f"DecoderConfig: head_dim must be even for rotary positions (rotary_dim, if given), got {self.rotary} "
                f"of {self.head_dim}"
            )
        if self.rotary_dim is not None and self.rotary_dim < 2:
            raise UserError(f"DecoderConfig.rotary_dim must be None or at least 2, got {self.rotary_dim}")
        if self.window is not None and self.window < 1:
            raise UserError(f"DecoderConfig.window must be None or at least 1, got {self.window}")
        for name, choices in (
            ("norm", NORMS),
            ("norm_place", NORM_PLACES),
            ("qk_norm", QK_NORMS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"DecoderConfig.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
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

        check_config(hf)
        return dataclasses.replace(family_of(hf).config(hf), **overrides)

    @property
    def rotary(self) -> int:
        """Returns how many of a head's dimensions rotate."""
        return 0 if self.learned_positions else self.rotary_dim or self.head_dim

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """Returns the window of each layer."""
        return tuple(None if layer in self.full_layers else self.window for layer in range(self.num_layers))

    @property
    def layer_matmul_params(self) -> int:
        """Counts the weights of one layer that take part in products (no norms, no biases)."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + (3 if self.gated_mlp else 2) * self.d_model * self.d_ff

    @property
    def num_params(self) -> int:
        """Returns all parameters, a tied head counted once."""
        norm = self.d_model * (2 if self.norm == "layer" else 1)
        heads = self.num_heads + self.num_kv_heads
        layer = self.layer_matmul_params + norm * (4 if self.norm_place == "both" else 2)
        layer += self.head_dim * {"none": 0, "head": 2, "all": heads}[self.qk_norm]
        layer += self.head_dim * (heads + self.num_kv_heads) * self.qkv_bias + self.d_model * self.o_bias
        layer += ((2 if self.gated_mlp else 1) * self.d_ff + self.d_model) * self.mlp_bias
        rows = self.vocab_size * (1 if self.tie_embeddings else 2) + self.max_positions * self.learned_positions
        return self.num_layers * layer + rows * self.d_model + norm

    def forward_flops(self, tokens: float, attended: float, scored: float) -> float:
        """Counts the FLOPs of a forward pass, a multiply-add counted as two; the backward pass takes twice as many again.

        Included: the layers' products for `tokens` tokens, q·k and p·v for `attended` visible (query, key)
        pairs (so the causal half, not the square), the head for `scored` tokens. Not included: lookups,
        norms, softmax, activation functions, and whatever remat computes again.
        """
        layers = 2 * self.num_layers * self.layer_matmul_params * tokens
        pairs = 4 * self.num_layers * self.num_heads * self.head_dim * attended
        return layers + pairs + 2 * self.vocab_size * self.d_model * scored

    def flops_per_token(self, length: int) -> float:
        """Counts the forward FLOPs per token of one causal sequence of `length` tokens, every token scored."""
        windows = [min(length, window or length) for window in self.layer_windows]
        attended = sum(window * (window + 1) / 2 + (length - window) * window for window in windows)
        return self.forward_flops(length, attended / self.num_layers, length) / length
