"""Assembles batches: the rows of a plan as arrays, read ahead in threads, each process assembling only its own rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import grain
import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float, Int

from smallr.data.batch import ROLE_NONE, Batch, Example
from smallr.data.packing import PackingPlan, RowShape

Columns = Mapping[str, Float[np.ndarray, "examples"]]


def stack_columns(examples: Sequence[Example]) -> dict[str, Float[np.ndarray, "examples"]]:
    """Returns the numbers of all examples as one float32 array per column."""
    names = examples[0].columns if len(examples) else ()
    return {name: np.asarray([example.columns[name] for example in examples], np.float32) for name in names}


def local_rows(sharding: Sharding, count: int) -> Int[np.ndarray, "rows"]:
    """Returns which of a step's rows this process assembles: those that its devices hold, ascending.

    Devices of several processes may hold the same row, where the mesh splits something else than rows among them.
    """
    held = np.zeros(count, bool)
    for (rows,) in sharding.addressable_devices_indices_map((count,)).values():
        held[rows] = True
    return np.flatnonzero(held)


def global_batch(local: Batch, rows: Int[np.ndarray, "rows"], count: int, sharding: Sharding) -> Batch:
    """Makes global arrays of `count` rows from those that this process has assembled (`local_rows`)."""

    def whole(x: np.ndarray) -> jax.Array:
        def block(index: tuple[slice, ...]) -> np.ndarray:
            wanted = np.arange(count)[index[0]]
            return x[np.searchsorted(rows, wanted)][(slice(None), *index[1:])]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, block)

    return jax.tree.map(whole, local)


def assemble(
    rows: Sequence[Sequence[int]],
    examples: Sequence[Example],
    shape: RowShape,
    columns: Columns,
    share_prompt: bool = True,
) -> Batch:
    """Lays examples out in rows.

    With `share_prompt` an example is `[prefix][completion][completion]…`, else `[prefix][completion][prefix][completion]…`;
    both take one example index of the row and give the same log-probs.

    Args:
      rows: example indices of each row; an empty row is padding.
      examples: all examples of the set; the columns of their completions and tokens come with them.
      shape: capacities of a row.
      columns: numbers of all examples, gathered for each example index; `weight` is added.
      share_prompt: see above; as the plan of the rows has it.

    Returns:
      A Batch of int32 and float32 numpy arrays.

    Raises:
      ValueError: a row holds more than its capacities, or a column is named `weight`.
    """
    batch = _padding(len(rows), shape, columns, examples)
    for r, row in enumerate(rows):
        if len(row) > shape.examples:
            raise ValueError(f"a row of {len(row)} examples does not fit in {shape}")
        cursor = _Cursor()
        for p, index in enumerate(row):
            cursor = _write_example(batch, r, p, cursor, examples[index], share_prompt)
            batch.example[r, p] = index
            for name, values in columns.items():
                batch.columns[name][r, p] = values[index]
            batch.columns["weight"][r, p] = 1
    return batch


def _padding(count: int, shape: RowShape, columns: Columns, examples: Sequence[Example]) -> Batch:
    """Makes `count` empty rows."""
    # All completions of a set have the same columns.
    first = examples[0].completions[0]
    if any("weight" in names for names in (columns, first.columns)):
        raise ValueError("column 'weight' is made by the pipeline (1 real, 0 for what is not there); rename yours")

    def zeros(names: Iterable[str], shape: tuple[int, ...], dtype: type = np.float32) -> dict[str, np.ndarray]:
        return {name: np.zeros((count, *shape), dtype) for name in names}

    return Batch(
        **zeros(("tokens", "positions", "horizon"), (shape.tokens,), np.int32),
        **zeros(("logit_position", "target", "completion", "role"), (shape.scored,), np.int32),
        example=np.full((count, shape.examples), -1, np.int32),
        columns=zeros((*columns, "weight"), (shape.examples,)),
        completion_columns=zeros((*first.columns, "weight"), (shape.completions, shape.examples)),
        token_columns=zeros(first.token_columns, (shape.scored,)),
    )


@dataclasses.dataclass(frozen=True)
class _Cursor:
    """Counts how much of a row is written: tokens and scored positions."""

    token: int = 0
    scored: int = 0


def _write_example(batch: Batch, r: int, p: int, cursor: _Cursor, example: Example, share_prompt: bool) -> _Cursor:
    """Writes one example into row r from the cursor on."""
    prefix = len(example.prefix)
    lengths = [len(completion.tokens) for completion in example.completions]
    copies = 1 if share_prompt else len(lengths)
    end = cursor.token + copies * prefix + sum(lengths)
    if end > batch.tokens.shape[1]:
        raise ValueError(f"row {r}: {end} tokens do not fit in {batch.tokens.shape[1]} (source row {example.row})")
    if len(lengths) > (most := batch.completion_columns["weight"].shape[1]):
        raise ValueError(f"row {r}: an example of {len(lengths)} completions, over {most} (source row {example.row})")

    start, token, scored = cursor.token, cursor.token, cursor.scored
    for s, completion in enumerate(example.completions):
        if s == 0 or not share_prompt:
            start, token = token, token + prefix
            batch.tokens[r, start:token] = example.prefix
            batch.positions[r, start:token] = np.arange(prefix)
            batch.horizon[r, start:token] = end if share_prompt else token + lengths[s]
        stop = token + lengths[s]
        batch.tokens[r, token:stop] = completion.tokens
        batch.positions[r, token:stop] = np.arange(prefix, prefix + lengths[s])
        batch.horizon[r, token:stop] = stop
        batch.completion_columns["weight"][r, s, p] = 1
        for name, value in completion.columns.items():
            batch.completion_columns[name][r, s, p] = value

        where = completion.scored
        span = slice(scored, scored + len(where))
        if span.stop > batch.target.shape[1]:
            raise ValueError(f"row {r}: over {batch.target.shape[1]} scored tokens (source row {example.row})")
        # The first token follows the last of the prefix, whatever lies between them in the row.
        batch.logit_position[r, span] = np.where(where == 0, start + prefix - 1, token + where - 1)
        batch.target[r, span] = completion.tokens[where]
        batch.role[r, span] = completion.roles[where]
        batch.completion[r, span] = s * batch.example.shape[1] + p
        for name, values in completion.token_columns.items():
            batch.token_columns[name][r, span] = values
        token, scored = stop, span.stop
    return _Cursor(token, scored)


def values_by_completion(
    values: Float[np.ndarray, "B N"], batch: Batch
) -> Iterator[tuple[int, list[Float[np.ndarray, "scored"]]]]:
    """Yields (example, values of the scored tokens of each of its completions) for all examples of a batch."""
    completion, used, example = (np.asarray(x) for x in (batch.completion, batch.role != ROLE_NONE, batch.example))
    counts = np.asarray(batch.completion_columns["weight"]).sum(axis=1).astype(int)
    per_row = example.shape[1]
    for r, p in zip(*np.nonzero(example >= 0), strict=True):
        members = (used[r] & (completion[r] == s * per_row + p) for s in range(counts[r, p]))
        yield int(example[r, p]), [values[r, member] for member in members]


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Gives grain random access to the batches of steps."""

    plan: PackingPlan
    examples: Sequence[Example]
    columns: Columns
    first: int
    count: int
    rows: Int[np.ndarray, "rows"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Batch:
        step = self.plan.step(self.first + int(i))
        return assemble(
            [step[row] for row in self.rows], self.examples, self.plan.shape, self.columns, self.plan.share_prompt
        )


def batches(
    plan: PackingPlan,
    examples: Sequence[Example],
    columns: Columns,
    start_step: int,
    num_steps: int,
    *,
    rows: Int[np.ndarray, "rows"] | None = None,
    threads: int = 1,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yields the batches of steps `start_step` to `start_step + num_steps - 1`, in order.

    The batch of step n is a function of (plan, n) alone. For one pass over a set in its own order use a plan with
    `shuffle=False` and `num_steps=plan.num_steps(1)`.

    Args:
      plan: of the examples.
      examples: all examples.
      columns: numbers of all examples, see `stack_columns`.
      start_step: the first step, counted over all epochs.
      num_steps: how many steps; at most `sys.maxsize`.
      rows: which of a step's rows are assembled (`local_rows`); all by default.
      threads: that assemble ahead; 0 assembles when asked.
      prefetch: how many batches are held ready.

    Raises:
      ValueError: the plan is of another number of examples, or a column has another length.
    """
    lengths = {"examples": len(examples), **{f"column {name!r}": len(values) for name, values in columns.items()}}
    for name, length in lengths.items():
        if length != len(plan.sizes):
            raise ValueError(f"the plan is of {len(plan.sizes)} examples, but {name} has {length}")
    if num_steps < 1:
        return iter(())
    rows = np.arange(plan.rows_per_step) if rows is None else rows
    source = _Steps(plan, examples, columns, start_step, num_steps, rows)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
