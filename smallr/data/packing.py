"""Plans which examples go to which row of which step.

A plan is a pure function of (sizes, shape of a step, mixture, seed). Epoch e shuffles the examples by (seed, e) and packs them
into rows under three capacities: tokens, scored positions, examples. A step is a slice of an epoch's rows, so that any
step can be asked for at any time, on any host, and resuming needs only the number of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from smallr.data.batch import Example
from smallr.data.mixing import Mixture

# How many waiting examples a row may choose from. More buys almost no padding and costs planning time.
WINDOW = 64
# Examples packed on trial to choose the shape of rows.
_TRIAL = 8192
# Epoch tables kept in memory: prefetching reads across the end of an epoch, evaluation never leaves epoch 0.
_TABLES_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Holds lengths of every example of a set, int64 [examples] each.

    Attributes:
      prefix: tokens of the shared prefix.
      completion_tokens: tokens of all completions together.
      completions: number of completions.
      scored: scored tokens of all completions together.
    """

    prefix: Int[np.ndarray, "examples"]
    completion_tokens: Int[np.ndarray, "examples"]
    completions: Int[np.ndarray, "examples"]
    scored: Int[np.ndarray, "examples"]

    def __len__(self) -> int:
        return len(self.prefix)

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Sizes:
        """Measures examples one by one; they may differ in their number of completions."""
        rows = [
            (
                len(example.prefix),
                sum(len(completion.tokens) for completion in example.completions),
                len(example.completions),
                sum(int(np.count_nonzero(completion.roles)) for completion in example.completions),
            )
            for example in examples
        ]
        return cls(*np.asarray(rows, np.int64).reshape(-1, 4).T)

    @classmethod
    def from_lengths(
        cls,
        prefix: Int[np.ndarray, "examples"],
        completions: Int[np.ndarray, "examples completions"],
        scored: Int[np.ndarray, "examples completions"],
    ) -> Sizes:
        """Adds up the lengths that a tokenised set has kept: of prefixes, of completions (0: there is no such
        completion), and of what is scored in each.
        """
        return cls(
            np.asarray(prefix, np.int64),
            np.sum(completions, axis=1, dtype=np.int64),
            np.count_nonzero(completions, axis=1),
            np.sum(scored, axis=1, dtype=np.int64),
        )

    def tokens(self, share_prompt: bool) -> Int[np.ndarray, "examples"]:
        """Returns tokens that each example takes in a row: its prefix once, or once per completion."""
        return self.prefix * (1 if share_prompt else self.completions) + self.completion_tokens


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Holds capacities of a row: T tokens, N scored positions, P examples of up to S completions each.

    One shape is one compiled program.
    """

    tokens: int
    scored: int
    examples: int
    completions: int = 2

    @classmethod
    def choose(
        cls,
        sizes: Sizes,
        row_length: int,
        *,
        packing: bool = True,
        share_prompt: bool = True,
        drawn: Int[np.ndarray, "drawn"] | None = None,
    ) -> RowShape:
        """Returns the shape for all steps and epochs of a set; a function of the sizes, and of the examples of an epoch.

        Up to 8192 examples, evenly spaced and shuffled, are packed on trial with only the tokens limited.
        N: what 98 % of the trial's rows need, at least the largest example's, rounded up to a multiple of 64 (of 8 for
        T < 1024). So it binds in about one row of fifty, which then holds other examples instead: scored
        positions cost work in every step, whether used or not.
        P: what every trial row needs, rounded up to a multiple of 4: an unused example index costs a few numbers only.
        S: what the example with most completions has.
        Without packing a row holds one example: P = 1, and N is the largest example's, rounded up.

        Args:
          sizes: of all examples.
          row_length: T.
          packing: as the plan has it.
          share_prompt: likewise.
          drawn: examples of an epoch; by default each once.

        Raises:
          ValueError: an example is longer than a row.
        """
        tokens, scored = sizes.tokens(share_prompt), sizes.scored
        multiple = 64 if row_length >= 1024 else 8
        completions = int(sizes.completions.max())
        unlimited = cls(row_length, row_length, row_length, completions)
        unlimited.check(tokens, scored)
        if not packing:
            return cls(row_length, _round_up(int(scored.max()), multiple), 1, completions)
        drawn = np.arange(len(sizes)) if drawn is None else drawn
        trial = drawn[_shuffled(len(drawn), 0, 0)][:: -(-len(drawn) // _TRIAL)]
        order, starts = pack(tokens[trial], scored[trial], unlimited)
        per_row = np.add.reduceat(scored[trial][order], starts[:-1])
        wanted = int(np.quantile(per_row, 0.98, method="higher"))
        return cls(
            tokens=row_length,
            scored=_round_up(max(int(scored.max()), wanted), multiple),
            examples=_round_up(int(np.diff(starts).max()), 4),
            completions=completions,
        )

    def holds(self, sizes: Sizes, share_prompt: bool = True) -> bool:
        """Returns whether each example fits in a row of its own."""
        sizes_and_limits = (
            (sizes.tokens(share_prompt), self.tokens),
            (sizes.scored, self.scored),
            (sizes.completions, self.completions),
        )
        return all(size.max() <= limit for size, limit in sizes_and_limits)

    def check(self, tokens: Int[np.ndarray, "examples"], scored: Int[np.ndarray, "examples"]) -> None:
        """Raises ValueError where an example does not fit in a row of its own."""
        if self.examples < 1:
            raise ValueError(f"a row must have room for at least one example, got {self}")
        for name, size, limit in (("tokens", tokens, self.tokens), ("scored tokens", scored, self.scored)):
            if size.max() > limit:
                worst, count = int(size.argmax()), int((size > limit).sum())
                raise ValueError(
                    f"{count} examples do not fit in a row: example {worst} has {size[worst]} {name}, "
                    f"a row holds {limit}. Drop them before planning or make the rows longer."
                )


@dataclasses.dataclass(frozen=True)
class EpochStats:
    """Counts of one epoch. `rows` are those that hold examples; shares are of everything the steps compute on.

    Attributes:
      padding: share of tokens that are padding, empty rows of the last step included.
      saved: share of tokens that prompt sharing saved, of those that the same examples take without it.
      scored: share of real tokens that are scored.
      scored_used: share of scored positions in use.
    """

    steps: int
    rows: int
    examples: int
    tokens: int
    padding: float
    saved: float
    scored: float
    scored_used: float


@dataclasses.dataclass(frozen=True)
class _Table:
    """Holds the rows of one epoch: row r holds examples `order[starts[r]:starts[r + 1]]`."""

    order: Int[np.ndarray, "examples"]
    starts: Int[np.ndarray, "rows+1"]

    @property
    def rows(self) -> int:
        return len(self.starts) - 1


class PackingPlan:
    """Plans the rows of every step, for as many epochs as are asked for.

    The number of steps of a packed epoch depends on its shuffle, so finding step n plans the epochs before it once
    (about two seconds for a million examples each); after that a step is a slice. Safe to share between threads.

    Args:
      sizes: lengths of the examples.
      rows_per_step: rows of a step, over all hosts. The last step of an epoch is filled up with empty rows.
      row_length: tokens of a row, T.
      seed: of the shuffles, >= 0.
      shuffle: False keeps the order of the set in every epoch (evaluation).
      packing: False puts one example in each row.
      share_prompt: whether the prefix of an example is stored once or once per completion.
      window: how many waiting examples a row may choose from.
      shape: the capacities, when they are to be those of another plan; default `RowShape.choose`.
      mixture: which examples an epoch has; None: each once.

    Raises:
      ValueError: no examples, a size that is not positive, or an example that no row can hold.
    """

    def __init__(
        self,
        sizes: Sizes,
        rows_per_step: int,
        row_length: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        packing: bool = True,
        share_prompt: bool = True,
        window: int = WINDOW,
        shape: RowShape | None = None,
        mixture: Mixture | None = None,
    ):
        if not len(sizes):
            raise ValueError("no examples to plan: the data set is empty, or every row of it was dropped")
        for name, value in (("rows_per_step", rows_per_step), ("row_length", row_length), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if seed < 0:
            raise ValueError(f"the data seed must not be negative, got {seed}")
        self.sizes = sizes
        self.rows_per_step = rows_per_step
        self.seed, self.shuffle = seed, shuffle
        self.packing, self.share_prompt, self.window = packing, share_prompt, window
        self.mixture = mixture
        drawn = None if mixture is None else mixture.epoch(seed, 0)
        self.shape = shape or RowShape.choose(
            sizes, row_length, packing=packing, share_prompt=share_prompt, drawn=drawn
        )
        self._tokens = sizes.tokens(share_prompt)
        self.shape.check(self._tokens, sizes.scored)
        self._tables: dict[int, _Table] = {}
        self._ends: list[int] = []  # steps up to the end of each epoch planned so far
        self._lock = threading.Lock()

    def step(self, n: int) -> list[list[int]]:
        """Returns rows of step n, counted over all epochs: `rows_per_step` lists of example indices, some perhaps empty."""
        if n < 0:
            raise ValueError(f"steps count from 0, got {n}")
        with self._lock:
            while not self._ends or self._ends[-1] <= n:
                self._plan_next()
            epoch = bisect_right(self._ends, n)
            table = self._table(epoch)
        first = (n - (self._ends[epoch - 1] if epoch else 0)) * self.rows_per_step
        bounds = table.starts[first : first + self.rows_per_step + 1].tolist()
        rows = [table.order[a:b].tolist() for a, b in itertools.pairwise(bounds)]
        return rows + [[] for _ in range(self.rows_per_step - len(rows))]

    def num_steps(self, epochs: int) -> int:
        """Steps of the first `epochs` epochs."""
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        with self._lock:
            while len(self._ends) < epochs:
                self._plan_next()
            return self._ends[epochs - 1]

    def epoch_of(self, n: int) -> int:
        """Returns the epoch that step n belongs to."""
        self.step(n)
        return bisect_right(self._ends, n)

    @functools.cached_property
    def once(self) -> PackingPlan:
        """The plan of the same rows in which an epoch has each example once; this one, unless it has a mixture."""
        if self.mixture is None:
            return self
        return PackingPlan(
            self.sizes,
            self.rows_per_step,
            self.shape.tokens,
            seed=self.seed,
            shuffle=self.shuffle,
            packing=self.packing,
            share_prompt=self.share_prompt,
            window=self.window,
            shape=self.shape,
        )

    def drawn(self, epoch: int = 0) -> Int[np.ndarray, "examples"]:
        """Returns how often an epoch has each example."""
        with self._lock:
            return np.bincount(self._table(epoch).order, minlength=len(self.sizes))

    def stats(self, epoch: int = 0) -> EpochStats:
        """Counts of an epoch, for the start-up report."""
        with self._lock:
            rows = self._table(epoch).rows
        drawn = self.drawn(epoch)
        steps = -(-rows // self.rows_per_step)
        tokens, scored = int((drawn * self._tokens).sum()), int((drawn * self.sizes.scored).sum())
        return EpochStats(
            steps=steps,
            rows=rows,
            examples=int(drawn.sum()),
            tokens=tokens,
            padding=1 - tokens / (steps * self.rows_per_step * self.shape.tokens),
            saved=1 - tokens / int((drawn * self.sizes.tokens(share_prompt=False)).sum()),
            scored=scored / tokens,
            scored_used=scored / (steps * self.rows_per_step * self.shape.scored),
        )

    def _plan_next(self) -> None:
        rows = self._table(len(self._ends)).rows
        self._ends.append((self._ends[-1] if self._ends else 0) - (-rows // self.rows_per_step))

    def _table(self, epoch: int) -> _Table:
        key = epoch if self.shuffle else 0
        if key not in self._tables:
            self._tables[key] = self._build(key)
            while len(self._tables) > _TABLES_KEPT:
                del self._tables[next(iter(self._tables))]
        return self._tables[key]

    def _build(self, epoch: int) -> _Table:
        order = np.arange(len(self.sizes)) if self.mixture is None else self.mixture.epoch(self.seed, epoch)
        if self.shuffle:
            order = order[_shuffled(len(order), self.seed, epoch)]
        if not self.packing:
            return _Table(order, np.arange(len(order) + 1))
        positions, starts = pack(self._tokens[order], self.sizes.scored[order], self.shape, self.window)
        return _Table(order[positions], starts)


def pack(
    tokens: Int[np.ndarray, "examples"], scored: Int[np.ndarray, "examples"], shape: RowShape, window: int = WINDOW
) -> tuple[Int[np.ndarray, "examples"], Int[np.ndarray, "rows+1"]]:
    """Packs examples into rows, each row choosing from the `window` examples that have waited longest.

    A row always takes the example that has waited longest, so none waits more than `window` rows.

    Returns:
      positions: indices into `tokens`, row after row.
      starts: where each row starts in `positions`, and the end of the last.

    Raises:
      ValueError: an example does not fit in a row of its own.
    """
    shape.check(tokens, scored)
    sizes, needed = tokens.tolist(), scored.tolist()
    positions: list[int] = []
    starts = [0]
    waiting = list(range(min(window, len(sizes))))
    arrived = len(waiting)
    while waiting:
        chosen = _fill(waiting, sizes, shape.tokens)
        if len(chosen) > shape.examples or sum(needed[waiting[i]] for i in chosen) > shape.scored:
            chosen = _first_fit(waiting, sizes, needed, shape)
        positions.extend(waiting[i] for i in chosen)
        starts.append(len(positions))
        for i in reversed(chosen):
            del waiting[i]
        more = min(arrived + len(chosen), len(sizes))
        waiting.extend(range(arrived, more))
        arrived = more
    return np.asarray(positions, np.int64), np.asarray(starts, np.int64)


def _fill(waiting: Sequence[int], sizes: Sequence[int], capacity: int) -> list[int]:
    """Returns indices into `waiting` whose sizes fill the row best, the first always among them, ascending.

    Subset sum over a set of bits: bit s of `reach` says that some choice of the candidates looked at so far takes s
    tokens. Looking stops at the first choice that leaves less than 1/128 of the row empty, so the oldest go first.
    """
    full, mask = 1 << (capacity - capacity // 128), (1 << (capacity + 1)) - 1
    room = capacity - sizes[waiting[0]]
    reach = 1 << sizes[waiting[0]]
    looked: list[tuple[int, int]] = []  # (candidate, what was reachable without it)
    for i, position in enumerate(waiting):
        size = sizes[position]
        if size > room or i == 0:
            continue
        if reach >= full:
            break
        looked.append((i, reach))
        reach |= (reach << size) & mask
    total = reach.bit_length() - 1
    chosen = []
    for i, before in reversed(looked):
        if not before >> total & 1:
            chosen.append(i)
            total -= sizes[waiting[i]]
    chosen.append(0)
    return chosen[::-1]


def _first_fit(waiting: Sequence[int], sizes: Sequence[int], scored: Sequence[int], shape: RowShape) -> list[int]:
    """Chooses as `_fill` does, under all three capacities: every waiting example that still fits, oldest first."""
    room, free, chosen = shape.tokens, shape.scored, []
    for i, position in enumerate(waiting):
        if sizes[position] <= room and scored[position] <= free and len(chosen) < shape.examples:
            chosen.append(i)
            room -= sizes[position]
            free -= scored[position]
    return chosen


def _shuffled(count: int, seed: int, epoch: int) -> Int[np.ndarray, "examples"]:
    # Raw bits of a counter-based generator: the one thing that numpy promises never to change.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable")


def _round_up(value: int, multiple: int) -> int:
    return max(1, -(-value // multiple)) * multiple


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """Holds what the start-up report says about the data: the shape of a step, the first epoch, and what was dropped."""

    rows_per_step: int
    shape: RowShape
    epoch: EpochStats
    longest: int
    dropped: Mapping[str, int]

    def items(self) -> Iterator[tuple[str, int | float]]:
        """Returns flat (name, number) pairs, for logs."""
        yield from {"rows_per_step": self.rows_per_step, "longest_example": self.longest}.items()
        yield from ((f"row_{name}", value) for name, value in dataclasses.asdict(self.shape).items())
        yield from dataclasses.asdict(self.epoch).items()
        yield from ((f"dropped/{reason}", count) for reason, count in self.dropped.items())


def describe(plan: PackingPlan, dropped: Mapping[str, int] | None = None) -> PlanReport:
    """Returns the numbers of a plan; `dropped` counts rows by the reason why they are not in it."""
    return PlanReport(
        rows_per_step=plan.rows_per_step,
        shape=plan.shape,
        epoch=plan.stats(0),
        longest=int(plan.sizes.tokens(plan.share_prompt).max()),
        dropped=dict(dropped or {}),
    )
