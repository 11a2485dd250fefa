"""Changes the logits of single requests before a token is drawn: penalties, biases, and what a grammar allows.

While no request has any of these, the programs know nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from smallr.core.sharding import named_sharding
from smallr.sampling.completions import Completion
from smallr.sampling.grammars import BITS


class TokenState(NamedTuple):
    """Holds what is known of each token in each decode slot; it stays on the devices.

    Attributes:
      written: how often the completion has the token; a program counts on.
      prompted: the prompt has it.
      bias: added to its logit.
    """

    written: Int[Array, "S V"]
    prompted: Bool[Array, "S V"]
    bias: Float[Array, "S V"]


class Adjustments(NamedTuple):
    """Holds how the logits of each decode slot change in one program.

    Attributes:
      presence, frequency, repetition: see `SamplingParams`; 0, 0 and 1 change nothing.
      is_biased: the slot's row of `TokenState.bias` is its request's.
      allowed: a bit for each token that may be drawn; all ones change nothing.
      budget: tokens that the slot draws in this program.
    """

    presence: Float[Array, "S"]
    frequency: Float[Array, "S"]
    repetition: Float[Array, "S"]
    is_biased: Bool[Array, "S"]
    allowed: Int[Array, "S W"]
    budget: Int[Array, "S"]


def adjust(logits: Float[Array, "S V"], state: TokenState, by: Adjustments) -> Float[Array, "S V"]:
    """Returns the logits that are drawn from. The order is that of vLLM and transformers: bias, repetition, the others."""
    logits = jnp.where(by.is_biased[:, None], logits + state.bias, logits)
    repetition = by.repetition[:, None]
    repeated = jnp.where(logits < 0, logits * repetition, logits / repetition)
    logits = jnp.where((state.written > 0) | state.prompted, repeated, logits)
    logits = logits - by.frequency[:, None] * state.written
    logits = logits - by.presence[:, None] * (state.written > 0)
    return jnp.where(_bits(by.allowed, logits.shape[1]), logits, -jnp.inf)


def count(state: TokenState, tokens: Int[Array, "S"], alive: Bool[Array, "S"]) -> TokenState:
    """Counts the tokens that were just drawn."""
    return state._replace(written=state.written.at[jnp.arange(len(tokens)), tokens].add(alive.astype(jnp.int32)))


def _bits(words: Int[Array, "S W"], size: int) -> Bool[Array, "S size"]:
    bits = (words[:, :, None] >> jnp.arange(BITS)) & 1
    return bits.reshape(len(words), -1)[:, :size] > 0


def _begin(state: TokenState, slot: Int[Array, ""], prompted: Bool[Array, "V"], bias: Float[Array, "V"]) -> TokenState:
    """Forgets what a slot has written, and takes the rows of its new completion."""
    return TokenState(
        state.written.at[slot].set(0), state.prompted.at[slot].set(prompted), state.bias.at[slot].set(bias)
    )


class Adjuster:
    """Keeps the adjustments of an engine's decode slots; nothing is on the devices before a request has one.

    Args:
      slots: number of decode slots.
      vocab_size: number of logits.
      words: of the mask of a grammar.
      mesh: of the engine.

    Attributes:
      state: that the next program gets and gives back.
    """

    def __init__(self, slots: int, vocab_size: int, words: int, mesh: Mesh):
        self.state: TokenState | None = None
        self._shape, self._mesh = (slots, vocab_size), mesh
        self._begin = jax.jit(_begin, donate_argnums=0)
        self._by = Adjustments(
            presence=np.zeros(slots, np.float32),
            frequency=np.zeros(slots, np.float32),
            repetition=np.ones(slots, np.float32),
            is_biased=np.zeros(slots, bool),
            allowed=np.full((slots, words), -1, np.int32),
            budget=np.zeros(slots, np.int32),
        )

    def assign(self, slot: int, completion: Completion) -> None:
        """Takes the adjustments of a completion that has just been given a slot.

        Raises:
          UserError: its grammar cannot be followed.
        """
        by, params = self._by, completion.handle.request.params
        by.presence[slot], by.frequency[slot] = params.presence_penalty, params.frequency_penalty
        by.repetition[slot], by.is_biased[slot] = params.repetition_penalty, bool(params.logit_bias)
        by.allowed[slot] = -1
        self.advance(slot, completion)
        if completion.is_adjusted and self.state is None:
            self.state = self._nothing()
        if params.has_penalties or params.logit_bias:
            prompted, bias = np.zeros(self._shape[1], bool), np.zeros(self._shape[1], np.float32)
            prompt = completion.handle.prompt
            prompted[prompt[prompt >= 0]] = True  # soft tokens, which are below 0, have no logits
            for token, value in params.logit_bias:
                bias[token] += value
            self.state = self._begin(self.state, np.int32(slot), prompted, bias)

    def advance(self, slot: int, completion: Completion) -> None:
        """Computes which tokens the slot may draw next.

        Raises:
          UserError: its grammar cannot be followed any more.
        """
        if completion.constraint is not None:
            completion.constraint.fill(self._by.allowed[slot])

    def arguments(self, completions: Sequence[Completion | None], steps: int) -> Adjustments | None:
        """Returns what the next program needs besides `state`; None if no slot has an adjustment.

        Args:
          completions: of all slots.
          steps: of the program. A slot with a grammar draws one token of them, since the next depends on it.
        """
        if not any(each is not None and each.is_adjusted for each in completions):
            return None
        self._by.budget[:] = steps
        constrained = [
            slot for slot, each in enumerate(completions) if each is not None and each.constraint is not None
        ]
        self._by.budget[constrained] = 1
        return jax.tree.map(np.copy, self._by)  # a program that runs on may still read what it was given

    def _nothing(self) -> TokenState:
        sharding = named_sharding(self._mesh, ("batch", None), self._shape)

        def zeros(dtype: type) -> Array:
            return jnp.zeros(self._shape, dtype, device=sharding)

        return TokenState(zeros(jnp.int32), zeros(jnp.bool_), zeros(jnp.float32))
