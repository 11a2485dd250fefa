"""Adds soft prompts (arXiv 2104.08691): trained vectors in the place of embeddings of tokens, in a frozen model.

A decoder with soft prompts has one table of vectors. Token id -1 - i is its row i, so that batches, caches and prompts
shared between requests need to know nothing of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from smallr.core.errors import UserError
from smallr.core.sharding import constrain, named_sharding
from smallr.models.decoder import Decoder

AXES = (None, "embed")


class SoftPrompts(nnx.Module):
    """Holds the vectors of all soft prompts of a decoder, one behind the other, float32 [vectors, D].

    A vector is what enters the first layer in place of an embedding times `embedding_scale`; learned positions are added
    to it. So PEFT's prompt tuning has it.
    """

    def __init__(self, vectors: Float[Array, "vectors D"]):
        self.vectors = nnx.Param(vectors, axes=AXES)

    def __call__(self, tokens: Int[Array, "B T"], embedded: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the embedded tokens with vectors in the place of soft tokens."""
        rows = self.vectors[...][jnp.maximum(-1 - tokens, 0)]
        rows = constrain(rows, "batch", "tokens", "activation_embed")
        return jnp.where((tokens < 0)[..., None], rows, embedded)


def attach_soft_prompts(decoder: Decoder, vectors: Float[Array, "vectors D"], mesh: Mesh) -> None:
    """Gives a decoder soft prompts, in the place of those that it had.

    Raises:
      UserError: vectors of another width.
    """
    if vectors.ndim != 2 or vectors.shape[1] != decoder.config.d_model:
        raise UserError(
            f"soft prompts of shape {tuple(vectors.shape)}: this model has vectors of {decoder.config.d_model} numbers; they "
            "are of another model"
        )
    sharding = named_sharding(mesh, AXES, vectors.shape)
    decoder.soft = SoftPrompts(jax.device_put(jnp.asarray(vectors, jnp.float32), sharding))


def drawn_vectors(decoder: Decoder, count: int, seed: int) -> Float[Array, "vectors D"]:
    """Returns what fresh soft prompts begin with: embeddings of different tokens, drawn from the vocabulary.

    Vectors of the size and directions that the first layer knows learn faster than noise (arXiv 2104.08691, section 3.2).

    Raises:
      UserError: fewer tokens than vectors.
    """
    if count > decoder.config.vocab_size:
        raise UserError(f"{count} soft tokens are more than the model's vocabulary of {decoder.config.vocab_size}")
    ids = jax.random.choice(jax.random.key(seed), decoder.config.vocab_size, (count,), replace=False)
    return decoder.embed.table[...][ids] * decoder.config.embedding_scale


def soft_tokens(decoder: Decoder) -> int:
    """Returns how many soft tokens a decoder knows."""
    soft = getattr(decoder, "soft", None)
    return 0 if soft is None else soft.vectors.shape[0]


def is_soft_path(path: tuple[str, ...]) -> bool:
    """Returns whether a parameter is of soft prompts."""
    return path[0] == "soft"
