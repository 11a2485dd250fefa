"""Log-probs of any rows under a model, written as a data set."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float
from tqdm import tqdm

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.data.packing import PackingPlan, Sizes
from smallr.data.sources import load_rows
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.models.loading import load_decoder
from smallr.training.forward import score
from smallr.training.opening import open_trained
from smallr.training.progress import log
from smallr.training.splits import Split, batch_sharding

# What the scored completions of a kind are called.
SIDES = {"preference": ("chosen", "rejected"), "sft": ("completion",), "rationale": ("completion",)}


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """What is scored and how; `kind`, `chat`, `order` as in a training config.

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
      UserError: `out` exists, or the options or rows cannot be used.
    """
    if out.exists():
        raise UserError(f"{out} exists: remove it, or write elsewhere with --out")
    scored = score_rows(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        scored.save_to_disk(Path(scratch) / "rows")
        os.replace(Path(scratch) / "rows", out)
    return scored


def score_rows(options: ScoreOptions) -> datasets.Dataset:
    """The rows with two columns more for each side: `ref_<side>`, the summed log-prob of its scored tokens, and
    `token_logps_<side>`, the list of theirs. Both are null where a row was not scored (too long, unusable).

    Raises:
      UserError: an unknown kind, rows or a model that cannot be used.
    """
    if options.kind not in SIDES:
        raise UserError(f"kind {options.kind!r} is none of {', '.join(SIDES)}")
    if jax.process_count() > 1:
        raise UserError("scoring runs in one process; score parts of a split (--split=train[:50%]) on several machines")
    source = open_trained(options.model, options.tokenizer)
    renamed = {ours: theirs for ours, theirs in options.columns.items() if ours != theirs}
    rows = load_rows(options.data, options.split, columns=renamed)
    order = {"order": options.order} if options.kind == "rationale" else {}
    how = TokenizeOptions(options.kind, options.row_length, chat=options.chat, **order)
    examples = tokenize(rows, source.tokenizer(), how, source=options.data)
    if examples.report.dropped:
        log(str(examples.report))
    sizes = Sizes.from_lengths(examples.prefix_lengths, examples.completion_lengths, examples.num_scored)
    plan = PackingPlan(sizes, options.rows, options.row_length, shuffle=False)
    split = Split(options.split, examples, plan, {}, SIDES[options.kind])

    sums = {side: [None] * len(rows) for side in split.sides}
    tokens = {side: [None] * len(rows) for side in split.sides}
    for index, side, logps in _token_logps(options, source, split):
        row = int(examples.rows[index])
        # As the step sums: in float32, though in another order.
        sums[side][row], tokens[side][row] = float(logps.sum(dtype=np.float32)), logps.tolist()
    about = f"log-probs under {source.name}, {options.dtype}, of {options.data}, split {options.split}"
    for side in split.sides:
        for name, values in ((f"ref_{side}", sums[side]), (f"token_logps_{side}", tokens[side])):
            rows = rows.remove_columns(name) if name in rows.column_names else rows
            rows = rows.add_column(name, values)
    rows.info.description = about
    return rows


def _token_logps(options: ScoreOptions, source, split: Split) -> Iterator[tuple[int, str, Float[np.ndarray, "tokens"]]]:
    """(example, side, log-probs of its scored tokens in order)."""
    mesh = make_mesh(-1, 1, 1)
    with jax.set_mesh(mesh):
        decoder = load_decoder(source, mesh, dtype=options.dtype)
        graphdef, params = nnx.split(decoder)
        run = jax.jit(
            lambda params, batch: score(nnx.merge(graphdef, params), batch, options.chunk).logps,
            in_shardings=(None, batch_sharding(mesh)),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        bar = tqdm(split.one_pass(mesh), total=split.plan.num_steps(1), desc="scoring", unit="batch", disable=None)
        for batch in bar:
            logps = np.asarray(run(params, batch))
            completion, used, example = (np.asarray(x) for x in (batch.completion, batch.role > 0, batch.example))
            for r, place in zip(*np.nonzero(example >= 0), strict=True):
                for i, side in enumerate(split.sides):
                    member = used[r] & (completion[r] == i * example.shape[1] + place)
                    yield int(example[r, place]), side, logps[r, member]
