"""Decides what the backward pass keeps of the forward pass, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# What remat="dots" keeps: the products of a layer, in the compute dtype, and the attention's statistics.
SAVED_NAMES = ("projection", "attention_out", "attention_lse")


def rematerialised(layer: Callable, remat: str, scanned: bool = True) -> Callable:
    """Returns a layer by the rule `remat`: none | dots | full (keeps only the residual stream)."""
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES) if remat == "dots" else None
    # Inside a scan XLA can not merge the second computation with the first, so the costly guard is not needed.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not scanned)


def keep(x: Float[Array, "*shape"], name: str) -> Float[Array, "*shape"]:
    """Returns x itself, marked as one of `SAVED_NAMES`.

    A scan stacks what its layers keep. XLA's CPU backend knows no update of a slice in bfloat16: it would widen the
    whole stack to float32 and narrow it again, once a layer. So bfloat16 is kept as the 16-bit integers of its bits.
    """
    return _keep(x, name)


def keep_residual(x: Float[Array, "*shape"], name: str) -> Float[Array, "*shape"]:
    """Applies `keep` inside the forward rule of a custom VJP, where nothing is differentiated."""
    if x.dtype != jnp.bfloat16:
        return checkpoint_name(x, name)
    bits = checkpoint_name(lax.bitcast_convert_type(x, jnp.uint16), name)
    return lax.bitcast_convert_type(bits, x.dtype)


# Bits have no derivative, so the identity's is given. A rule that is not differentiated stays a closed call, in which
# the policy does not see the name: hence the two functions.
_keep = jax.custom_jvp(keep_residual, nondiff_argnums=(1,))


@_keep.defjvp
def _keep_jvp(name, primals, tangents):
    return keep_residual(*primals, name), *tangents
