"""Learns whether a whole completion is right, by a value head at its end (an outcome reward model)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import completion_sums
from smallr.models.decoder import Decoder
from smallr.training.forward import scored_states
from smallr.training.objectives.base import Objective, Summariser

CORRECT = "correct"  # the column of `config.data.completion_columns` that has the labels


def values_at_tokens(decoder: Decoder, batch: Batch) -> Float[Array, "B N"]:
    """Computes the first value head at every scored position, float32: what the state says before its token.

    At a completion's last token, the end token, that is the state behind all of its text.

    Raises:
      UserError: there is no value head.
    """
    heads = getattr(decoder, "heads", None)
    if not hasattr(heads, "value"):
        raise UserError("a reward model needs a value head: set config.heads.values=1")
    return heads.value(scored_states(decoder, batch))[0]


def is_last(completion: Int[Array, "B N"], used: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
    """Marks the last scored position of each completion; completions lie side by side in a row."""
    goes_on = (completion[:, 1:] == completion[:, :-1]) & used[:, 1:] & used[:, :-1]
    return used & ~jnp.pad(goes_on, ((0, 0), (0, 1)))


@dataclasses.dataclass(frozen=True)
class OutcomeReward(Objective):
    """Minimises the mean over completions of -log sigmoid(±V), with V of the state at the end of the completion.

    The rows are of the kind `completions`, with the column `correct` (1 or 0) among `config.data.completion_columns`, and
    the decoder has a value head. So all candidates of a question stand behind one prompt.
    """

    any_completions: ClassVar[bool] = True

    def forward(self, decoder: Decoder, batch: Batch, chunk: int) -> Float[Array, "B N"]:
        """Runs the decoder and its value head."""
        return values_at_tokens(decoder, batch)

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Counts the completions."""
        return jnp.sum(batch.completion_columns["weight"])

    def __call__(self, scores: Float[Array, "B N"], batch: Batch, reference: None):
        """Returns the summed loss, and sums over the completions of each example.

        Raises:
          UserError: the rows have no labels.
        """
        if CORRECT not in batch.completion_columns:
            raise UserError(
                f"objective outcome needs a label for each completion: rows of the kind completions with the column {CORRECT!r}, "
                f"and config.data.completion_columns=('{CORRECT}',)"
            )
        _, completions, examples = batch.completion_columns["weight"].shape
        last = is_last(batch.completion, batch.role > 0)
        value = completion_sums(scores, batch.completion, last, completions, examples)
        here, label = batch.completion_columns["weight"], batch.completion_columns[CORRECT] > 0
        loss = here * jax.nn.softplus(jnp.where(label, -value, value))
        right, wrong = here * label, here * ~label
        higher = value[:, :, None] > value[:, None]  # completion s above completion t
        values = {
            "loss": loss,
            "denominator": here,
            "right": here * ((value > 0) == label),
            "label": right,
            "probability": here * jax.nn.sigmoid(value),
            "wins": jnp.sum(right[:, :, None] * wrong[:, None] * higher, axis=2),
            "pairs": jnp.sum(right[:, :, None] * wrong[:, None], axis=2),
        }
        return jnp.sum(loss), {name: jnp.sum(each, axis=1) for name, each in values.items()}

    def summariser(self) -> Summariser:
        """Computes the accuracy of completions and of pairs of one prompt (a tie is wrong), and mean label and probability."""

        def summarise(values: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]) -> dict[str, float]:
            sums = {name: float(each.sum()) for name, each in values.items()}
            count = max(sums["denominator"], 1.0)
            metrics = {
                "accuracy": sums["right"] / count,
                "correct_share": sums["label"] / count,
                "probability": sums["probability"] / count,
            }
            return metrics | ({"pairwise_accuracy": sums["wins"] / sums["pairs"]} if sums["pairs"] else {})

        return summarise
