"""Write a model for transformers, vLLM and llama.cpp: python -m smallr.cli.convert --from=RUN_OR_MODEL --to=FOLDER

RUN_OR_MODEL is the workdir of a run (its newest intact checkpoint is taken), the folder of one checkpoint
(runs/a/checkpoints/100), an adapter in PEFT's format, or any model that config.model takes, e.g. a .gguf file. Adapters
are merged into their base; --adapter-only writes those of a LoRA run in PEFT's format, or the adaptive module of a run
with soft prompts. FOLDER appears when it is complete.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging

from smallr.core.errors import UserError

FROM = flags.DEFINE_string("from", None, "Run, checkpoint, or any model that training takes", required=True)
TO = flags.DEFINE_string("to", None, "Folder to write; must not exist, or be empty", required=True)
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the weights: bfloat16 | float32 (exact) | float16")
ADAPTER_ONLY = flags.DEFINE_bool("adapter-only", False, "Of a LoRA run or soft prompts: the adapters in PEFT's format")
TOKENIZER = flags.DEFINE_string("tokenizer", "", "A folder or hub id whose tokenizer comes in place of the model's own")
ALLOW_NONFINITE = flags.DEFINE_bool("allow-nonfinite", False, "Take NaN and infinite weights as they are")
SHARD_SIZE = flags.DEFINE_string("shard-size", "5GB", "Largest weight file")


def main(argv: list[str]) -> None:
    """Runs `training.exporting.convert`; errors of the user's making are one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)

    from smallr.methods.adaptive.stored import export
    from smallr.training.exporting import convert
    from smallr.training.saved import find_run

    try:
        run = find_run(Path(FROM.value).expanduser())
        if ADAPTER_ONLY.value and run is not None and "soft" in run.config:
            return print(export(run, Path(TO.value), DTYPE.value))
        print(
            convert(
                FROM.value,
                Path(TO.value),
                dtype=DTYPE.value,
                shard_size=SHARD_SIZE.value,
                adapter_only=ADAPTER_ONLY.value,
                tokenizer=TOKENIZER.value,
                allow_nonfinite=ALLOW_NONFINITE.value,
            )
        )
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    app.run(main)
