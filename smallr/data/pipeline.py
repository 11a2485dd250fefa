"""Batches: the rows of a plan as arrays, read ahead in threads, each process assembling only its own rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import grain
import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Float, Int

from smallr.data.batch import ROLE_NONE, Batch, Example
from smallr.data.packing import PackingPlan, RowShape

Columns = Mapping[str, Float[np.ndarray, "examples"]]


def stack_columns(examples: Sequence[Example]) -> dict[str, Float[np.ndarray, "examples"]]:
    """The numbers of all examples as one float32 array per column."""
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

    With `share_prompt` an example is `[prefix][chosen][rejected]`, else `[prefix][chosen][prefix][rejected]`; both take
    one place of the row and give the same log-probs.

    Args:
      rows: example indices of each row; an empty row is padding.
      examples: all examples of the set.
      shape: capacities of a row.
      columns: numbers of all examples, gathered for each place; `weight` is added.
      share_prompt: see above; as the plan of the rows has it.

    Returns:
      A Batch of int32 and float32 numpy arrays.

    Raises:
      ValueError: a row holds more than its capacities, or a column is named `weight`.
    """
    if "weight" in columns:
        raise ValueError(
            "column 'weight' is made by the pipeline (1 real, 0 for an unused example index); rename yours"
        )
    count = len(rows)
    batch = Batch(
        **{name: np.zeros((count, shape.tokens), np.int32) for name in ("tokens", "positions", "horizon")},
        **{
            name: np.zeros((count, shape.scored), np.int32)
            for name in ("logit_position", "target", "completion", "role")
        },
        example=np.full((count, shape.examples), -1, np.int32),
        columns={name: np.zeros((count, shape.examples), np.float32) for name in (*columns, "weight")},
    )
    for r, row in enumerate(rows):
        if len(row) > shape.examples:
            raise ValueError(f"a row of {len(row)} examples does not fit in {shape}")
        cursor = _Cursor()
        for place, index in enumerate(row):
            cursor = _write_example(batch, r, place, cursor, examples[index], share_prompt)
            batch.example[r, place] = index
            for name, values in columns.items():
                batch.columns[name][r, place] = values[index]
            batch.columns["weight"][r, place] = 1
    return batch


@dataclasses.dataclass(frozen=True)
class _Cursor:
    """How much of a row is written: tokens and scored positions."""

    token: int = 0
    slot: int = 0


def _write_example(batch: Batch, r: int, place: int, cursor: _Cursor, example: Example, share_prompt: bool) -> _Cursor:
    """Writes one example into row r from the cursor on."""
    prefix = len(example.prefix)
    lengths = [len(completion.tokens) for completion in example.completions]
    copies = 1 if share_prompt else len(lengths)
    end = cursor.token + copies * prefix + sum(lengths)
    if end > batch.tokens.shape[1]:
        raise ValueError(f"row {r}: {end} tokens do not fit in {batch.tokens.shape[1]} (source row {example.row})")

    start, token, slot = cursor.token, cursor.token, cursor.slot
    for side, completion in enumerate(example.completions):
        if side == 0 or not share_prompt:
            start, token = token, token + prefix
            batch.tokens[r, start:token] = example.prefix
            batch.positions[r, start:token] = np.arange(prefix)
            batch.horizon[r, start:token] = end if share_prompt else token + lengths[side]
        stop = token + lengths[side]
        batch.tokens[r, token:stop] = completion.tokens
        batch.positions[r, token:stop] = np.arange(prefix, prefix + lengths[side])
        batch.horizon[r, token:stop] = stop

        (scored,) = np.nonzero(completion.roles != ROLE_NONE)
        slots = slice(slot, slot + len(scored))
        if slots.stop > batch.target.shape[1]:
            raise ValueError(f"row {r}: over {batch.target.shape[1]} scored tokens (source row {example.row})")
        # The first token follows the last of the prefix, whatever lies between them in the row.
        batch.logit_position[r, slots] = np.where(scored == 0, start + prefix - 1, token + scored - 1)
        batch.target[r, slots] = completion.tokens[scored]
        batch.role[r, slots] = completion.roles[scored]
        batch.completion[r, slots] = side * batch.example.shape[1] + place
        token, slot = stop, slots.stop
    return _Cursor(token, slot)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Random access to the batches of steps, for grain."""

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
    """Batches of steps `start_step` to `start_step + num_steps - 1`, in order.

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
