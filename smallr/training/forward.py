"""Computes the log-probs of the scored positions of a batch with a decoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smallr.core.sharding import constrain
from smallr.data.batch import Batch
from smallr.losses import TokenScores, token_scores
from smallr.models.decoder import Decoder


def scored_states(decoder: Decoder, batch: Batch) -> Float[Array, "B N D"]:
    """Runs the decoder; returns the hidden states that predict the scored positions: what every head reads."""
    hidden = decoder(batch.tokens, batch.positions, batch.horizon)
    # Only the hidden states that predict something reach a head.
    states = jnp.take_along_axis(hidden, batch.logit_position[..., None], axis=1)
    return constrain(states, "batch", "tokens", "activation_embed")


def score(decoder: Decoder, batch: Batch, chunk: int, log_sum_p2: bool = False, entropy: bool = False) -> TokenScores:
    """Computes the log-prob (and `log_sum_p2` or `entropy`, if asked) of every scored position, float32; 0 in unused ones."""
    scores = token_scores(
        scored_states(decoder, batch),
        decoder.unembedding(),
        batch.target,
        chunk=chunk,
        softcap=decoder.config.final_softcap,
        log_sum_p2=log_sum_p2,
        entropy=entropy,
    )
    return jax.tree.map(lambda x: jnp.where(batch.role > 0, x, 0.0), scores)
