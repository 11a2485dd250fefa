"""Mixes several data sets: how often an epoch has the examples of each, and one set of tokens made of them.

Each source is read as an endless row of passes over its examples, every pass in an order drawn by the seed. An epoch takes
the next `weight` times as many examples as the source has. So with weight 2 each is there twice; with weight 0.5 one half
in one epoch and the other half in the next; and whatever the weights and the number of epochs are, no example of a source
is taken more than once more often than another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from smallr.core.cache import cache_dir, cached_folder
from smallr.data.drops import DropReport
from smallr.data.token_set import TokenSet, merge


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How often an epoch has the examples of each source.

    Attributes:
      counts: examples of each source; those of a source stand together, in the order of the sources.
      weights: of each source; an epoch takes at least one example of each.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]

    def epoch(self, seed: int, epoch: int) -> Int[np.ndarray, "drawn"]:
        """Returns the examples of an epoch, ascending; one that is drawn twice stands there twice."""
        drawn, start = [], 0
        for source, (count, weight) in enumerate(zip(self.counts, self.weights, strict=True)):
            first, stop = (round(number * weight * count) for number in (epoch, epoch + 1))
            for number in range(first // count, -(-stop // count)):
                passed = number * count
                places = slice(max(first - passed, 0), min(stop - passed, count))
                whole = places == slice(0, count)
                order = np.arange(count) if whole else _order(count, seed, number, source)
                drawn.append(start + order[places])
            start += count
        return np.sort(np.concatenate(drawn))


def _order(count: int, seed: int, number: int, source: int) -> Int[np.ndarray, "examples"]:
    """Returns the order of one pass over a source."""
    # The counter keeps these numbers apart from those that shuffle epochs.
    bits = np.random.Philox(key=[seed, number], counter=[0, 0, 0, source + 1]).random_raw(count)
    return np.argsort(bits, kind="stable")


def merge_sets(sets: Sequence[TokenSet], cache: Path | None = None) -> TokenSet:
    """Makes one set of several of one kind, in their order; the result is kept on disk.

    Args:
      sets: at least one.
      cache: folder of results, by default `cache_dir("tokens")`.
    """
    if len(sets) == 1:
        return sets[0]
    reports = [each.report for each in sets]
    identity = ["merged", [each.fingerprint for each in sets], [report.to_dict() for report in reports]]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def build(target: Path) -> None:
        merge(target, [each.folder for each in sets], _together(reports), reports)

    return TokenSet(cached_folder((cache or cache_dir("tokens")) / key[:32], build))


def _together(reports: Sequence[DropReport]) -> DropReport:
    """Adds reports up; reasons name the source, whose rows they count."""
    total = DropReport(" + ".join(report.source for report in reports), reports[0].max_length)
    for report in reports:
        named = {
            field: {f"{reason} ({report.source})": tally for reason, tally in getattr(report, field).items()}
            for field in ("dropped", "notes")
        }
        total.merge(dataclasses.replace(report, **named))
    return total


def shares(
    source: Int[np.ndarray, "examples"], drawn: Int[np.ndarray, "examples"], tokens: Int[np.ndarray, "examples"]
) -> Float[np.ndarray, "sources 2"]:
    """Returns the share of each source in the examples and in the tokens of an epoch.

    Args:
      source: of each example.
      drawn: how often the epoch has each example.
      tokens: of each example.
    """
    totals = [np.bincount(source, weights=drawn * weight) for weight in (np.ones_like(tokens), tokens)]
    return np.stack([total / total.sum() for total in totals], axis=1)
