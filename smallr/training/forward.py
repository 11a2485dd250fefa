"""From a decoder and a batch to the log-probs of the scored positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from smallr.core.sharding import constrain
from smallr.data.batch import Batch
from smallr.losses import TokenScores, token_scores
from smallr.models.decoder import Decoder


def score(decoder: Decoder, batch: Batch, chunk: int, log_sum_p2: bool = False) -> TokenScores:
    """Computes the log-prob (and `log_sum_p2`, if asked) of every scored position, float32; 0 in unused ones."""
    hidden = decoder(batch.tokens, batch.positions, batch.horizon)
    # Only the hidden states that predict something reach the head.
    states = jnp.take_along_axis(hidden, batch.logit_position[..., None], axis=1)
    states = constrain(states, "batch", "tokens", "activation_embed")
    scores = token_scores(
        states,
        decoder.unembedding(),
        batch.target,
        chunk=chunk,
        softcap=decoder.config.final_softcap,
        log_sum_p2=log_sum_p2,
    )
    return jax.tree.map(lambda x: jnp.where(batch.role > 0, x, 0.0), scores)
