"""The preference family: each loss a pure function of log-probs, found by name."""

from smallr.losses.preference import pairwise, reference_free, whole_step  # noqa: F401  (they register their losses)
from smallr.losses.preference.divergence import Divergence
from smallr.losses.preference.pairs import Pairs
from smallr.losses.preference.registry import LOSSES, RECIPES, Field, Loss, WeightedLoss, parse
from smallr.losses.preference.unpaired import kl_estimate, kto
from smallr.losses.preference.weighting import beyond_shared_length, likelihood_weight

__all__ = [
    "LOSSES",
    "RECIPES",
    "Divergence",
    "Field",
    "Loss",
    "Pairs",
    "WeightedLoss",
    "beyond_shared_length",
    "kl_estimate",
    "kto",
    "likelihood_weight",
    "parse",
]
