"""Losses as pure functions of per-token log-probs and columns; none of them sees logits."""

from smallr.losses.logprobs import branch_sums, token_logps
from smallr.losses.preference import dpo, log_ratio_margin
from smallr.losses.rationale import rationale_loss, role_nll

__all__ = ["branch_sums", "dpo", "log_ratio_margin", "rationale_loss", "role_nll", "token_logps"]
