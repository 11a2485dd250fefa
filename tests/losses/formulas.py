"""The losses once more, in float64 numpy, written from the papers' formulas and not from the code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smallr.losses.preference import Pairs


def sig(x):
    return 1 / (1 + np.exp(-x))


def ls(x):
    return np.log(sig(x))


def cross_entropy(z, eps):
    return -(1 - eps) * ls(z) - eps * ls(-z)


def sorted_against(values, others):
    """Each value minus the one of `others` of the same rank."""
    result = np.empty_like(values)
    for rank, index in enumerate(np.argsort(values)):
        result[index] = values[index] - np.sort(others)[rank]
    return result


def formula(name: str, p: Pairs, label_smoothing=0.0, discopop_tau=0.05, simpo_gamma=1.0) -> np.ndarray:
    """One loss a pair; all fields of `p` are float64 [pairs] and no example index is unused."""
    pw, pl, rw, rl, nw, nl, b, _ = p
    a, c = pw - rw, pl - rl
    h, eps = a - c, label_smoothing
    h_norm = a / nw - c / nl
    odds = [np.exp(x) / (1 - np.exp(x)) for x in (pw / nw, pl / nl)]
    win, lose = sig(b * h), sig(-b * h)
    shift = (b * (a + c) / 2).mean()
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "sigmoid": lambda: cross_entropy(b * h, eps),
        "sigmoid_norm": lambda: cross_entropy(b * h_norm, eps),
        "robust": lambda: ((1 - eps) * -ls(b * h) - eps * -ls(-b * h)) / (1 - 2 * eps),
        "hinge": lambda: np.where(b * h < 1, 1 - b * h, 0),
        "ipo": lambda: (h - 1 / (2 * b)) ** 2,
        "ipo_norm": lambda: (h_norm - 1 / (2 * b)) ** 2,
        "exo_pair": lambda: win * np.log(win / (1 - eps)) + lose * np.log(lose / eps),
        "nca_pair": lambda: -ls(b * a) - (ls(-b * a) + ls(-b * c)) / 2,
        "bco_pair": lambda: -ls(b * a) - ls(-b * c),
        "bco_pair_shift": lambda: -ls(b * a - shift) - ls(-(b * c - shift)),
        "sppo_hard": lambda: (a - (1 / b) * (1 - 0.5)) ** 2 + (c - (1 / b) * (0 - 0.5)) ** 2,
        "apo_zero": lambda: 1 - sig(b * a) + sig(b * c),
        "apo_down": lambda: sig(b * a) + 1 - sig(b * h),
        "discopop": lambda: -(1 - sig(b * h / discopop_tau)) * ls(b * h) + sig(b * h / discopop_tau) * np.exp(-b * h),
        "aot": lambda: cross_entropy(b * sorted_against(pw - pl, rw - rl), eps),
        "aot_unpaired": lambda: cross_entropy(b * sorted_against(a, c), eps),
        "simpo": lambda: cross_entropy(b / nw * pw - b / nl * pl - simpo_gamma, eps),
        "cpo_prefer": lambda: cross_entropy(b * (pw - pl), eps),
        "odds_ratio": lambda: -ls(np.log(odds[0] / odds[1])),
        "sft": lambda: -pw / nw,
        "nll": lambda: -pw,
    }
    return formulas[name]()


def random_pairs(count: int = 6, seed: int = 0, scale: float = 8.0) -> Pairs:
    """Pairs in float64 whose log-ratios are moderate, with a beta each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 40, (2, count)).astype(float)
    policy = -lengths * rng.uniform(0.3, 1.5, (2, count))
    reference = np.minimum(policy + rng.normal(0, scale, (2, count)), -0.1)
    beta = np.linspace(0.05, 0.5, count)
    pairs = Pairs(*policy, *reference, *lengths, beta, np.ones(count))
    # Both implementations get the same numbers, so nothing but arithmetic can differ.
    return Pairs(*(np.float32(x).astype(np.float64) for x in pairs))


def gradient(function: Callable[[Pairs], np.ndarray], p: Pairs) -> dict[str, np.ndarray]:
    """d sum(losses) / d chosen and rejected, by central differences in float64."""
    found = {}
    for name in ("chosen", "rejected"):
        values = getattr(p, name)
        found[name] = np.empty_like(values)
        for i in range(len(values)):
            step = np.zeros_like(values)
            step[i] = 1e-5
            up, down = (function(p._replace(**{name: values + sign * step})).sum() for sign in (1, -1))
            found[name][i] = (up - down) / 2e-5
    return found
