"""One decoder for every family: embedding, scanned layers, final norm. The head is a matrix for the losses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from smallr.models.attention import attention
from smallr.models.config import DecoderConfig
from smallr.models.linear import linear
from smallr.models.rope import apply_rope, rope_tables
from smallr.sharding import constrain

INIT_STDDEV = 0.02
# What remat="dots" keeps: the products of a layer, in the compute dtype, and the attention's statistics.
SAVED_NAMES = ("projection", "attention_out", "attention_lse")


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, in float32 (arXiv 1910.07467, eq. 4)."""

    def __init__(self, dim: int, eps: float, layers: tuple[int, ...] = ()):
        self.eps = eps
        self.scale = _param(jnp.ones, (dim,), (None,), layers)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The normed activations, in x's dtype."""
        wide = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * rms * self.scale[...]).astype(x.dtype)


class Table(nnx.Module):
    """A row per token id: the embedding, or an untied head."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.table = _param(_normal(rngs), (config.vocab_size, config.d_model), ("vocab", "embed"))


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, layers: tuple[int, ...]):
        self.config = config
        d_model, dim, init = config.d_model, config.head_dim, _normal(rngs)
        self.q = _param(init, (d_model, config.num_heads, dim), ("embed", "heads", "head_dim"), layers)
        self.k = _param(init, (d_model, config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), layers)
        self.v = _param(init, (d_model, config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), layers)
        self.o = _param(init, (config.num_heads, dim, d_model), ("heads", "head_dim", "embed"), layers)
        if config.qkv_bias:
            self.q_bias = _param(jnp.zeros, (config.num_heads, dim), ("heads", "head_dim"), layers)
            self.k_bias = _param(jnp.zeros, (config.num_kv_heads, dim), ("kv_heads", "head_dim"), layers)
            self.v_bias = _param(jnp.zeros, (config.num_kv_heads, dim), ("kv_heads", "head_dim"), layers)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rope: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
        positions: Int[Array, "B T"],
        horizon: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """The mixed and projected values."""
        config = self.config
        q, k, v = (self._project(x, name) for name in ("q", "k", "v"))
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        q, k, v = (checkpoint_name(value, "projection") for value in (q, k, v))
        mixed = attention(q, k, v, horizon, positions, config.window, config.attention_softcap, impl=config.attention)
        return linear(mixed, self.o[...], dtype=config.dtype, inputs=2)

    def _project(self, x: Float[Array, "B T D"], name: str) -> Float[Array, "B T heads head_dim"]:
        bias = getattr(self, f"{name}_bias")[...] if self.config.qkv_bias else None
        return linear(x, getattr(self, name)[...], bias, dtype=self.config.dtype)


class MLP(nnx.Module):
    """SwiGLU: (silu(x gate) * (x up)) down (arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, layers: tuple[int, ...]):
        self.dtype = config.dtype
        init = _normal(rngs)
        self.gate = _param(init, (config.d_model, config.d_ff), ("embed", "mlp"), layers)
        self.up = _param(init, (config.d_model, config.d_ff), ("embed", "mlp"), layers)
        self.down = _param(init, (config.d_ff, config.d_model), ("mlp", "embed"), layers)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The gated product, in the compute dtype."""
        gate = checkpoint_name(linear(x, self.gate[...], dtype=self.dtype), "projection")
        up = checkpoint_name(linear(x, self.up[...], dtype=self.dtype), "projection")
        gated = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
        return linear(gated, self.down[...], dtype=self.dtype)


class Block(nnx.Module):
    """A pre-norm layer. Built with a leading "layers" axis on every parameter; called on one layer's slice."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, layers: tuple[int, ...]):
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps, layers)
        self.attention = Attention(config, rngs, layers)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps, layers)
        self.mlp = MLP(config, rngs, layers)

    def __call__(self, x, rope, positions, horizon) -> Float[Array, "B T D"]:
        """The residual stream after this layer."""
        x = x + self.attention(self.attention_norm(x), rope, positions, horizon)
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", "tokens", "activation_embed")


class Decoder(nnx.Module):
    """Tokens to hidden states.

    Parameters are float32 masters with logical axis names in their `axes` metadata. Those of the layers are
    stacked on a leading "layers" axis and scanned, so that compile time does not grow with depth.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Table(config, rngs)
        self.layers = Block(config, rngs, (config.num_layers,))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.head = Table(config, rngs)

    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], horizon: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in `config.dtype`.

        Args:
          tokens: ids below vocab_size.
          positions: position within the example, for the rotary embedding.
          horizon: first query index that no longer sees this key; 0 for padding, whose hidden states mean nothing.
        """
        config = self.config
        # The residual stream is float32 in every compute dtype: in bfloat16 its roundings alone would double the
        # error of a completion's log-prob. The lookup's gradients of one token's many places add up in float32 too.
        # Each device looks up its own rows of the batch, so it needs the whole width of the table.
        table = constrain(self.embed.table[...], "vocab", "activation_embed")
        x = table[tokens]
        x = constrain(x, "batch", "tokens", "activation_embed")
        rope = rope_tables(positions, config)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x, weights):
            return nnx.merge(graphdef, weights)(x, rope, positions, horizon), None

        x, _ = jax.lax.scan(_remat(layer, config.remat), x, stacked)
        return self.final_norm(x).astype(config.dtype)

    def unembedding(self) -> Float[Array, "V D"]:
        """The head's float32 master: logits are hidden · unembeddingᵀ. The embedding itself when tied."""
        return (self.embed if self.config.tie_embeddings else self.head).table[...]


def _remat(layer: Callable, remat: str) -> Callable:
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES) if remat == "dots" else None
    # Inside a scan XLA can not merge the second computation with the first, so the costly guard is not needed.
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)


def _param(
    init: Callable, shape: tuple[int, ...], axes: tuple[str | None, ...], layers: tuple[int, ...] = ()
) -> nnx.Param:
    """A float32 parameter, with a leading "layers" axis if `layers` gives its length."""
    return nnx.Param(init((*layers, *shape)), axes=(*("layers" for _ in layers), *axes))


def _normal(rngs: nnx.Rngs) -> Callable:
    return lambda shape: INIT_STDDEV * jax.random.normal(rngs.params(), shape, jnp.float32)
