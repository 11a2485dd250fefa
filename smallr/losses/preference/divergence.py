"""Replaces the reverse KL to the reference by other divergences.

f-DPO: Wang et al., arXiv 2309.16240, theorem 1 and table 1: with the penalty D_f(pi || ref) the implicit reward is
beta f'(pi / ref), and a loss of the difference of two rewards needs nothing else. With u = pi / ref, and constants, which
cancel in a difference, such that f'(1) = 0:

  reverse_kl   f'(u) = log u
  forward_kl   f'(u) = 1 - 1 / u
  js           f'(u) = log(2 u / (1 + u))
  alpha:A      f'(u) = (1 - u^-A) / A, 0 < A < 1; A -> 0 is the reverse KL, A -> 1 the forward KL
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smallr.core.errors import UserError
from smallr.losses.preference.pairs import Pairs

# exp is continued by its tangent from here on: values and gradients stay finite, and a pair that the policy all but
# excludes keeps being pulled back.
_LIMIT = 30.0


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Names a divergence, with alpha where it has one."""

    name: str
    alpha: float = math.nan

    @classmethod
    def parse(cls, text: str) -> Divergence:
        """Reads `reverse_kl`, `forward_kl`, `js`, or `alpha:0.5`.

        Raises:
          UserError: anything else.
        """
        if text in ("reverse_kl", "forward_kl", "js"):
            return cls(text)
        name, _, value = text.partition(":")
        try:
            alpha = float(value)
        except ValueError:
            alpha = math.nan
        if name != "alpha" or not 0 < alpha < 1:
            raise UserError(
                f"config.objective.divergence: {text!r} must be one of: reverse_kl, forward_kl, js, alpha:A with 0 < A < 1"
            )
        return cls(name, alpha)

    @property
    def is_default(self) -> bool:
        """Returns whether rewards are plain log-ratios."""
        return self.name == "reverse_kl"

    def score(self, ratio: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        """Returns f'(u) for ratio = log u."""
        if self.name == "reverse_kl":
            return ratio
        if self.name == "forward_kl":
            return 1.0 - _exp(-ratio)
        if self.name == "js":
            return math.log(2.0) + jax.nn.log_sigmoid(ratio)
        return (1.0 - _exp(-self.alpha * ratio)) / self.alpha

    def scored(self, pairs: Pairs) -> Pairs:
        """Returns pairs whose log-ratios are the scores."""
        pairs = pairs.float32()
        zero = jnp.zeros_like(pairs.chosen)
        return pairs._replace(
            chosen=self.score(pairs.ratio_chosen),
            rejected=self.score(pairs.ratio_rejected),
            ref_chosen=zero,
            ref_rejected=zero,
        )


def _exp(x: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    below = jnp.minimum(x, _LIMIT)
    return jnp.exp(below) * (1.0 + (x - below))
