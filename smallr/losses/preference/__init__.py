"""Holds the preference family: each loss is a pure function of log-probs, found by name.

Names are imported when they are asked for: configs read what losses declare, and shall not wait for JAX.
"""

import importlib
from typing import Any

_HOME = {
    **dict.fromkeys(("LOSSES", "RECIPES", "Field", "Loss", "WeightedLoss", "parse", "register_loss"), "registry"),
    **dict.fromkeys(("beyond_shared_length", "likelihood_weight"), "weighting"),
    **dict.fromkeys(("kl_estimate", "kto"), "unpaired"),
    "Divergence": "divergence",
    "Pairs": "pairs",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
