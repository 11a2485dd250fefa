"""Defines losses as pure functions of per-token log-probs and columns; none of them sees logits.

Names are imported when they are asked for: configs read what losses declare, and shall not wait for JAX.
"""

import importlib
from typing import Any

_HOME = {
    **dict.fromkeys(("TokenScores", "completion_sums", "head_scores", "token_logps", "token_scores"), "logprobs"),
    **dict.fromkeys(("rationale_loss", "role_nll"), "rationale"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
