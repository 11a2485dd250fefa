"""Reads and writes adapters in PEFT's format: adapter_config.json and adapter_model.safetensors (huggingface.co/docs/peft)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.export import new_folder, parameter_shapes, write_json, write_tokenizer
from smallr.models.families import Tensor
from smallr.models.loading import ModelSource
from smallr.models.lora import LoRA, projections, targets
from smallr.models.safetensors_writer import DTYPES
from smallr.models.schema import ADAPTER, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
DIGEST = "base_digest"  # in the weights' metadata: of the base's parameters
# Keys of adapter_config.json under which the mathematics is another, and their values for plain LoRA.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    # Others (PiSSA, OLoRA, LoftQ, CorDA, …) change the base's weights when the adapter is made.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]  # path of a projection -> its adapter's a and b, all layers stacked


def write_adapter(
    target: Path,
    source: ModelSource,
    lora: LoRA,
    pairs: Callable[[str], tuple[np.ndarray, np.ndarray]],
    *,
    base: str,
    digest: str,
    dtype: str,
    card: str,
) -> None:
    """Writes an adapter folder that `peft.PeftModel.from_pretrained` reads, with the base's tokenizer and template.

    Args:
      target: the folder; it may exist if it is empty.
      source: of the base.
      lora: the adapters' configuration.
      pairs: gives a and b of the projection at a path.
      base: name of the base model, by which PEFT finds it.
      digest: of the base's parameters, by which `read_adapter` knows it; empty: the adapter goes with any base of its
        shape.
      dtype: of the stored tensors.
      card: text of README.md.

    Raises:
      UserError: an adapter on a part of a tensor that the family stores as one.
    """
    tensors, config = {}, source.config
    check_whole(config, lora)
    rows = targets(config, lora)
    for path, row in rows.items():
        a, b = pairs(path)
        for layer in range(config.num_layers):
            module = _module(row, layer)
            tensors[f"{module}.lora_A.weight"] = a[layer].reshape(-1, lora.rank).T
            tensors[f"{module}.lora_B.weight"] = b[layer].reshape(lora.rank, -1).T
    tensors = {name: np.ascontiguousarray(value, DTYPES[dtype][0]) for name, value in tensors.items()}
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "bias": "none",
        "fan_in_fan_out": any(row.layout == "conv1d" for row in rows.values()),
        "target_modules": sorted({_suffix(row) for row in rows.values()}),
        "inference_mode": True,
    }
    with new_folder(target) as folder:
        # Written by us, since save_file leaves a file that nobody else can read.
        metadata = {"format": "pt"} | ({DIGEST: digest} if digest else {})
        (folder / WEIGHTS).write_bytes(save(tensors, metadata=metadata))
        write_tokenizer(folder, source)
        write_json(folder / CONFIG, content)
        (folder / "README.md").write_text(card)


def read_adapter(folder: Path, config: DecoderConfig, digest: str) -> tuple[LoRA, Pairs]:
    """Returns the adapters of a folder, for a base of this config.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the base.
      digest: of the base's parameters; compared where the folder says which it was made with.

    Raises:
      UserError: files that are missing or damaged, a kind of adapter other than plain LoRA, or one for another base.
    """
    content = read_adapter_config(folder)
    for key, plain in _PLAIN.items():
        if key in content and content[key] not in plain:
            raise UserError(f"{folder / CONFIG}: {key} = {content[key]!r} is not supported (it must be {plain[0]!r})")
    tensors, metadata = read_tensors(folder / WEIGHTS)
    if metadata.get(DIGEST, digest) != digest:
        raise UserError(
            f"{folder}: the adapter was trained on another base ({content.get('base_model_name_or_path')}, digest "
            f"{metadata[DIGEST][:12]}) than this one (digest {digest[:12]})"
        )
    rank, shapes, pairs = int(content["r"]), parameter_shapes(config), {}
    for path, row in projections(config).items():
        names = [f"{_module(row, layer)}.lora_A.weight" for layer in range(config.num_layers)]
        if row.fused is not None or not any(name in tensors for name in names):
            continue
        shape, cut = shapes[path][1:], row.inputs
        sizes = math.prod(shape[:cut]), math.prod(shape[cut:])
        a = [_take(tensors, folder, name, (rank, sizes[0])) for name in names]
        b = [_take(tensors, folder, name.replace("lora_A", "lora_B"), (sizes[1], rank)) for name in names]
        pairs[path] = (
            np.stack([value.T.reshape(*shape[:cut], rank) for value in a]),
            np.stack([value.T.reshape(rank, *shape[cut:]) for value in b]),
        )
    if tensors or not pairs:
        found = ", ".join(sorted(tensors)[:3]) or "no tensor"
        raise UserError(
            f"{folder / WEIGHTS}: {found}: not an adapter of a projection of this base (family {config.family}, "
            f"{config.num_layers} layers); is it an adapter for another model?"
        )
    target = "^(" + "|".join(map(re.escape, pairs)) + ")$"
    scale = {"alpha": float(content["lora_alpha"]), "rslora": bool(content.get("use_rslora"))}
    return LoRA(rank=rank, dropout=float(content.get("lora_dropout") or 0), target=target, **scale), pairs


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Reads the adapter_config.json of a folder.

    Raises:
      UserError: it is missing, malformed, or not of a LoRA adapter.
    """
    content = read_json(folder / CONFIG, ADAPTER)
    if content.get("peft_type") != "LORA" or None in (content.get("r"), content.get("lora_alpha")):
        raise UserError(f"{folder / CONFIG}: peft_type {content.get('peft_type')!r} is not supported here (LORA is)")
    return content


def base_of(folder: Path) -> str:
    """Returns the model that an adapter folder was trained on, as it names it.

    Raises:
      UserError: it names none.
    """
    name = read_adapter_config(folder).get("base_model_name_or_path")
    if not name:
        raise UserError(
            f"{folder / CONFIG} has no base_model_name_or_path: set it to the model to merge the adapter into"
        )
    return str(name)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns all tensors of a file as float32, and its metadata.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def _take(tensors: dict[str, np.ndarray], folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{folder / WEIGHTS}: no tensor {name}; adapters on some of the layers are not supported")
    value = tensors.pop(name)
    if value.shape != shape:
        raise UserError(
            f"{folder / WEIGHTS}: {name} has shape {value.shape}, this base needs {shape}: it is an adapter for another "
            "model"
        )
    return value


def _module(row: Tensor, layer: int) -> str:
    return _PREFIX + row.name.format(layer=layer).removesuffix(".weight")


def _suffix(row: Tensor) -> str:
    """Returns the module's name within its layer, e.g. "self_attn.q_proj"."""
    return row.name.partition("{layer}.")[2].removesuffix(".weight")


def check_whole(config: DecoderConfig, lora: LoRA) -> None:
    """Raises UserError for an adapter on a part of a tensor that the family stores as one."""
    for path, row in targets(config, lora).items():
        if row.fused is not None:
            raise UserError(
                f"{path} is a part of {row.name} in this family, so PEFT cannot hold its adapter: export it merged "
                "(without --adapter_only)"
            )
