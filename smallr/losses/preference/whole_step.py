"""Defines losses that compare a pair with the other pairs of its step.

They see all pairs of a step at once: over any number of devices and processes, but not over micro-batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smallr.losses.preference.pairs import Pairs, smoothed


def _partners(values: Float[Array, "*pairs"], others: Float[Array, "*pairs"], weight: Float[Array, "*pairs"]) -> Array:
    """Returns for each value the one of `others` with its rank; ranks count pairs only, unused example indices come last."""

    def flat(x: Array) -> Array:
        return jnp.where(weight > 0, x, jnp.finfo(jnp.float32).max).ravel()

    ranks = jnp.argsort(jnp.argsort(flat(values)))
    # Sorted by position rather than by value, so that the gradient goes through one gather.
    partners = others.ravel()[jnp.argsort(flat(others))][ranks]
    return partners.reshape(values.shape)


def aot(pairs: Pairs, *, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns `sigmoid` of u_(i) - v_(i): u = log pi(y_w|x) - log pi(y_l|x), v the same of the reference, each sorted.

    Paired AOT: Melnyk et al., arXiv 2406.05882, section 3. A pair's loss is reported with its u.
    """
    policy, reference = pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected
    return smoothed(pairs.beta * (policy - _partners(policy, reference, pairs.weight)), label_smoothing)


def aot_unpaired(pairs: Pairs, *, label_smoothing: float = 0.0) -> Float[Array, "*pairs"]:
    """Returns `sigmoid` of u_(i) - v_(i): u the log-ratios of the chosen completions, v of the rejected, each sorted.

    Unpaired AOT: Melnyk et al., arXiv 2406.05882, section 3. A pair's loss is reported with its chosen completion.
    """
    chosen, rejected = pairs.ratio_chosen, pairs.ratio_rejected
    return smoothed(pairs.beta * (chosen - _partners(chosen, rejected, pairs.weight)), label_smoothing)


def bco_pair_shift(pairs: Pairs) -> Float[Array, "*pairs"]:
    """Returns -log sigma(beta r_w - delta) - log sigma(-(beta r_l - delta)), delta the step's mean reward, a constant.

    BCO: Jung et al., arXiv 2404.04656, with its reward shift (E[r_w] + E[r_l]) / 2. The authors estimate the
    shift by a running mean over steps; here it is the mean of the step, so that a step depends on its batch alone.
    """
    chosen, rejected = pairs.reward_chosen, pairs.reward_rejected
    shift = jax.lax.stop_gradient(pairs.mean(0.5 * (chosen + rejected)))
    return -jax.nn.log_sigmoid(chosen - shift) - jax.nn.log_sigmoid(shift - rejected)
