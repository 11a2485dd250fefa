"""Averages values of examples on the host, for log lines and reports.

All functions take a flat array for each value, with one entry for each example, as the step reports them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from smallr.core.errors import UserError
from smallr.data.orders import ORDERS
from smallr.data.rows import GAPS

Values = Mapping[str, Float[np.ndarray, "examples"]]


def preference_summary(values: Values, columns: Values) -> dict[str, float]:
    """Computes rewards, margin, accuracy and KL, overall and for each gap that occurs.

    `columns` has each pair's `gap` (index into GAPS) and the numbers of scored tokens of both completions.

    * reward: beta (log pi - log ref), summed over a completion; mean over the chosen and over the rejected.
    * margin: reward of chosen minus reward of rejected.
    * accuracy: share of pairs whose margin is positive; a tie (a policy that is still the reference) counts half.
    * per_token_accuracy: share of pairs whose chosen completion has the higher mean log-prob of a token under the policy
      alone. Unlike accuracy it is informative before training.
    * kl: mean of log ref - log pi over all completions, in nats a completion. It estimates
      KL(ref || pi) as far as completions are samples of the reference, and may be negative.
    * log_ratio_margin: mean log-ratio of chosen minus that of rejected, in nats: the margin of DPO without beta.
    * length_drift: slope of log pi - log ref over the length of all completions, in nats a token: above 0
      the policy has moved towards longer completions, below 0 towards shorter ones.

    The last three need a reference.
    """
    margin = values["reward_chosen"] - values["reward_rejected"]
    accuracy = np.where(margin == 0, 0.5, margin > 0)
    per_token_accuracy = (
        values["logp_chosen"] / columns["scored_chosen"] > values["logp_rejected"] / columns["scored_rejected"]
    ).astype(float)
    summary = {
        "reward_chosen": float(values["reward_chosen"].mean()),
        "reward_rejected": float(values["reward_rejected"].mean()),
        "margin": float(margin.mean()),
        "accuracy": float(accuracy.mean()),
        "per_token_accuracy": float(per_token_accuracy.mean()),
    }
    if "ratio_chosen" in values:
        ratio = np.concatenate([values["ratio_chosen"], values["ratio_rejected"]])
        length = np.concatenate([columns["scored_chosen"], columns["scored_rejected"]])
        summary["log_ratio_margin"] = float((values["ratio_chosen"] - values["ratio_rejected"]).mean())
        summary |= {"kl": float(-ratio.mean()), "length_drift": _slope(length, ratio)}
    for index, name in enumerate(GAPS):
        members = columns["gap"] == index
        if members.any():
            summary[f"accuracy/{name}"] = float(accuracy[members].mean())
            summary[f"per_token_accuracy/{name}"] = float(per_token_accuracy[members].mean())
            summary[f"margin/{name}"] = float(margin[members].mean())
            summary[f"loss/{name}"] = float(values["loss"][members].mean())
    return summary


def unpaired_summary(values: Values, columns: Values) -> dict[str, float]:
    """Computes rewards of labelled completions, for each of the two classes.

    * margin: mean reward of desirable rows minus that of undesirable ones, where both occur.
    * accuracy: share of (desirable, undesirable) couples in which the desirable row has the higher reward (the area
      under the ROC curve); ties count half.
    * kl: mean of log ref - log pi; kl_estimate: the mean z_0 of KTO; length_drift: as in `preference_summary`.
    """
    good = values["label"] > 0
    rewards = {"chosen": values["reward"][good], "rejected": values["reward"][~good]}
    summary = {f"reward_{name}": float(reward.mean()) for name, reward in rewards.items() if reward.size}
    if len(summary) == 2:
        summary["margin"] = summary["reward_chosen"] - summary["reward_rejected"]
        summary["accuracy"] = _area(values["reward"], good)
    summary["kl"] = float(-values["ratio"].mean())
    summary["kl_estimate"] = float(values["kl_estimate"].mean())
    summary["length_drift"] = _slope(columns["scored_completion"], values["ratio"])
    return summary


def choice_summary(values: Values) -> dict[str, float]:
    """Computes how often the right one of two choices is the more probable.

    * accuracy: share of the rows, a tie counting half; balanced_accuracy: its mean over the two labels, and auc, the
      area under the ROC curve of the logit, where both labels occur.
    * second_share: share of the rows whose second choice is the more probable; second_label_share: share whose label it is.
    """
    logit, is_second = values["logit"], values["label"] > 0
    right = np.where(logit == 0, 0.5, (logit > 0) == is_second)
    summary = {
        "accuracy": float(right.mean()),
        "second_share": float((logit > 0).mean()),
        "second_label_share": float(is_second.mean()),
    }
    if 0 < is_second.mean() < 1:
        summary["balanced_accuracy"] = float((right[is_second].mean() + right[~is_second].mean()) / 2)
        summary["auc"] = _area(logit, is_second)
    return summary


def _area(values: np.ndarray, positive: np.ndarray) -> float:
    """Returns the share of (positive, negative) couples in which the positive has the higher value; ties count half."""
    from scipy import stats  # takes half a second to import, and few runs need it

    above = stats.rankdata(values)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(above / (positive.sum() * (~positive).sum()))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the slope of the least-squares line; 0 where all x are equal."""
    x = x - x.mean(dtype=np.float64)
    spread = np.square(x).sum()
    return float((x * y).sum() / spread) if spread > 0 else 0.0


def likelihood_summary(values: Values) -> dict[str, float]:
    """Computes the NLL of answers and rationales, per example and per token, and the hardest quarter's share of the loss.

    And of all scored tokens together: `token_accuracy`, the share that is the model's most probable token, and `entropy`,
    the mean of the model's entropy in nats.
    """
    loss = np.sort(values["loss"])[::-1]
    total = loss.sum()
    summary = {"hardest_quarter_share": float(loss[: max(1, round(len(loss) / 4))].sum() / total) if total > 0 else 0.0}
    for role in ("answer", "rationale"):
        tokens = values[f"nll_{role}_tokens"].sum()
        if tokens:
            summary[f"nll_{role}"] = float(values[f"nll_{role}"].mean())
            summary[f"nll_{role}_token"] = float(values[f"nll_{role}"].sum() / tokens)
    tokens = (values["nll_answer_tokens"] + values["nll_rationale_tokens"]).sum()
    if tokens and "entropy" in values:
        summary["token_accuracy"] = float(values["correct"].sum() / tokens)
        summary["entropy"] = float(values["entropy"].sum() / tokens)
    return summary


def summary_by_order(values: Values, columns: Values) -> dict[str, float]:
    """Computes `likelihood_summary` for the examples of each order by themselves, where a set has both."""
    summary = {}
    for index, name in enumerate(ORDERS if "order" in columns else ()):
        members = columns["order"] == index
        if members.any():
            part = likelihood_summary({name: value[members] for name, value in values.items()})
            summary |= {f"{key}/{name}": value for key, value in part.items() if key.startswith("nll_")}
    return summary


class RankCorrelation:
    """Computes the Spearman correlation of answer NLL and rationale NLL over the latest `window` examples that have both."""

    def __init__(self, window: int):
        if window < 3:
            raise UserError(f"config.objective.window: {window} examples are too few for a correlation; at least 3")
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, values: Values) -> None:
        """Adds the examples of a step."""
        both = (values["nll_answer_tokens"] > 0) & (values["nll_rationale_tokens"] > 0)
        self._pairs.extend(
            zip(values["nll_answer"][both].tolist(), values["nll_rationale"][both].tolist(), strict=True)
        )

    def value(self) -> float | None:
        """Returns the correlation, or None with fewer than 3 examples or with a constant NLL."""
        if len(self._pairs) < 3:
            return None
        from scipy import stats  # only now, as in _area

        answer, rationale = np.asarray(self._pairs).T
        if np.ptp(answer) == 0 or np.ptp(rationale) == 0:
            return None
        return float(stats.spearmanr(answer, rationale).statistic)
