"""Reads and writes soft prompts in PEFT's format: type PROMPT_TUNING, tensor `prompt_embeddings` [vectors, D]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.export import new_folder, write_json, write_tokenizer
from smallr.models.loading import ModelSource
from smallr.models.peft import CONFIG, DIGEST, WEIGHTS, read_tensors
from smallr.models.safetensors_writer import DTYPES
from smallr.models.schema import ADAPTER, read_json

TYPE, TENSOR = "PROMPT_TUNING", "prompt_embeddings"


def write_soft_prompt(
    target: Path,
    source: ModelSource,
    vectors: Float[np.ndarray, "vectors D"],
    *,
    base: str,
    digest: str,
    dtype: str,
    card: str,
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` reads, with the base's tokenizer and template.

    Args:
      target: the folder; it may exist if it is empty.
      source: of the base.
      vectors: of one soft prompt.
      base: name of the base model.
      digest: of the base's parameters, by which `read_soft_prompt` knows it.
      dtype: of the stored tensor.
      card: text of README.md.
    """
    content = {
        "peft_type": TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": len(vectors),
        "token_dim": source.config.d_model,
        "num_transformer_submodules": 1,
        "num_attention_heads": source.config.num_heads,
        "num_layers": source.config.num_layers,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    with new_folder(target) as folder:
        tensors = {TENSOR: np.ascontiguousarray(vectors, DTYPES[dtype][0])}
        # Written by us, since save_file leaves a file that nobody else can read.
        (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt", DIGEST: digest}))
        write_tokenizer(folder, source)
        write_json(folder / CONFIG, content)
        (folder / "README.md").write_text(card)


def read_soft_prompt(folder: Path, config: DecoderConfig, digest: str) -> Float[np.ndarray, "vectors D"]:
    """Returns the vectors of a folder, float32, for a base of this config.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      config: of the base.
      digest: of the base's parameters; compared where the folder says which it was trained with.

    Raises:
      UserError: files that are missing or damaged, an adapter of another kind, or one for another base.
    """
    content = _read_config(folder / CONFIG)
    tensors, metadata = read_tensors(folder / WEIGHTS)
    if metadata.get(DIGEST, digest) != digest:
        raise UserError(
            f"{folder}: the soft prompt was trained on another model ({content.get('base_model_name_or_path')}, digest "
            f"{metadata[DIGEST][:12]}) than this one (digest {digest[:12]})"
        )
    if set(tensors) != {TENSOR}:
        raise UserError(f"{folder / WEIGHTS}: expected the tensor {TENSOR} alone, found {', '.join(sorted(tensors))}")
    shape, wanted = tensors[TENSOR].shape, (content["num_virtual_tokens"], config.d_model)
    if shape != wanted:
        raise UserError(
            f"{folder / WEIGHTS}: {TENSOR} has shape {shape}, this model needs {wanted}: it is a soft prompt for another model"
        )
    return tensors[TENSOR]


def _read_config(path: Path) -> dict[str, Any]:
    content = read_json(path, ADAPTER)
    if content.get("peft_type") != TYPE or content.get("num_virtual_tokens") is None:
        raise UserError(f"{path}: peft_type {content.get('peft_type')!r} is no soft prompt ({TYPE} is)")
    if content.get("num_transformer_submodules") not in (1, None):
        raise UserError(f"{path}: num_transformer_submodules must be 1, as of a decoder")
    return content
