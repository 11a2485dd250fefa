"""Losses as pure functions of per-token log-probs and columns; none of them sees logits."""

from smallr.losses.logprobs import TokenScores, completion_sums, head_scores, token_logps, token_scores
from smallr.losses.rationale import rationale_loss, role_nll

__all__ = ["TokenScores", "completion_sums", "head_scores", "rationale_loss", "role_nll", "token_logps", "token_scores"]
