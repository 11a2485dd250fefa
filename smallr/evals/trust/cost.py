"""Counts what an answer costs: tokens, seconds, bytes of the model, and money at given prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallr.core.comparison import mean
from smallr.evals.records import Record, question_means
from smallr.language.base import Prices

# Of a figure: its title and how it is written.
COLUMNS = {
    "prompt_tokens": ("prompt tokens", "{:.1f}"),
    "completion_tokens": ("tokens", "{:.1f}"),
    "seconds": ("seconds", "{:.3g}"),
    "model_bytes": ("MiB of the model", "{:.1f}"),
    "money": ("money of 1,000 answers", "{:.4g}"),
}
_MIB, _MILLION, _HOUR = 2**20, 1e6, 3600


def cost(
    records: Sequence[Record],
    seconds: Sequence[float | None],
    model_bytes: int | None,
    prices: Prices,
    per_hour: float,
) -> dict[str, Any]:
    """Returns what an answer costs on average, as JSON holds it; None for what is not known.

    Args:
      records: of an evaluation, one a sample.
      seconds: that were waited for each question; None for what came from a cache.
      model_bytes: of the weights while the model answers; None or 0 for a model behind a server.
      prices: of a million tokens.
      per_hour: price of an hour of the machine that answers, for a model that has no price of a token.

    Returns:
      `prompt_tokens` and `completion_tokens` with the half of their 95 % interval over questions, `seconds`,
      `model_bytes`, and `money` of 1,000 answers: tokens at their prices and seconds at that of an hour; None where no
      price is given.
    """
    given = [record for record in records if record["output"] is not None]
    waited = [value for value in seconds if value is not None]
    samples = max((record["sample"] for record in given), default=0) + 1
    found: dict[str, Any] = {
        "prompt_tokens": _mean(question_means(given, "prompt_tokens")),
        "completion_tokens": _mean(question_means(given, "tokens")),
        "seconds": float(np.mean(waited)) / samples if waited else None,
        "model_bytes": model_bytes or None,
    }
    return found | {"money": _money(found, prices, per_hour), "prices": [prices.prompt, prices.completion, per_hour]}


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    found = mean(values)
    return {
        "value": None if np.isnan(found.value) else found.value,
        "half": None if np.isnan(found.half) else found.half,
    }


def _money(found: Mapping[str, Any], prices: Prices, per_hour: float) -> float | None:
    """Returns the price of 1,000 answers; None without a price, or where what has one is not known."""
    parts = [
        (found["prompt_tokens"]["value"], prices.prompt / _MILLION),
        (found["completion_tokens"]["value"], prices.completion / _MILLION),
        (found["seconds"], per_hour / _HOUR),
    ]
    used = [(amount, price) for amount, price in parts if price]
    if not used or any(amount is None for amount, _ in used):
        return None
    return 1000 * sum(amount * price for amount, price in used)


def cells(figures: Mapping[str, Any]) -> list[str]:
    """Returns a line of the table under COLUMNS; a dash for what is not known."""
    line = []
    for name, (_, form) in COLUMNS.items():
        value = figures[name]
        half = value["half"] if isinstance(value, Mapping) else None
        value = value["value"] if isinstance(value, Mapping) else value
        if value is None:
            line.append("–")
            continue
        text = form.format(value / _MIB if name == "model_bytes" else value)
        line.append(text if half is None else f"{text} ± {form.format(half)}")
    return line


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns the figures in words."""
    listed = ", ".join(
        f"{title} {cell}" for (title, _), cell in zip(COLUMNS.values(), cells(figures), strict=True) if cell != "–"
    )
    return [f"cost of an answer: {listed}"]


def ratios(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Returns how many times the costs of one model another's are, under COLUMNS; a dash for what one of them lacks."""
    found = []
    for name in COLUMNS:
        values = [each[name]["value"] if isinstance(each[name], Mapping) else each[name] for each in (before, after)]
        found.append("–" if None in values or not values[0] else f"× {values[1] / values[0]:.3g}")
    return found
