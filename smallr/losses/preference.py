"""Pairwise preference losses: functions of summed log-probs, one value a pair.

DPO: Rafailov et al., arXiv 2305.18290, equation 7. CogPO: Cai et al., arXiv 2504.09802: the same loss with
a beta of each pair, looked up from the cognitive gap between its sides. So CogPO is `dpo` with a column.
"""

from __future__ import annotations

import jax
from jaxtyping import Array, Float


def log_ratio_margin(
    chosen: Float[Array, "*pairs"],
    rejected: Float[Array, "*pairs"],
    ref_chosen: Float[Array, "*pairs"],
    ref_rejected: Float[Array, "*pairs"],
) -> Float[Array, "*pairs"]:
    """h = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x) - log ref(y_l|x)], in nats."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo(
    chosen: Float[Array, "*pairs"],
    rejected: Float[Array, "*pairs"],
    ref_chosen: Float[Array, "*pairs"],
    ref_rejected: Float[Array, "*pairs"],
    beta: float | Float[Array, "*pairs"],
    label_smoothing: float = 0.0,
) -> Float[Array, "*pairs"]:
    """-(1 - eps) log sigma(beta h) - eps log sigma(-beta h) for each pair.

    Args:
      chosen: summed log-prob of the chosen completion under the policy, EOS included; float32.
      rejected: likewise of the rejected completion.
      ref_chosen: the chosen completion under the reference.
      ref_rejected: the rejected completion under the reference.
      beta: strength; a scalar (DPO) or one a pair (CogPO). A pair with beta 0 has loss ln 2 and no gradient.
      label_smoothing: eps, the assumed probability that a pair's label is flipped (conservative DPO,
        arXiv 2305.18290 appendix / https://ericmitchell.ai/cdpo.pdf); in [0, 0.5].

    Returns:
      float32 losses, one a pair; ln 2 where policy and reference agree.
    """
    scaled = beta * log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected)
    loss = -jax.nn.log_sigmoid(scaled)
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * jax.nn.log_sigmoid(-scaled)
    return loss
