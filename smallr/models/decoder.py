"""Defines one decoder for every family: embedding, scanned layers, final norm. The head is a matrix for the losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smallr.core.sharding import constrain
from smallr.models.attention import attention
from smallr.models.config import DecoderConfig
from smallr.models.norms import RMSNorm, norm
from smallr.models.parameters import normal, param
from smallr.models.projection import project, project_all
from smallr.models.remat import keep, rematerialised
from smallr.models.rope import apply_rope, layer_ropes, rope_tables

NO_WINDOW = 2**31 - 1  # a traced window that bounds nothing


class Table(nnx.Module):
    """Holds a row per token id (the embedding, an untied head) or per learned position."""

    def __init__(self, rows: int, axis: str | None, config: DecoderConfig, rngs: nnx.Rngs):
        self.axis = axis
        self.table = param(normal(rngs), (rows, config.d_model), (axis, "embed"))

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the rows of these ids, float32."""
        # A device looks up the ids of all rows in its part of the table's width, then parts are exchanged for rows:
        # far fewer bytes than the whole table and, on the way back, the whole table's gradient.
        rows = "lookup_batch", "lookup_tokens"
        parts = constrain(self.table[...][constrain(ids, *rows)], *rows, "embed")
        return constrain(parts, "batch", "tokens", "activation_embed")


class LayerKind(NamedTuple):
    """Says how a layer differs from others; None where none does."""

    window: Int[Array, "*layers"] | None
    rope: Int[Array, "*layers"] | None  # index among the tables


class LayerInputs(NamedTuple):
    """Holds what a layer reads beside the residual stream. `window` and `rope` are the layer's own.

    `attend` takes the place of `attention` where there is no row: it gets q, k, v, window, softcap and scale.
    """

    positions: Int[Array, "B T"]
    horizon: Int[Array, "B T"] | None
    window: int | Int[Array, ""] | None
    rope: tuple[Float[Array, "B T half"], Float[Array, "B T half"]] | None
    attend: Callable[..., Float[Array, "B T H D"]] | None = None


class Attention(nnx.Module):
    """Computes grouped-query attention, with rotary positions or none."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, layers: tuple[int, ...]):
        self.config = config
        d_model, dim, init = config.d_model, config.head_dim, normal(rngs)
        self.q = param(init, (d_model, config.num_heads, dim), ("embed", "heads", "head_dim"), layers)
        self.k = param(init, (d_model, config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), layers)
        self.v = param(init, (d_model, config.num_kv_heads, dim), ("embed", "kv_heads", "head_dim"), layers)
        self.o = param(init, (config.num_heads, dim, d_model), ("heads", "head_dim", "embed"), layers)
        if config.qkv_bias:
            self.q_bias = param(jnp.zeros, (config.num_heads, dim), ("heads", "head_dim"), layers)
            self.k_bias = param(jnp.zeros, (config.num_kv_heads, dim), ("kv_heads", "head_dim"), layers)
            self.v_bias = param(jnp.zeros, (config.num_kv_heads, dim), ("kv_heads", "head_dim"), layers)
        if config.o_bias:
            self.o_bias = param(jnp.zeros, (d_model,), (None,), layers)
        if config.qk_norm != "none":
            self.q_norm = self._head_norm(config.num_heads, "heads", layers)
            self.k_norm = self._head_norm(config.num_kv_heads, "kv_heads", layers)

    def __call__(self, x: Float[Array, "B T D"], inputs: LayerInputs) -> Float[Array, "B T D"]:
        """Returns the mixed and projected values."""
        config = self.config
        names = ("q", "k", "v")
        biases = tuple(getattr(self, f"{name}_bias")[...] if config.qkv_bias else None for name in names)
        projected = project_all(self, names, x, biases, dtype=config.dtype)
        q, k, v = (keep(each, "projection") for each in projected)
        if config.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        if inputs.rope is not None:
            q, k = apply_rope(q, *inputs.rope), apply_rope(k, *inputs.rope)
        rule = {"window": inputs.window, "softcap": config.attention_softcap, "scale": config.query_scale}
        if inputs.attend is None:
            rule |= {"impl": config.attention, "sequences": config.attention_sequences}
            mixed = attention(q, k, v, inputs.horizon, inputs.positions, **rule)
        else:
            mixed = inputs.attend(q, k, v, **rule)
        bias = self.o_bias[...] if config.o_bias else None
        return project(self, "o", mixed, bias, dtype=config.dtype, inputs=2)

    def _head_norm(self, heads: int, axis: str, layers: tuple[int, ...]) -> RMSNorm:
        config = self.config
        shape, axes = ((config.head_dim,), ("head_dim",))
        if config.qk_norm == "all":
            shape, axes = (heads, *shape), (axis, *axes)
        return RMSNorm(shape, axes, config.norm_eps, config.norm_offset, layers)


_ACTIVATIONS: Mapping[str, Callable] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    """Computes (act(x gate) * (x up)) down (arXiv 2002.05202, eq. 6), or act(x up) down."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, layers: tuple[int, ...]):
        self.config = config
        init = normal(rngs)
        if config.gated_mlp:
            self.gate = param(init, (config.d_model, config.d_ff), ("embed", "mlp"), layers)
        self.up = param(init, (config.d_model, config.d_ff), ("embed", "mlp"), layers)
        self.down = param(init, (config.d_ff, config.d_model), ("mlp", "embed"), layers)
        if config.mlp_bias:
            if config.gated_mlp:
                self.gate_bias = param(jnp.zeros, (config.d_ff,), ("mlp",), layers)
            self.up_bias = param(jnp.zeros, (config.d_ff,), ("mlp",), layers)
            self.down_bias = param(jnp.zeros, (config.d_model,), (None,), layers)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the gated product, in the compute dtype."""
        act = _ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            names = ("gate", "up")
            projected = project_all(self, names, x, tuple(map(self._bias, names)), dtype=self.config.dtype)
            gate, up = (keep(each, "projection") for each in projected)
            hidden = act(gate.astype(jnp.float32)) * up.astype(jnp.float32)
        else:
            hidden = act(keep(self._project(x, "up"), "projection").astype(jnp.float32))
        return self._project(hidden, "down")

    def _project(self, x: Float[Array, "B T inputs"], name: str) -> Float[Array, "B T outputs"]:
        return project(self, name, x, self._bias(name), dtype=self.config.dtype)

    def _bias(self, name: str) -> Float[Array, "outputs"] | None:
        return getattr(self, f"{name}_bias")[...] if self.config.mlp_bias else None


class Block(nnx.Module):
    """Computes a layer. Built with a leading "layers" axis on every parameter; called on one layer's slice."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, layers: tuple[int, ...]):
        self.config = config
        self.attention = Attention(config, rngs, layers)
        self.mlp = MLP(config, rngs, layers)
        if config.norm_place in ("before", "both"):
            self.attention_norm, self.mlp_norm = norm(config, layers), norm(config, layers)
        if config.norm_place in ("after", "both"):
            self.attention_post_norm, self.mlp_post_norm = norm(config, layers), norm(config, layers)

    def __call__(self, x: Float[Array, "B T D"], inputs: LayerInputs) -> Float[Array, "B T D"]:
        """Returns the residual stream after this layer."""
        x = x + self._normed("attention", x, lambda x: self.attention(x, inputs))
        x = x + self._normed("mlp", x, self.mlp)
        return constrain(x, "batch", "tokens", "activation_embed")

    def _normed(self, name: str, x: Float[Array, "B T D"], part: Callable) -> Float[Array, "B T D"]:
        """Applies `part` between the norms of the family."""
        place = self.config.norm_place
        x = part(x if place == "after" else getattr(self, f"{name}_norm")(x))
        # The backward pass of a norm reads what came into it: if that were not kept, the part's last product would run again.
        return x if place == "before" else getattr(self, f"{name}_post_norm")(keep(x, "projection"))


class Decoder(nnx.Module):
    """Computes hidden states from tokens.

    Parameters are float32 masters with logical axis names in their `axes` metadata. Those of the layers are
    stacked on a leading "layers" axis and scanned, so that compile time does not grow with depth.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Table(config.vocab_size, "vocab", config, rngs)
        if config.learned_positions:
            self.position = Table(config.max_positions, None, config, rngs)
        self.layers = Block(config, rngs, (config.num_layers,))
        self.final_norm = norm(config)
        if not config.tie_embeddings:
            self.head = Table(config.vocab_size, "vocab", config, rngs)

    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], horizon: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Returns hidden states after the final norm, in `config.dtype`.

        Args:
          tokens: ids below vocab_size, or soft tokens (below 0) of a decoder that has soft prompts.
          positions: position within the example.
          horizon: first query index that no longer sees this key; 0 for padding, whose hidden states mean nothing.
        """
        config = self.config
        x = self.embedded(tokens, positions)
        graphdef, stacked = nnx.split(self.layers)
        of_layer, pattern = layer_inputs(config, positions, horizon)

        def layer(x, scanned):
            weights, kind = scanned
            return nnx.merge(graphdef, weights)(x, of_layer(kind)), None

        x, _ = jax.lax.scan(rematerialised(layer, config.remat), x, (stacked, pattern))
        return self.final_norm(x).astype(config.dtype)

    def embedded(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns what enters the first layer, float32."""
        # The residual stream is float32 in every compute dtype: in bfloat16 its roundings alone would double the
        # error of a completion's log-prob. The lookup's gradients of one token's many places add up in float32 too.
        soft = getattr(self, "soft", None)  # see `smallr.models.soft`
        ids = tokens if soft is None else jnp.maximum(tokens, 0)
        x = self.embed(ids) * self.config.embedding_scale
        x = x if soft is None else soft(tokens, x)
        if self.config.learned_positions:
            # An index beyond a table would quietly read its last row; NaN is seen.
            x = x + self.position.table[...].at[positions].get(mode="fill", fill_value=jnp.nan)
        return constrain(x, "batch", "tokens", "activation_embed")

    def unembedding(self) -> Float[Array, "V D"]:
        """Returns the head's float32 master: logits are hidden · unembeddingᵀ. The embedding itself when tied."""
        return (self.embed if self.config.tie_embeddings else self.head).table[...]


def layer_inputs(
    config: DecoderConfig,
    positions: Int[Array, "B T"],
    horizon: Int[Array, "B T"] | None,
    longest: Int[Array, "B T"] | None = None,
) -> tuple[Callable[[LayerKind], LayerInputs], LayerKind]:
    """Returns what tells layers apart, as arrays to scan over, and the function from a layer's slice to its inputs.

    One scanned program serves every pattern of layers. What all layers share stays static. `longest` is as in
    `rope_tables`.
    """
    windows, ropes = config.layer_windows, layer_ropes(config)
    kinds = sorted(set(ropes))
    tables = None
    if kinds != ["none"]:
        each = [rope_tables(positions, config, kind, longest) for kind in kinds]
        tables = each[0] if len(kinds) == 1 else jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)
    pattern = LayerKind(
        None
        if len(set(windows)) == 1
        else jnp.asarray([NO_WINDOW if window is None else window for window in windows]),
        None if len(kinds) == 1 else jnp.asarray([kinds.index(rope) for rope in ropes]),
    )

    def of_layer(kind: LayerKind) -> LayerInputs:
        window = windows[0] if kind.window is None else kind.window
        rope = tables if kind.rope is None else jax.tree.map(lambda table: table[kind.rope], tables)
        return LayerInputs(positions, horizon, window, rope)

    return of_layer, pattern
