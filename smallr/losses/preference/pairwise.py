"""Defines losses of one pair at a time, relative to a reference.

r_w and r_l are the log-ratios log pi - log ref of the two completions, h = r_w - r_l, z = beta h.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smallr.losses.preference.pairs import Pairs, smoothed


def sigmoid(pairs: Pairs, *, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns -(1 - eps) log sigma(z) - eps log sigma(-z).

    DPO: Rafailov et al., arXiv 2305.18290, equation 7; smoothing (conservative DPO): Mitchell,
    https://ericmitchell.ai/cdpo.pdf. CogPO (Cai et al., arXiv 2504.09802) is this with a beta per pair.
    """
    return smoothed(pairs.beta * pairs.h, label_smoothing)


def sigmoid_norm(pairs: Pairs, *, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns `sigmoid` of log-ratios that are means over each completion's tokens.

    Length-normalised DPO: Lambert et al. (Tulu 3), arXiv 2411.15124, section 5.
    """
    return smoothed(pairs.beta * pairs.per_token().h, label_smoothing)


def robust(pairs: Pairs, *, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns [-(1 - eps) log sigma(z) + eps log sigma(-z)] / (1 - 2 eps): unbiased if a share eps of labels is flipped.

    rDPO: Chowdhury et al., arXiv 2403.00409, section 3. Unbounded below for eps > 0.
    """
    z, eps = pairs.beta * pairs.h, label_smoothing
    return (eps * jax.nn.log_sigmoid(-z) - (1.0 - eps) * jax.nn.log_sigmoid(z)) / (1.0 - 2.0 * eps)


def hinge(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns max(0, 1 - z).

    SLiC-HF: Zhao et al., arXiv 2305.10425, equation 1, on the log-ratios to a reference, as in RSO: Liu et al.,
    arXiv 2309.06657, section 3.
    """
    return jnp.maximum(0.0, 1.0 - pairs.beta * pairs.h)


def ipo(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns (h - 1 / (2 beta))^2.

    IPO: Azar et al., arXiv 2310.12036, equation 17, tau = beta.
    """
    return jnp.square(pairs.h - 0.5 / pairs.beta)


def ipo_norm(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns `ipo` of log-ratios that are means over each completion's tokens, as its authors used it (says TRL)."""
    return jnp.square(pairs.per_token().h - 0.5 / pairs.beta)


def exo_pair(pairs: Pairs, *, label_smoothing: float = 1e-3) -> Float[Array, "*pairs"]:
    """Returns KL of (sigma(z), sigma(-z)) from (1 - eps, eps).

    EXO-pref with two completions: Ji et al., arXiv 2402.00856, equation 16.
    """
    z, eps = pairs.beta * pairs.h, label_smoothing
    win = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-eps))
    return win + jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(eps))


def nca_pair(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns -log sigma(beta r_w) - (log sigma(-beta r_w) + log sigma(-beta r_l)) / 2.

    NCA with two completions: Chen et al., arXiv 2402.05369, section 4, with K = 2 and a reward that picks the chosen.
    """
    chosen, rejected = pairs.reward_chosen, pairs.reward_rejected
    noise = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - 0.5 * noise


def bco_pair(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns -log sigma(beta r_w) - log sigma(-beta r_l).

    BCO: Jung et al., arXiv 2404.04656, without its reward shift; `bco_pair_shift` has it.
    """
    return -jax.nn.log_sigmoid(pairs.reward_chosen) - jax.nn.log_sigmoid(-pairs.reward_rejected)


def sppo_hard(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2.

    SPPO: Wu et al., arXiv 2405.00675, equation 4.7 with eta = 1 / beta and win probabilities of 1 and 0.
    """
    return jnp.square(pairs.ratio_chosen - 0.5 / pairs.beta) + jnp.square(pairs.ratio_rejected + 0.5 / pairs.beta)


def apo_zero(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns 1 - sigma(beta r_w) + sigma(beta r_l): the chosen completion up, the rejected down.

    APO-zero: D'Oosterlinck et al., arXiv 2408.06266, equation 7 (plus 1).
    """
    return jax.nn.sigmoid(-pairs.reward_chosen) + jax.nn.sigmoid(pairs.reward_rejected)


def apo_down(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns sigma(beta r_w) + 1 - sigma(z): both completions down, the rejected further.

    APO-down: D'Oosterlinck et al., arXiv 2408.06266, equation 8 (plus 1).
    """
    return jax.nn.sigmoid(pairs.reward_chosen) + jax.nn.sigmoid(-pairs.beta * pairs.h)


def discopop(pairs: Pairs, *, discopop_tau: float = 0.05) -> Float[Array, "*pairs"]:
    """Returns -(1 - m) log sigma(z) + m exp(-z) with m = sigma(z / tau).

    DiscoPOP (log-ratio modulated loss): Lu et al., arXiv 2406.08414, equation 5. m exp(-z) is computed as one exponential:
    bounded for tau <= 1, where its factors are 0 and infinity.
    """
    z = pairs.beta * pairs.h
    modulation = z / discopop_tau
    exponential = jnp.exp(jax.nn.log_sigmoid(modulation) - z)
    return exponential - jax.nn.sigmoid(-modulation) * jax.nn.log_sigmoid(z)
