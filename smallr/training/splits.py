"""A set of examples, planned: what training and evaluation read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import datasets
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.data.packing import PackingPlan, RowShape, Sizes
from smallr.data.pipeline import batches, process_rows
from smallr.data.sources import load_rows
from smallr.data.token_set import TokenSet
from smallr.data.tokenize import tokenize
from smallr.training.objective import Objective
from smallr.training.options import tokenize_options
from smallr.training.progress import log
from smallr.training.step import batch_sharding

PrepareRows = Callable[[datasets.Dataset], datasets.Dataset]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples, their plan, and the columns that batches carry.

    Attributes:
      name: train | eval.
      examples: the tokenised set.
      plan: which examples go to which row of which step.
      columns: float32 [examples] each.
      sides: what the completions of an example are called.
    """

    name: str
    examples: TokenSet
    plan: PackingPlan
    columns: Mapping[str, Float[np.ndarray, "examples"]]
    sides: tuple[str, ...]

    def with_columns(self, **columns: Float[np.ndarray, "examples"]) -> Split:
        """The same split with more columns."""
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def facts(self) -> dict[str, np.ndarray]:
        """What is known of each example before any model sees it, for summaries."""
        scored = self.examples.num_scored
        sides = {f"scored_{side}": scored[:, i] for i, side in enumerate(self.sides)}
        return {**self.examples.columns, **sides}

    def batches(self, mesh: Mesh, start: int, count: int) -> Iterator[Batch]:
        """Steps `start … start + count - 1` on the devices; each process assembles its own rows."""
        rows = process_rows(self.plan.rows_per_step, jax.process_index(), jax.process_count())
        sharding = batch_sharding(mesh)
        for batch in batches(self.plan, self.examples, self.columns, start, count, rows=rows):
            yield jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def one_pass(self, mesh: Mesh) -> Iterator[Batch]:
        """Every example once: the first epoch."""
        return self.batches(mesh, 0, self.plan.num_steps(1))


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Whether the batch can be split over the mesh and into micro-batches.

    Raises:
      UserError: it cannot; the message names the fields and the numbers that would do.
    """
    rows, accumulation = config.batch.rows, config.batch.accumulation
    if rows < 1 or accumulation < 1:
        raise UserError(f"config.batch: rows={rows} and accumulation={accumulation} must be at least 1")
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * accumulation):
        unit = parts * accumulation
        raise UserError(
            f"config.batch.rows={rows} cannot be split over data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} devices "
            f"in {accumulation} micro-batch(es): it must be a multiple of {unit}, e.g. {max(unit, rows // unit * unit)} "
            f"or {-(-rows // unit) * unit}"
        )


def load_split(
    config: ConfigDict,
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
    name: str,
    shape: RowShape | None = None,
    prepare_rows: PrepareRows = lambda rows: rows,
) -> Split:
    """Reads, tokenises and plans `config.data.train` or `config.data.eval`.

    Args:
      config: of the run.
      tokenizer: of the model.
      objective: says which columns are needed.
      name: train | eval; only training is shuffled.
      shape: capacities of a row to use if they suffice, so that two splits share one compiled program.
      prepare_rows: what is done with the rows that were read.

    Raises:
      UserError: rows that cannot be read or used; the message names their place.
    """
    data, batch, training = config.data, config.batch, name == "train"
    source = data.train if training else data.eval
    renamed = {ours: theirs for ours, theirs in data.columns.items() if ours != theirs}
    rows = load_rows(source, data.train_split if training else data.eval_split, columns=renamed)
    rows = prepare_rows(rows)
    share_prompt = batch.get("share_prompt", True)
    options = tokenize_options(config)
    examples = tokenize(rows, tokenizer, options, source=source)
    if jax.process_index() == 0 and (examples.report.dropped or examples.report.notes):
        log(str(examples.report))
    sizes = Sizes.from_lengths(examples.prefix_lengths, examples.completion_lengths, examples.num_scored)
    if shape is not None and sizes.scored.max() > shape.scored:
        shape = None
    plan = PackingPlan(
        sizes,
        batch.rows,
        batch.row_length,
        seed=config.seed,
        shuffle=training,
        packing=batch.packing,
        share_prompt=share_prompt,
        window=batch.lookahead,
        shape=shape,
    )
    if examples.num_scored.shape[1] != len(objective.sides):
        raise UserError(
            f"config.data.kind={data.kind} gives {examples.num_scored.shape[1]} completion(s) an example, but objective "
            f"{config.objective.name} is of {', '.join(objective.sides)}: set config.data.kind to its own kind"
        )
    return Split(name, examples, plan, objective.columns(examples.columns), objective.sides)


def attended_pairs(split: Split) -> float:
    """Visible (query, key) pairs of all examples, for the count of attention's FLOPs."""
    prefix, completions = (
        split.examples.prefix_lengths.astype(float)[:, None],
        split.examples.completion_lengths.astype(float),
    )
    copies = 1 if split.plan.share_prompt else completions.shape[1]
    own = completions * prefix + completions * (completions + 1) / 2
    return float(own.sum() + copies * (prefix * (prefix + 1) / 2).sum())
