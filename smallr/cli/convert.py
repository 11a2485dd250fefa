"""Write a model for transformers, vLLM and llama.cpp.

  smallr convert --from=RUN_OR_MODEL --to=FOLDER
  smallr convert --from=LORA_RUN --to=FOLDER --adapter_only [--base=NAME]

RUN_OR_MODEL is the workdir of a run (its newest intact checkpoint is taken), the folder of one checkpoint
(runs/a/checkpoints/100), an adapter in PEFT's format, or any model that config.model takes, e.g. a .gguf file. Adapters
are merged into their base; --adapter_only writes those of a LoRA run in PEFT's format, or the adaptive module of a run
with soft prompts. PEFT loads a base from the hub or from a folder: where a run began from something else, --base=FOLDER
writes the base there too. FOLDER appears when it is complete. smallr push puts a model on the hub.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from smallr.cli.inputs import announce, check, check_model, check_tokenizer
from smallr.cli.parsing import Parser
from smallr.core.files import check_new_folder
from smallr.core.locks import output_lock


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("from", None, "run, checkpoint, or any model that training takes", required=True)
    parser.flag("to", None, "folder to write; must not exist, or be empty", required=True)
    export_flags(parser)


def export_flags(parser: Parser) -> None:
    """Names the flags on how a model is written."""
    parser.flag("dtype", "bfloat16", "of the weights; float32 is exact", choices=("bfloat16", "float32", "float16"))
    parser.flag("adapter_only", False, "of a LoRA run or soft prompts: the adapters in PEFT's format")
    parser.flag(
        "base", "", "with --adapter_only: a hub id, or a folder (also one to be written), by which PEFT finds the base"
    )
    parser.flag("tokenizer", "", "a folder or hub id whose tokenizer comes in place of the model's own")
    parser.flag("allow_nonfinite", False, "take NaN and infinite weights as they are")
    parser.flag("shard_size", "5GB", "largest weight file")


def export_options(options: Namespace) -> dict[str, Any]:
    """Returns the values of `export_flags`."""
    names = ("dtype", "adapter_only", "base", "tokenizer", "allow_nonfinite", "shard_size")
    return {name: getattr(options, name) for name in names}


def run(options: Namespace) -> None:
    """Writes the folder and says what it holds; the target is checked before anything is loaded."""
    target = Path(options.to).expanduser()
    check_new_folder(target)
    check("--from", check_model, getattr(options, "from"))
    if options.tokenizer:
        check_tokenizer(options.tokenizer)
    announce(f"writing {getattr(options, 'from')} to {options.to}; loading JAX …")
    with output_lock(target):
        print(export(getattr(options, "from"), target, options))


def export(source: str, target: Path, options: Namespace, title: str = "") -> str:
    """Writes a model as the flags say; returns a line on what was written."""
    from smallr.methods.adaptive import stored
    from smallr.training.exporting import convert
    from smallr.training.saved import find_run, run_config

    path = Path(source).expanduser()
    if options.adapter_only and "soft" in (run_config(path) or {}):
        return stored.export(find_run(path), target, options.dtype)
    return convert(source, target, **export_options(options), title=title)
