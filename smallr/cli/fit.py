"""Say what of a training run fits the memory of a device, before anything is loaded.

  smallr fit Qwen/Qwen2.5-1.5B-Instruct --devices=1 --memory=24 --lora
  smallr fit llama-3.1-8b --devices=16 --memory=16

MODEL is what config.model takes, of which only the config is read, or one of the sizes qwen2.5-0.5b, qwen2.5-1.5b,
llama-3.2-3b and llama-3.1-8b. The state is split over all devices (FSDP). An estimate, see docs/memory.md.
"""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.cli.inputs import check
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.models.names import check_model, is_hub_id
from smallr.models.sizes import SIZES

if TYPE_CHECKING:
    from smallr.models.config import DecoderConfig
    from smallr.training.memory import Memory, Setting

GIB = 2**30
OPTIMIZERS = ("adamw", "adafactor", "muon", "adamw8bit")
KEPT_FREE = 0.07  # share of a device's memory that is left to the runtime, and to the error of the estimate
_OF_GPUS = (
    "On a GPU set XLA_PYTHON_CLIENT_MEM_FRACTION=0.93 in the environment: "
    "by default JAX takes no more than 75 % of its memory."
)


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.argument("model", "a model, or one of the sizes above")
    parser.flag("devices", 1, "devices over which the state is split", low=1)
    parser.flag("memory", 24.0, "GiB of each device", low=0.1)
    parser.flag("row_length", 2048, "tokens of a packed row: the longest example, prompt and all completions", low=16)
    parser.flag("accumulation", 1, "micro-batches of a step", low=1)
    parser.flag("dtype", "bfloat16", "of activations and products", choices=("float32", "bfloat16"))
    parser.flag("lora", False, "train adapters alone")
    parser.flag("rank", 16, "of the adapters", low=1)
    parser.flag("base", "float32", "how the base under adapters is held", choices=("float32", "int8", "int4", "nf4"))
    parser.flag("live", False, "a live reference instead of a cached one")
    parser.flag("optimizer", "adamw", "what is held beside the parameters", choices=OPTIMIZERS)
    parser.flag("context", 1, "of the devices, those over which the tokens of a row are split", low=1)
    parser.flag("platform", "accelerator", "what the memory is of", choices=("accelerator", "cpu"))
    parser.flag("scored", 2 / 3, "share of the tokens that are scored", low=0.0, high=1.0)


def run(options: Namespace) -> int:
    """Prints what fits, and the fields to set; 1 if nothing does."""
    if options.model not in SIZES:
        check("MODEL", check_model, options.model)

    from smallr.training.memory import REMATS, Setting, estimate, most_rows

    if options.devices % options.context:
        raise UserError(f"--context={options.context} does not divide --devices={options.devices}")
    model = _sizes_of(options.model)
    setting = Setting(
        1,
        options.row_length,
        dtype=options.dtype,
        fsdp=options.devices // options.context,
        context=options.context,
        optimizer=options.optimizer,
        lora=options.rank if options.lora else 0,
        base=options.base,
        live=options.live,
        accumulation=options.accumulation,
        scored=options.scored,
        platform=options.platform,
    )
    usable = options.memory * GIB * (1 - KEPT_FREE)
    print(_question(options, model))
    print(f"\n{'remat':8}{'most rows a device':>20}{'GiB':>8}")
    found: dict[str, tuple[Setting, Memory]] = {}
    for remat in REMATS:
        each = dataclasses.replace(setting, remat=remat)
        rows = most_rows(model, each, usable)
        each = dataclasses.replace(each, rows=max(rows, 1))
        memory = estimate(model, each)
        print(f"{remat:8}{rows or 'none fits':>20}{memory.total / GIB:8.1f}")
        if rows:
            found[remat] = each, memory
    print(f"\n{_advice(options, found, model)}")
    return 0 if found else 1


def _sizes_of(name: str) -> DecoderConfig:
    from smallr.models.config import DecoderConfig
    from smallr.models.hf import download, read_config
    from smallr.models.loading import OFFLINE_CHOICES
    from smallr.training.opening import open_trained

    if name in SIZES:
        return SIZES[name]
    if is_hub_id(name) and not Path(name).exists():
        choices = f"{OFFLINE_CHOICES} Or one of the sizes {', '.join(SIZES)}."
        return DecoderConfig.from_hf(read_config(download(name, choices, ("config.json",))))
    return open_trained(name).config


def _question(options: Namespace, model: DecoderConfig) -> str:
    what = f"LoRA of rank {options.rank} on a base in {options.base}" if options.lora else "all parameters"
    return (
        f"{options.model}: {model.num_params / 1e6:,.1f} M parameters; {options.devices} device(s) of {options.memory:g} GiB; "
        f"rows of {options.row_length:,} tokens; {options.dtype}; {what}"
    )


def _advice(options: Namespace, found: dict[str, tuple[Setting, Memory]], model: DecoderConfig) -> str:
    if not found:
        ways = [] if options.lora else ["--lora"]
        ways += ["--lora --base=nf4"] if options.base == "float32" else []
        return f"Not one row fits. Try shorter rows, more devices{', '.join(['', *ways])}."
    # Products that are kept save a third of the work; keeping everything saves little more and costs most.
    setting, memory = found.get("dots") or found["full"]
    rows = setting.rows * setting.fsdp * options.accumulation
    fields = [f"batch.rows={rows}", f"batch.row_length={options.row_length}", f"compute.remat={setting.remat}"]
    fields += [f"batch.accumulation={options.accumulation}"] if options.accumulation > 1 else []
    fields += [f"mesh.fsdp={setting.fsdp}"]
    fields += [f"mesh.context={setting.context}"] if setting.context > 1 else []
    fields += [f"optimizer.name={options.optimizer}"] if options.optimizer != "adamw" else []
    parts = ", ".join(
        f"{name} {size / GIB:.1f}" for name, size in dataclasses.asdict(memory).items() if size >= GIB / 20
    )
    lora = (
        " --lora" + (f" --config.lora.base={options.base}" if options.base != "float32" else "") if options.lora else ""
    )
    return (
        f"Up to these rows, {memory.total / GIB:.1f} GiB ({parts}):\n  smallr train CONFIG{lora} "
        + " ".join(f"--config.{field}" for field in fields)
        + "\nAn estimate that keeps 7 % free; fewer rows need less."
        + ("" if options.platform == "cpu" else f"\n{_OF_GPUS}")
        + _start(options, model, memory.parameters)
    )


def _start(options: Namespace, model: DecoderConfig, held: float) -> str:
    """Says where a run does not fit while it starts: a projection is read in float32 before it is quantised."""
    from smallr.models.export import parameter_shapes
    from smallr.models.lora import projections

    if not options.lora or options.base == "float32":
        return ""
    shapes = parameter_shapes(model)
    needed = (held + 4 * max(math.prod(shapes[path]) for path in projections(model)) / options.devices) / GIB
    if needed <= options.memory:
        return ""
    return (
        f"\nBUT the start needs {needed:.1f} GiB a device, more than there is: all layers of a projection are read in "
        "float32 before they are quantised. Use more devices."
    )
