"""Packs sets of examples for training and evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import datasets
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.sharding import named_sharding
from smallr.data.batch import Batch
from smallr.data.hosts import tokenize_together
from smallr.data.mixing import Mixture, merge_sets, shares
from smallr.data.overlap import shared_examples
from smallr.data.packing import PackingPlan, RowShape, Sizes
from smallr.data.pipeline import batches, global_batch, local_rows
from smallr.data.token_set import TokenSet
from smallr.training.objectives.base import Objective
from smallr.training.options import tokenize_options
from smallr.training.progress import log
from smallr.training.rows import read_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over the data axes."""
    return named_sharding(mesh, ("batch",))


@dataclasses.dataclass(frozen=True)
class Split:
    """Holds examples, their plan, and the columns that batches carry.

    Attributes:
      name: train | eval.
      examples: the tokenised set.
      plan: the packing schedule, which says which examples go to which row of which step.
      columns: float32 [examples] each.
      completion_names: of the completions of an example, as its objective calls them.
      available: rows of the whole split of the source; 0: not known.
      reference: digest of the weights whose log-probs are among the columns; empty if they are of no known weights.
    """

    name: str
    examples: TokenSet  # or any sequence of examples, where nothing but batches is asked for
    plan: PackingPlan
    columns: Mapping[str, Float[np.ndarray, "examples"]]
    completion_names: tuple[str, ...]
    reference: str = ""
    available: int = 0

    def with_columns(self, **columns: Float[np.ndarray, "examples"]) -> Split:
        """Returns the same split with more columns."""
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def static_columns(self) -> dict[str, np.ndarray]:
        """Returns what is known of each example before any model sees it, for summaries."""
        scored = self.examples.num_scored
        lengths = {f"scored_{name}": scored[:, i] for i, name in enumerate(self.completion_names)}
        return {**self.examples.columns, **lengths}

    def batches(self, mesh: Mesh, start: int, count: int) -> Iterator[Batch]:
        """Yields steps `start … start + count - 1` on the devices; each process assembles the rows that its devices hold."""
        return self._batches(self.plan, mesh, start, count)

    def _batches(self, plan: PackingPlan, mesh: Mesh, start: int, count: int) -> Iterator[Batch]:
        sharding, number = batch_sharding(mesh), plan.rows_per_step
        rows = local_rows(sharding, number)
        for batch in batches(plan, self.examples, self.columns, start, count, rows=rows):
            yield global_batch(batch, rows, number, sharding)

    def one_pass(self, mesh: Mesh, start: int = 0, count: int | None = None) -> Iterator[Batch]:
        """Yields every example once: the first epoch, unless it is a mixture; or `count` batches of it from `start` on."""
        once = self.plan.once
        return self._batches(once, mesh, start, once.num_steps(1) - start if count is None else count)

    def layout_digest(self) -> str:
        """Returns the sha256 of which example stands in which row of `one_pass`."""
        plan = self.plan.once
        rows = [row for n in range(plan.num_steps(1)) for row in plan.step(n)]
        total = hashlib.sha256(np.asarray([len(row) for row in rows], "<i8").tobytes())
        total.update(np.asarray([example for row in rows for example in row], "<i8").tobytes())
        return total.hexdigest()

    def examples_per_step(self) -> float:
        """Returns how many examples a step of the first epoch has on average."""
        return self.plan.stats(0).examples / self.plan.num_steps(1)


def load_split(
    config: ConfigDict,
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
    name: str,
    shape: RowShape | None = None,
) -> Split | None:
    """Reads, tokenises and packs `config.data.train` or `config.data.eval`; None if it names no rows. See `pack_split`."""
    found, sets = read_parts(config, name), []
    if not found:
        return None
    for each in found:
        if each.review:
            log(f"{name}: {each.review}")
        options = dataclasses.replace(tokenize_options(config), format=each.part.format)
        sets.append(tokenize_together(each.rows, tokenizer, options, source=each.part.name, numbers=each.numbers))
    examples, available = merge_sets(sets), sum(each.available for each in found)
    for report, each in zip(examples.sources, found, strict=True):
        report.numbers = each.numbers
    weights = tuple(each.part.weight for each in found)
    mixture = None
    if name == "train" and any(weight != 1 for weight in weights):
        mixture = Mixture(tuple(map(len, sets)), weights)
        for part, count in zip((each.part for each in found), mixture.counts, strict=True):
            if part.weight * count < 1:
                raise UserError(
                    f"config.data.train: weight {part.weight:g} takes less than one of the {count} examples of {part.name} "
                    "in an epoch; raise it, or leave the source out"
                )
    return pack_split(config, objective, examples, name, shape, available, mixture)


def make_split(
    config: ConfigDict,
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
    rows: datasets.Dataset,
    name: str,
    source: str,
    shape: RowShape | None = None,
) -> Split:
    """Tokenises and packs rows.

    Args:
      config: of the run.
      tokenizer: of the model.
      objective: says which columns are needed.
      rows: under our column names.
      name: train | eval; only training is shuffled.
      source: where the rows are from, for messages.
      shape: as in `pack_split`.

    Raises:
      UserError: rows that cannot be used; the message names them.
    """
    examples = tokenize_together(rows, tokenizer, tokenize_options(config), source=source)
    return pack_split(config, objective, examples, name, shape, len(rows))


def pack_split(
    config: ConfigDict,
    objective: Objective,
    examples: TokenSet,
    name: str,
    shape: RowShape | None = None,
    available: int = 0,
    mixture: Mixture | None = None,
) -> Split:
    """Plans the packed rows of a tokenised set.

    Args:
      config: of the run.
      objective: says which columns are needed.
      examples: of one source or several.
      name: train | eval; only training is shuffled.
      shape: capacities of a row to use if they suffice, so that two splits share one compiled program.
      available: rows of the whole split of the source.
      mixture: which examples an epoch has; None: each once.

    Raises:
      UserError: examples that the objective cannot use.
    """
    batch = config.batch
    completions = examples.num_scored.shape[1]
    if completions != len(objective.completion_names) and not objective.any_completions:
        raise UserError(
            f"config.data.kind={config.data.kind} gives {completions} completion(s) an example, but objective "
            f"{config.objective.name} is of {', '.join(objective.completion_names)}: set config.data.kind to its own kind"
        )
    sizes = Sizes.from_lengths(examples.prefix_lengths, examples.completion_lengths, examples.num_scored)
    plan = PackingPlan(
        sizes,
        batch.rows,
        batch.row_length,
        seed=config.seed,
        shuffle=name == "train",
        packing=batch.packing,
        share_prompt=batch.get("share_prompt", True),
        window=batch.lookahead,
        shape=row_shape(config, sizes, shape, mixture),
        mixture=mixture,
    )
    split = Split(
        name, examples, plan, objective.columns(examples.columns), objective.completion_names, available=available
    )
    _describe(split)
    return split


def _describe(split: Split) -> None:
    """Logs how the rows of each source were read, and its share of an epoch."""
    if jax.process_index() > 0:
        return
    which, plan, sources = (
        "training rows" if split.name == "train" else "held-out rows",
        split.plan,
        split.examples.sources,
    )
    found = shares(split.examples.source, plan.drawn(0), plan.sizes.tokens(plan.share_prompt))
    for number, (report, (of_examples, of_tokens)) in enumerate(zip(sources, found, strict=True)):
        log(f"{which}, counted from 0 in the whole split: {report}")
        if len(sources) > 1:
            weight = f"weight {plan.mixture.weights[number]:g}: " if plan.mixture else ""
            log(f"  {weight}{of_examples:.1%} of the examples and {of_tokens:.1%} of the tokens of an epoch")


def name_shared(training: Split, heldout: Split | None) -> None:
    """Warns if held-out examples are trained on too, with their number."""
    if heldout is None or jax.process_index() > 0:
        return
    if count := shared_examples(training.examples, heldout.examples):
        log(
            f"{count} of {len(heldout.examples)} held-out examples are in the training data: what is measured on them says "
            "nothing of others; let config.data.train_split and config.data.eval_split not overlap"
        )


def row_shape(config: ConfigDict, sizes: Sizes, kept: RowShape | None, mixture: Mixture | None = None) -> RowShape:
    """Returns the capacities of a row: those of the config, else `kept` if they suffice, else chosen for the sizes.

    Raises:
      UserError: an example has more scored tokens than the config allows a row.
    """
    batch, longest = config.batch, int(sizes.scored.max())
    if batch.scored < 0 or batch.examples < 0:
        raise UserError(
            f"config.batch: scored={batch.scored} and examples={batch.examples} must not be negative; 0: chosen"
        )
    if batch.scored and longest > batch.scored:
        raise UserError(
            f"config.batch.scored={batch.scored}: an example has {longest} scored tokens; raise it, or 0 for a choice by data"
        )
    share_prompt = batch.get("share_prompt", True)
    if kept is not None and kept.holds(sizes, share_prompt):
        return kept
    drawn = None if mixture is None else mixture.epoch(config.seed, 0)
    shape = RowShape.choose(sizes, batch.row_length, packing=batch.packing, share_prompt=share_prompt, drawn=drawn)
    return dataclasses.replace(shape, scored=batch.scored or shape.scored, examples=batch.examples or shape.examples)


def attended_pairs(split: Split) -> float:
    """Counts the visible (query, key) pairs of an epoch's examples, for the count of attention's FLOPs."""
    prefix, completions = (
        split.examples.prefix_lengths.astype(float)[:, None],
        split.examples.completion_lengths.astype(float),
    )
    copies = 1 if split.plan.share_prompt else split.plan.sizes.completions[:, None]
    own = completions * prefix + completions * (completions + 1) / 2
    each = own.sum(axis=1) + (copies * prefix * (prefix + 1) / 2)[:, 0]
    return float((split.plan.drawn(0) * each).sum())
