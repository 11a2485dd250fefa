"""Write a new model with random weights, to train from scratch: python -m smallr.cli.scratch --texts=DATA --out=FOLDER

DATA is anything that config.data.train takes; the tokenizer (byte-level BPE, every digit a token) is learned from all
its columns of text. FOLDER is a model in Hugging Face layout: python -m smallr.train --config.model=FOLDER
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging

from smallr.core.errors import UserError

TEXTS = flags.DEFINE_list("texts", None, "One or more data sets, e.g. builtin:arithmetic/rationale", required=True)
SPLIT = flags.DEFINE_string("split", "train", "Split of each that is read")
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist, or be empty", required=True)
FAMILY = flags.DEFINE_enum("family", "llama", ["gpt2", "llama"], "Architecture")
LAYERS = flags.DEFINE_integer("layers", 4, "Layers", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 256, "Width of the residual stream", lower_bound=2)
HEADS = flags.DEFINE_integer("heads", 4, "Heads of attention", lower_bound=1)
CONTEXT = flags.DEFINE_integer("context", 1024, "Longest sequence, in tokens", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", 1024, "Most entries of the vocabulary")
SEED = flags.DEFINE_integer("seed", 0, "Of the weights")


def main(argv: list[str]) -> None:
    """Learns the vocabulary, writes the folder and says what it holds."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)

    from smallr.data.sources import load_rows
    from smallr.models.export import parameter_shapes
    from smallr.models.scratch import Size, train_tokenizer, write_scratch

    try:
        size = Size(FAMILY.value, LAYERS.value, WIDTH.value, HEADS.value, CONTEXT.value)
        rows = (row for spec in TEXTS.value for row in load_rows(spec, SPLIT.value))
        texts = (value for row in rows for value in row.values() if isinstance(value, str))
        tokenizer = train_tokenizer(texts, VOCABULARY.value)
        config = write_scratch(Path(OUT.value), tokenizer, size, SEED.value)
    except UserError as error:
        sys.exit(f"smallr: {error}")
    count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    print(f"{count / 1e6:.2f} M random parameters and a vocabulary of {len(tokenizer)} are in {OUT.value}")


if __name__ == "__main__":
    app.run(main)
