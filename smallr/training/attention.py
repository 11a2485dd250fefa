"""Settles which attention a run computes with: as the config says, as the run began with, or what is fastest here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.sharding import MESH_AXES, context_size
from smallr.data.packing import RowShape
from smallr.data.pipeline import batches
from smallr.models.attention_choice import Choice, Packing, choose
from smallr.models.attention_stock import UNSHARING
from smallr.models.attention_support import INTERPRETED, AttentionShape, DeviceFacts, unsupported
from smallr.models.attention_unshared import COPIES
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.training.progress import announce, log
from smallr.training.splits import Split

_SPLIT_ROWS = "the one that runs over rows that are split over mesh.context"


def settle_attention(
    config: ConfigDict, model: DecoderConfig, split: Split | None, earlier: Mapping[str, Any]
) -> Choice:
    """Returns the attention of a run, whose mesh is set.

    Args:
      config: of the run.
      model: what is computed, in the dtype and with the remat of the run.
      split: its training rows, if they are known yet.
      earlier: what the run took when it began, from its workdir; empty for a new run.

    Raises:
      UserError: what the config names cannot compute this model here, or the run began on another kind of device.
    """
    device = DeviceFacts.of(jax.local_devices()[0])
    shape = shape_of(config, model, split)
    named = config.compute.attention
    if named != "auto":
        reason = unsupported(named, shape, device)
        if reason and not (named in INTERPRETED and device.platform == "cpu"):
            raise UserError(
                f"config.compute.attention={named}: {reason}; set config.compute.attention=auto, which takes the fastest "
                "that works, or xla"
            )
        note = f", interpreted on the {device.platform}: slow, for tests alone" if reason else ""
        return Choice(named, device.kind, f"as config.compute.attention says{note}", shape.room)
    if earlier:
        return _resumed(earlier, device)
    if context_size() > 1:
        return Choice("xla", device.kind, _SPLIT_ROWS, shape.room)
    if device.platform in ("cuda", "tpu"):
        announce("attention: checking and timing the candidates on this device …")
    with jax.set_mesh(_mesh_of_one()):
        choice = choose(shape, device, None if split is None else _first_rows(split, shape.rows))
    for line in choice.lines():
        log(line)
    return choice


def shape_of(config: ConfigDict, model: DecoderConfig, split: Split | None) -> AttentionShape:
    """Returns what a device computes in a layer of a micro-batch."""
    rows = config.batch.rows // config.batch.accumulation
    if split is not None:
        known = {"examples": split.plan.shape.examples, "completions": split.plan.shape.completions}
    else:
        # Rows come later: pairs have two completions, rows of these kinds any number.
        many = config.data.kind in ("completions", "choice")
        known = {"examples": config.batch.examples, "completions": 0 if many else 2}
    return AttentionShape.of(model, rows, config.batch.row_length, **known)


def check_rows(choice: Choice, shape: RowShape | None) -> None:
    """Checks that rows fit the attention that was settled before they were known.

    Raises:
      UserError: they have more completions than there is room for.
    """
    if choice.impl not in UNSHARING or shape is None:
        return
    needed = shape.examples * shape.completions
    if shape.completions > COPIES or needed > choice.sequences:
        raise UserError(
            f"these rows have up to {needed} completions, {shape.completions} of a prompt, but attention {choice.impl} was "
            f"set up for {choice.sequences}, two of a prompt: set config.batch.examples={shape.examples} from the start, or "
            "config.compute.attention=xla"
        )


def to_json(choice: Choice) -> dict[str, Any]:
    """Returns what a workdir keeps of a choice."""
    return {"impl": choice.impl, "device": choice.device, "sequences": choice.sequences}


def for_any_rows(decoder: Decoder) -> Decoder:
    """Lets a decoder of a run read any rows: one that has room for those of the run alone computes with `auto` instead."""
    return computing_with("auto", 0, decoder) if decoder.config.attention in UNSHARING else decoder


def computing_with(impl: str, sequences: int, decoder: Decoder) -> Decoder:
    """Returns the decoder, which computes with this attention from here on."""
    for _, module in nnx.iter_modules(decoder):
        if hasattr(module, "config"):
            module.config = dataclasses.replace(module.config, attention=impl, attention_sequences=sequences)
    return decoder


def _resumed(earlier: Mapping[str, Any], device: DeviceFacts) -> Choice:
    if earlier["device"] not in ("", device.kind):  # empty: begun before attention was chosen by device
        raise UserError(
            f"config.compute.attention=auto: this run began on {earlier['device']} with the attention {earlier['impl']}, and "
            f"this device is {device.kind}. Its numbers will differ in their last bits, so say which to go on with: "
            f"--config.compute.attention={earlier['impl']} if it runs here, or xla, which runs everywhere"
        )
    if context_size() > 1 and earlier["impl"] != "auto":
        return Choice("xla", device.kind, f"{_SPLIT_ROWS}; it began with {earlier['impl']}", earlier["sequences"])
    return Choice(earlier["impl"], device.kind, "as the run began with", earlier["sequences"])


def _mesh_of_one() -> Mesh:
    return Mesh(np.asarray(jax.local_devices()[:1]).reshape((1,) * len(MESH_AXES)), MESH_AXES)


def _first_rows(split: Split, count: int) -> Packing:
    """Returns the rule of the first rows of the run."""
    batch = next(batches(split.plan, split.examples, split.columns, 0, 1, rows=np.arange(count), threads=0))
    return Packing(np.asarray(batch.horizon), np.asarray(batch.positions))
