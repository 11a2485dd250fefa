"""Write a model for transformers, vLLM and llama.cpp.

  smallr convert --from=RUN_OR_MODEL --to=FOLDER [--adapter_only]

RUN_OR_MODEL is the workdir of a run (its newest intact checkpoint is taken), the folder of one checkpoint
(runs/a/checkpoints/100), an adapter in PEFT's format, or any model that config.model takes, e.g. a .gguf file. Adapters
are merged into their base; --adapter_only writes those of a LoRA run in PEFT's format, or the adaptive module of a run
with soft prompts. FOLDER appears when it is complete.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.inputs import announce, check, check_model, check_tokenizer
from smallr.cli.parsing import Parser


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("from", None, "run, checkpoint, or any model that training takes", required=True)
    parser.flag("to", None, "folder to write; must not exist, or be empty", required=True)
    parser.flag("dtype", "bfloat16", "of the weights: bfloat16 | float32 (exact) | float16")
    parser.flag("adapter_only", False, "of a LoRA run or soft prompts: the adapters in PEFT's format")
    parser.flag("tokenizer", "", "a folder or hub id whose tokenizer comes in place of the model's own")
    parser.flag("allow_nonfinite", False, "take NaN and infinite weights as they are")
    parser.flag("shard_size", "5GB", "largest weight file")


def run(options: Namespace) -> None:
    """Writes the folder and says what it holds."""
    check("--from", check_model, getattr(options, "from"))
    if options.tokenizer:
        check_tokenizer(options.tokenizer)
    announce(f"writing {getattr(options, 'from')} to {options.to}; loading JAX …")

    from smallr.methods.adaptive.stored import export
    from smallr.training.exporting import convert
    from smallr.training.saved import find_run

    source, target = getattr(options, "from"), Path(options.to)
    run = find_run(Path(source).expanduser())
    if options.adapter_only and run is not None and "soft" in run.config:
        print(export(run, target, options.dtype))
        return
    names = ("dtype", "shard_size", "adapter_only", "tokenizer", "allow_nonfinite")
    print(convert(source, target, **{name: getattr(options, name) for name in names}))
