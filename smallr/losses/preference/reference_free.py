"""Defines losses that need no reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smallr.losses.preference.pairs import Pairs, smoothed

# Mean log-probs are kept this far below 0: the odds of probability 1 are infinite.
_CERTAIN = 1e-6


def simpo(pairs: Pairs, *, simpo_gamma: float = 1.0, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns -log sigma(beta [log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|] - gamma), smoothing as in `sigmoid`.

    SimPO: Meng et al., arXiv 2405.14734, equation 6.
    """
    means = pairs.per_token()
    return smoothed(pairs.beta * (means.chosen - means.rejected) - simpo_gamma, label_smoothing)


def cpo_prefer(pairs: Pairs, *, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns -log sigma(beta [log pi(y_w|x) - log pi(y_l|x)]), smoothing as in `sigmoid`.

    L_prefer of CPO: Xu et al., arXiv 2401.08417, equation 3; CPO itself is `cpo`, the sum with `nll`.
    """
    return smoothed(pairs.beta * (pairs.chosen - pairs.rejected), label_smoothing)


def odds_ratio(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns -log sigma(log odds(y_w|x) - log odds(y_l|x)), odds = p / (1 - p), log p the mean log-prob of a token.

    L_OR of ORPO: Hong et al., arXiv 2403.07691, equation 7; ORPO itself is `orpo`, with `sft` before it.
    """

    def log_odds(mean: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
        mean = jnp.minimum(mean, -_CERTAIN)
        return mean - jnp.log(-jnp.expm1(mean))

    means = pairs.per_token()
    return -jax.nn.log_sigmoid(log_odds(means.chosen) - log_odds(means.rejected))


def sft(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns -log pi(y_w|x) / |y_w|.

    The likelihood term of RPO (Pang et al., arXiv 2404.19733, equation 1), MPO and ORPO.
    """
    return -pairs.per_token().chosen


def nll(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns -log pi(y_w|x).

    L_NLL of CPO: Xu et al., arXiv 2401.08417, section 4.
    """
    return -pairs.chosen
