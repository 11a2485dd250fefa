"""Defines the one batch that every objective trains on.

A row holds several examples one behind the other. An example is a shared `prefix` followed by its completions: one
(SFT, rationale), two (preference: chosen, then rejected), or any number, which may differ between the examples of a set.
Attention is causal and a key is visible only before its *horizon*: query q sees key k  <=>  k <= q < horizon[k]. A
prefix key's horizon is the end of its example, a completion key's the end of its completion, a padding key's is 0. So
packing, prompt sharing, plain rows and padding are one rule and one int array.

Numbers come at three levels: of an example, of a completion, of a scored token.

A token id below 0 is a soft token: -1 - i is read as vector i of the model's soft prompts, see `soft_ids`.

Dimension letters: B rows, T tokens, N scored positions per row, P examples per row, S completions per example (the most
that an example of the set has).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

# Roles of tokens. Zero means "not scored", so a mask is `role > 0`.
ROLE_NONE = 0
ROLE_ANSWER = 1  # the completion of SFT and preference rows; the answer of rationale rows
ROLE_RATIONALE = 2


@dataclasses.dataclass(frozen=True)
class Completion:
    """Holds tokens that continue a prefix.

    Attributes:
      tokens, roles: int32 [length].
      columns: numbers of the completion; the same keys in all completions of a set.
      token_columns: float32 [scored] each, a number of every scored token in order; likewise.
    """

    tokens: Int[np.ndarray, "length"]
    roles: Int[np.ndarray, "length"]
    columns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    token_columns: Mapping[str, Float[np.ndarray, "scored"]] = dataclasses.field(default_factory=dict)

    @property
    def scored(self) -> Int[np.ndarray, "scored"]:
        """Returns indices of the tokens that are scored."""
        return np.flatnonzero(self.roles != ROLE_NONE)


@dataclasses.dataclass(frozen=True)
class Example:
    """Represents one tokenised row of a data set.

    Attributes:
      prefix: int32 [length], at least one token, never scored.
      completions: at least one; for a preference example chosen and rejected.
      columns: numbers of the row, e.g. `beta`, `gap` (an index); the same keys in all examples of a set.
      row: index of the row in the source, for messages and reports.
    """

    prefix: Int[np.ndarray, "length"]
    completions: tuple[Completion, ...]
    columns: Mapping[str, float]
    row: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds packed rows, as numpy arrays from the pipeline or as sharded jax arrays in the step.

    Attributes:
      tokens: token ids, or soft tokens below 0; padding is 0 and known by its horizon, never by its id.
      positions: position within the example; every completion continues from the end of the prefix.
      horizon: first query index that no longer sees this key; 0 for padding.
      logit_position: index into T of the hidden state that predicts the target of the scored position. The first token
        of *every* completion is predicted by the last prefix token.
      target: token id to score.
      completion: `s * P + p` for completion s of example p of the row.
      role: ROLE_*; ROLE_NONE marks an unused scored position (its other fields are 0).
      example: index of the example in its set, -1 for an unused example index.
      columns: one number per example: always `weight` (1, or 0 for an unused example index), and what the
        objective needs (`beta`, `gap`, `ref_chosen`, `ref_rejected`).
      completion_columns: one number per completion: always `weight` (1, or 0 where the example has no such completion),
        and what the rows bring.
      token_columns: one number per scored position, 0 in unused ones: what the rows bring (rewards, a teacher's
        log-probs, weights).
    """

    tokens: Int[Any, "B T"]
    positions: Int[Any, "B T"]
    horizon: Int[Any, "B T"]
    logit_position: Int[Any, "B N"]
    target: Int[Any, "B N"]
    completion: Int[Any, "B N"]
    role: Int[Any, "B N"]
    example: Int[Any, "B P"]
    columns: dict[str, Float[Any, "B P"]]
    completion_columns: dict[str, Float[Any, "B S P"]]
    token_columns: dict[str, Float[Any, "B N"]]


def soft_ids(number: int, length: int) -> Int[np.ndarray, "length"]:
    """Returns the token ids of soft prompt `number` of a model whose soft prompts have `length` vectors each."""
    return (-1 - np.arange(number * length, (number + 1) * length)).astype(np.int32)
