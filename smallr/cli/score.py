"""Score rows under a model.

  smallr score --model=NAME --data=SOURCE --out=FOLDER [--kind=…] [--split=…]

Writes the rows as a data set with `ref_<name>` (summed) and `token_logps_<name>` (a list) for each completion: chosen and
rejected of pairs, completion of rows with one. Rows of the kind completions (any number of them behind a prompt, which is
computed once) get `ref_completions` and `token_logps_completions`, lists of these. Pairs scored in this way need no
reference pass.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.cli.inputs import announce, check, check_model, check_source, check_tokenizer
from smallr.cli.parsing import Parser, UsageError

if TYPE_CHECKING:
    from datasets import Dataset


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("model", None, "any model that training takes", required=True)
    parser.flag("tokenizer", "", "a folder or hub id whose tokenizer comes in place of the model's own")
    parser.flag("data", None, "any source of rows that training takes", required=True)
    parser.flag("out", None, "folder to write; must not exist", required=True)
    parser.flag("split", "train", "split, or a part of it as in train[:50%]")
    parser.flag("kind", "preference", "of the rows: preference | sft | completions | rationale")
    parser.flag("format", "", "how the columns are read, as config.data.format; empty: found out from them")
    parser.flag("columns", "", "our name=the source's name, comma-separated, e.g. prompt=question")
    parser.flag("chat", True, "wrap plain strings in the chat template")
    parser.flag("order", "answer_first", "of rationale rows: answer_first | rationale_first")
    parser.flag("rows", 8, "packed rows a step", low=1)
    parser.flag("row_length", 1024, "tokens a row; longer examples are left unscored", low=1)
    parser.flag("dtype", "float32", "float32 | bfloat16", choices=("float32", "bfloat16"))


def run(options: Namespace) -> None:
    """Writes the scores and says how to train with them."""
    pairs = [pair for pair in options.columns.split(",") if pair]
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise UsageError(f"score: --columns={wrong[0]}: expected OURS=THEIRS")
    check("--model", check_model, options.model)
    check("--data", check_source, options.data)
    if options.tokenizer:
        check_tokenizer(options.tokenizer)
    announce(f"scoring {options.data} under {options.model}; loading JAX …")

    from smallr.core.programs import keep_programs
    from smallr.training.scoring import ScoreOptions, write_scores

    keep_programs()

    columns = dict(pair.split("=", 1) for pair in pairs)
    names = ("model", "tokenizer", "data", "split", "kind", "format", "chat", "order", "rows", "row_length", "dtype")
    scored = write_scores(
        ScoreOptions(columns=columns, **{name: getattr(options, name) for name in names}), Path(options.out)
    )
    print(f"{len(scored)} rows in {options.out}: {', '.join(scored.column_names)}")
    if options.kind == "preference":
        print(f"next: smallr train {next_arguments(scored, options)}")


def next_arguments(scored: Dataset, options: Namespace) -> str:
    """Returns the arguments of `smallr train` for the scored pairs, under the model that has scored them."""
    config = "cogpo" if {"gap", "beta"} & set(scored.column_names) else "dpo"
    fields = {
        "model": options.model,
        "tokenizer": options.tokenizer,
        "data.train": options.out,
        "data.chat": "" if options.chat else "false",
        "objective.reference": "columns",
    }
    return shlex.join([config, *(f"--config.{name}={value}" for name, value in fields.items() if value)])
