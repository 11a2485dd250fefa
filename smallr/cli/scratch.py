"""Write a new model with random weights, to train from scratch.

  smallr scratch --texts=DATA --out=FOLDER
  smallr train sft --config.model=FOLDER

DATA is anything that config.data.train takes; the tokenizer (byte-level BPE, every digit a token) is learned from all
its columns of text. FOLDER is a model in Hugging Face layout.
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

from smallr.cli.parsing import Parser
from smallr.core.locks import output_lock


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag(
        "texts", None, "one or more data sets, comma-separated, e.g. builtin:arithmetic/rationale", required=True
    )
    parser.flag("split", "train", "split of each that is read")
    parser.flag("out", None, "folder to write; must not exist, or be empty", required=True)
    parser.flag("family", "llama", "architecture", choices=("gpt2", "llama"))
    parser.flag("layers", 4, "layers", low=1)
    parser.flag("width", 256, "width of the residual stream", low=2)
    parser.flag("heads", 4, "heads of attention", low=1)
    parser.flag("context", 1024, "longest sequence, in tokens", low=1)
    parser.flag("vocabulary", 1024, "most entries of the vocabulary")
    parser.flag("seed", 0, "of the weights")


def run(options: Namespace) -> None:
    """Learns the vocabulary, writes the folder and says what it holds."""
    from smallr.data.sources import load_rows
    from smallr.models.export import parameter_shapes
    from smallr.models.scratch import Size, train_tokenizer, write_scratch

    size = Size(options.family, options.layers, options.width, options.heads, options.context)
    with output_lock(Path(options.out)):
        rows = (row for spec in options.texts.split(",") for row in load_rows(spec, options.split))
        texts = (value for row in rows for value in row.values() if isinstance(value, str))
        tokenizer = train_tokenizer(texts, options.vocabulary)
        config = write_scratch(Path(options.out), tokenizer, size, options.seed)
    count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    print(f"{count / 1e6:.2f} M random parameters and a vocabulary of {len(tokenizer)} are in {options.out}")
