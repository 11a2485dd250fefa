"""Estimates what a policy would earn from what other policies have logged, with intervals over groups.

A logged trajectory has, for each step t (a token, a sub-question, or one step for a whole reply), its reward r_t and the
ratio rho_t = pi(a_t | s_t) / mu(a_t | s_t) of the policy in question to the one that wrote the log. With
w_t = rho_0 ... rho_t and gamma the discount of a step:

    importance sampling           mean of sum_t gamma^t w_t r_t
    weighted importance sampling  sum over t of gamma^t (sum_n w_nt r_nt / sum_n w_nt)
    direct method                 mean of V(s_0)
    doubly robust                 mean of v_0, where v_t = V(s_t) + rho_t (r_t + gamma v_{t+1} - Q(s_t, a_t)), v_T = 0

V(s) is the mean of Q(s, a) under pi. Importance sampling is unbiased if the ratios are right; the weighted form is biased
but consistent, of bounded variance where a weight is huge (Precup et al., 2000). The doubly robust estimate is unbiased if
the ratios *or* Q and V are right (Jiang and Li, arXiv 1511.03722).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from smallr.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Logged:
    """Holds logged trajectories, one a row, padded at their ends.

    Attributes:
      reward: r_t.
      ratio: rho_t, at least 0. An action that the policy in question never takes has 0.
      used: which steps exist; a trajectory's steps come first.
      q: Q(s_t, a_t), for the doubly robust estimate.
      value: V(s_t), for the doubly robust estimate and the direct method.
      gamma: discount of a step.
    """

    reward: Float[np.ndarray, "N T"]
    ratio: Float[np.ndarray, "N T"]
    used: Bool[np.ndarray, "N T"]
    q: Float[np.ndarray, "N T"] | None = None
    value: Float[np.ndarray, "N T"] | None = None
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.reward.ndim != 2 or not self.reward.size:
            raise UserError(f"off-policy evaluation: rewards of shape {self.reward.shape}, not [trajectories, steps]")
        for name in ("ratio", "used", "q", "value"):
            array = getattr(self, name)
            if array is not None and array.shape != self.reward.shape:
                raise UserError(
                    f"off-policy evaluation: {name} has shape {array.shape}, the rewards {self.reward.shape}; "
                    "each step needs one of both"
                )
        if not self.used[:, 0].all() or (self.used[:, 1:] & ~self.used[:, :-1]).any():
            row = int(np.argmax(~self.used[:, 0] | (self.used[:, 1:] & ~self.used[:, :-1]).any(axis=1)))
            raise UserError(f"off-policy evaluation: trajectory {row} has no step, or a gap between its steps")
        if not (np.isfinite(self.ratio[self.used]) & (self.ratio[self.used] >= 0)).all():
            row = int(np.argmax((self.used & ~(np.isfinite(self.ratio) & (self.ratio >= 0))).any(axis=1)))
            raise UserError(f"off-policy evaluation: trajectory {row} has a ratio that is no finite number >= 0")
        if not 0 <= self.gamma <= 1:
            raise UserError(f"off-policy evaluation: gamma {self.gamma} is not in [0, 1]")

    @classmethod
    def of_bandit(
        cls,
        reward: Float[np.ndarray, " N"],
        ratio: Float[np.ndarray, " N"],
        q: Float[np.ndarray, " N"] | None = None,
        value: Float[np.ndarray, " N"] | None = None,
    ) -> Logged:
        """Makes trajectories of one step: a whole reply is the action."""
        columns = [None if array is None else np.asarray(array, float)[:, None] for array in (reward, ratio, q, value)]
        return cls(columns[0], columns[1], np.ones((len(reward), 1), bool), columns[2], columns[3])

    def take(self, rows: Int[np.ndarray, " M"]) -> Logged:
        """Returns some of the trajectories, some perhaps more than once."""
        arrays = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ("reward", "ratio", "used", "q", "value")
        }
        return dataclasses.replace(self, **arrays)


def weights(logged: Logged) -> Float[np.ndarray, "N T"]:
    """Returns w_t, the product of ratios up to each step; behind a trajectory's end it stays as it was there."""
    return np.cumprod(np.where(logged.used, logged.ratio, 1.0), axis=1)


def importance_sampling(logged: Logged) -> float:
    """Returns the per-decision importance sampling estimate."""
    return float(np.mean(np.sum(_discounts(logged) * weights(logged) * _rewards(logged), axis=1)))


def weighted_importance_sampling(logged: Logged) -> float:
    """Returns the per-decision weighted importance sampling estimate; NaN where the weights of a step are all 0."""
    weight = weights(logged)
    total = weight.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weight * _rewards(logged)).sum(axis=0) / total
    return float(np.sum(_discounts(logged) * means))


def direct_method(logged: Logged) -> float:
    """Returns the mean value of the first states."""
    return float(np.mean(_needed(logged, "value")[:, 0]))


def doubly_robust(logged: Logged) -> float:
    """Returns the doubly robust estimate."""
    return float(np.mean(_step_estimates(logged)))


def _step_estimates(logged: Logged) -> Float[np.ndarray, " N"]:
    """Runs v_t = V + rho (r + gamma v_{t+1} - Q) from the end; unused steps leave 0."""
    q, value = _needed(logged, "q"), _needed(logged, "value")
    estimate = np.zeros(len(q))
    for t in range(q.shape[1] - 1, -1, -1):
        step = value[:, t] + logged.ratio[:, t] * (logged.reward[:, t] + logged.gamma * estimate - q[:, t])
        estimate = np.where(logged.used[:, t], step, 0.0)
    return estimate


def weighted_doubly_robust(logged: Logged) -> float:
    """Returns the doubly robust estimate with weights that sum to one in each step (arXiv 1604.00923).

    sum_t gamma^t [ sum_n u_nt (r_nt - Q_nt) + sum_n u_n,t-1 V_nt ], u_nt = w_nt / sum_m w_mt, u_n,-1 = 1 / N. It trades a bias
    that vanishes with the log for variance; NaN where the weights of a step are all 0.
    """
    q, value = (np.where(logged.used, _needed(logged, name), 0.0) for name in ("q", "value"))
    weight = weights(logged)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = weight / weight.sum(axis=0)
    before = np.concatenate([np.full((len(share), 1), 1 / len(share)), share[:, :-1]], axis=1)
    steps = (share * (_rewards(logged) - q) + before * value).sum(axis=0)
    return float(np.sum(_discounts(logged) * steps))


def effective_size(logged: Logged) -> float:
    """Returns (sum w)^2 / sum w^2 of whole trajectories: as many unweighted ones would tell as much."""
    weight = weights(logged)[:, -1]
    square = float(np.sum(weight**2))
    return float(weight.sum()) ** 2 / square if square else 0.0


@dataclasses.dataclass(frozen=True)
class Interval:
    """Holds an estimate and the percentiles of a bootstrap over groups."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " M"]], float],
    groups: Sequence[object],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Resamples whole groups, e.g. the problems that trajectories belong to.

    Args:
      statistic: of rows, given by their numbers; NaN where a sample has none.
      groups: of each row.
      confidence: of the interval.
      resamples: how many.
      seed: of the resampling.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([members[group] for group in rng.integers(0, len(members), len(members))]))
        for _ in range(resamples)
    ]
    edges = (
        (np.nan, np.nan)
        if np.isnan(draws).all()
        else np.nanquantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    )
    return Interval(float(statistic(np.arange(len(index)))), float(edges[0]), float(edges[1]))


def _rewards(logged: Logged) -> Float[np.ndarray, "N T"]:
    return np.where(logged.used, logged.reward, 0.0)


def _discounts(logged: Logged) -> Float[np.ndarray, " T"]:
    return logged.gamma ** np.arange(logged.reward.shape[1])


def _needed(logged: Logged, name: str) -> Float[np.ndarray, "N T"]:
    array = getattr(logged, name)
    if array is None:
        raise UserError(f"off-policy evaluation: this estimate needs {name!r} of each step, and the log has none")
    return array
