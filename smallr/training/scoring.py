"""Scores the completions of any rows under a model and writes their log-probs as a data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm import tqdm

from smallr.core.errors import UserError
from smallr.core.files import whole_folder
from smallr.core.locks import output_lock
from smallr.core.sharding import make_mesh
from smallr.data import completion_columns
from smallr.data.batch import Batch, Example
from smallr.data.packing import PackingPlan, RowShape, Sizes
from smallr.data.pipeline import values_by_completion
from smallr.data.sources import load_part
from smallr.data.token_set import TokenSet
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.models.decoder import Decoder
from smallr.models.loading import load_decoder
from smallr.training.forward import score
from smallr.training.opening import open_trained
from smallr.training.progress import log
from smallr.training.splits import Split, batch_sharding

# What the scored completions of a kind are called; None: any number of them, in one list.
NAMES = {**completion_columns.NAMES, "rationale": ("completion",)}


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Says what is scored and how; `kind`, `format`, `chat`, `order` are as in a training config.

    Attributes:
      model: any name that training takes.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own; empty: none.
      data: a source of rows, and `split` of it.
      columns: our name -> the source's name.
      rows: packed rows a step.
      row_length: tokens of a row; a longer example is not scored.
      dtype: of the computation.
    """

    model: str
    data: str
    split: str = "train"
    kind: str = "preference"
    format: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat: bool = True
    order: str = "answer_first"
    rows: int = 8
    row_length: int = 1024
    dtype: str = "float32"
    chunk: int = 256
    tokenizer: str = ""


def write_scores(options: ScoreOptions, out: Path) -> datasets.Dataset:
    """Scores rows and writes them to the folder `out`, for `load_from_disk`; whole or not at all.

    Raises:
      UserError: `out` exists, another process writes it, or the options or rows cannot be used.
    """
    with output_lock(out):
        if out.exists():
            raise UserError(f"{out} exists: remove it, or write elsewhere with --out")
        scored = score_rows(options)
        with whole_folder(out) as folder:
            scored.save_to_disk(folder)
    return scored


def score_rows(options: ScoreOptions) -> datasets.Dataset:
    """Scores rows, and adds two columns for each completion: `ref_<name>`, the summed log-prob of its scored tokens, and
    `token_logps_<name>`, the list of theirs. Rows with any number of completions get `ref_completions` and
    `token_logps_completions`, lists of these in the order of the completions. All are null where a row was not scored
    (too long, unusable).

    Raises:
      UserError: an unknown kind, rows or a model that cannot be used.
    """
    if options.kind not in NAMES:
        raise UserError(f"kind {options.kind!r} must be one of: {', '.join(NAMES)}")
    if jax.process_count() > 1:
        raise UserError("scoring runs in one process; score parts of a split (--split=train[:50%]) on several machines")
    source = open_trained(options.model, options.tokenizer)
    renamed = {ours: theirs for ours, theirs in options.columns.items() if ours != theirs}
    rows, _, numbers = load_part(options.data, options.split, columns=renamed)
    order = {"order": options.order} if options.kind == "rationale" else {}
    how = TokenizeOptions(options.kind, options.row_length, chat=options.chat, format=options.format, **order)
    examples = tokenize(rows, source.tokenizer(), how, source=options.data, numbers=numbers)
    if examples.report.dropped:
        log(str(examples.report))
    mesh = make_mesh(-1, 1, 1)
    with jax.set_mesh(mesh):
        decoder = load_decoder(source, mesh, dtype=options.dtype)
    scorer = Scorer(decoder, mesh, options.chunk)
    scored: list[list[Float[np.ndarray, "scored"]] | None] = [None] * len(rows)
    for index, logps in scorer.token_logps(examples, rows=options.rows, row_length=options.row_length):
        scored[int(examples.rows[index])] = logps
    for name, values in _columns(scored, NAMES[options.kind]).items():
        rows = rows.remove_columns(name) if name in rows.column_names else rows
        rows = rows.add_column(name, values)
    rows.info.description = f"log-probs under {source.name}, {options.dtype}, of {options.data}, split {options.split}"
    return rows


class Scorer:
    """Scores tokenised sets under a model, the prompt of an example once for all its completions."""

    def __init__(
        self,
        decoder: Decoder,
        mesh: Mesh,
        chunk: int = 0,
        read: Callable[[Decoder, Batch], Float[Array, "B N"]] | None = None,
    ):
        """Takes a model; `chunk` is as in `losses.logprobs.token_scores`, `read` gives other values than log-probs."""
        self._mesh = mesh
        graphdef, self._params = nnx.split(decoder)
        self._run = _scoring(graphdef, mesh, chunk, read)

    def update(self, decoder: Decoder) -> None:
        """Takes other weights of the same structure; nothing is compiled again."""
        _, self._params = nnx.split(decoder)

    def token_logps(
        self, examples: Sequence[Example], *, rows: int, row_length: int, shape: RowShape | None = None
    ) -> Iterator[tuple[int, list[Float[np.ndarray, "scored"]]]]:
        """Yields (index of the example, log-probs of the scored tokens of each completion), in the order of packed rows.

        Args:
          examples: none of them longer than a row.
          rows: packed rows a step.
          row_length: tokens of a row.
          shape: capacities of a row; None: chosen for the examples.
        """
        sizes = _sizes(examples)
        split = Split("rows", examples, PackingPlan(sizes, rows, row_length, shuffle=False, shape=shape), {}, ())
        steps = split.plan.num_steps(1)
        with jax.set_mesh(self._mesh):
            for batch in tqdm(split.one_pass(self._mesh), total=steps, desc="scoring", unit="batch", disable=None):
                yield from values_by_completion(np.asarray(self._run(self._params, batch)), batch)


@functools.lru_cache(maxsize=8)
def _scoring(
    graphdef: nnx.GraphDef, mesh: Mesh, chunk: int, read: Callable[[Decoder, Batch], Float[Array, "B N"]] | None
) -> Callable[[nnx.State, Batch], Float[Array, "B N"]]:
    """Returns the jitted scoring of one structure of decoder, which all scorers of that structure share."""
    values = read or (lambda decoder, batch: score(decoder, batch, chunk).logps)
    return jax.jit(
        lambda params, batch: values(nnx.merge(graphdef, params), batch),
        in_shardings=(None, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _sizes(examples: Sequence[Example]) -> Sizes:
    if isinstance(examples, TokenSet):  # whose lengths are known
        return Sizes.from_lengths(examples.prefix_lengths, examples.completion_lengths, examples.num_scored)
    return Sizes.of(examples)


def _columns(
    scored: Sequence[list[Float[np.ndarray, "scored"]] | None], names: tuple[str, ...] | None
) -> dict[str, list[Any]]:
    """Returns the columns of all rows; a sum is taken in float32, as the step takes it, though in another order."""
    sums = [None if logps is None else [float(each.sum(dtype=np.float32)) for each in logps] for logps in scored]
    tokens = [None if logps is None else [each.tolist() for each in logps] for logps in scored]
    columns = {}
    for label, values in (("ref", sums), ("token_logps", tokens)):
        if names is None:
            columns[f"{label}_completions"] = values
        for s, name in enumerate(names or ()):
            columns[f"{label}_{name}"] = [None if value is None else value[s] for value in values]
    return columns
