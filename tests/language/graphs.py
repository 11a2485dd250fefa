"""Walks at random over a graph as texts: the task of which the shortest paths are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

NODES = "abcdefghij"  # the first is the goal
LONGEST = 30  # steps of a walk that is logged


@dataclasses.dataclass(frozen=True)
class Graph:
    """A directed graph in which the goal is reached from everywhere."""

    joined: Bool[np.ndarray, "nodes nodes"]

    @classmethod
    def drawn(cls, seed: int) -> Graph:
        """A circle and some edges more."""
        rng, nodes = np.random.default_rng(seed), len(NODES)
        joined = rng.random((nodes, nodes)) < 0.2
        joined[np.arange(nodes), (np.arange(nodes) + 1) % nodes] = True
        np.fill_diagonal(joined, False)
        return cls(joined)

    def distances(self) -> Float[np.ndarray, "starts"]:
        """The number of steps from each node but the goal to the goal."""
        steps = np.where(np.arange(len(NODES)) == 0, 0.0, np.inf)
        for _ in NODES:
            steps = np.minimum(steps, 1 + np.where(self.joined, steps[None], np.inf).min(axis=1))
        return steps[1:]

    def walks(self, count: int, seed: int) -> list[dict]:
        """Rows of walks to the goal: the start, the nodes behind it, and -1 as the reward of each step."""
        rng, rows = np.random.default_rng(seed), []
        while len(rows) < count:
            node = start = int(rng.integers(1, len(NODES)))
            text = ""
            while node and len(text) <= LONGEST:
                node = int(rng.choice(np.flatnonzero(self.joined[node])))
                text += NODES[node]
            if not node:  # the end token has no reward
                reward = [[-1.0] * len(text) + [0.0]]
                rows.append({"prompt": NODES[start], "completions": [text], "reward": reward})
        return rows

    def lengths(self, paths: Sequence[str]) -> Float[np.ndarray, "starts"]:
        """The number of steps in which texts reach the goal, each from its start; infinity where they do not."""
        found = np.full(len(paths), np.inf)
        for index, path in enumerate(paths):
            node = index + 1
            for count, letter in enumerate(path, 1):
                following = NODES.find(letter)
                if following < 0 or not self.joined[node, following]:
                    break
                node = following
                if not node:
                    found[index] = count
                    break
        return found
