"""Writes a model as a folder in Hugging Face layout: the inverse of loading, by the same tables."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.files import check_new_folder, remove_leftovers, whole_folder
from smallr.core.locks import output_lock
from smallr.models.chat_template import end_of_turn
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.families import FAMILIES
from smallr.models.families.base import TOKEN_IDS, fused_shape, join
from smallr.models.hf import TOKENIZER_FILES, read_generation_config
from smallr.models.loading import ModelSource
from smallr.models.rope import rope_frequencies
from smallr.models.safetensors_writer import SafetensorsWriter
from smallr.models.schema import inside


def write_model(
    target: Path,
    source: ModelSource,
    read: Callable[[str], np.ndarray],
    *,
    dtype: str,
    shard_bytes: int,
    card: str,
) -> None:
    """Writes a whole model folder, which appears at once when it is complete.

    Args:
      target: the folder; it may exist if it is empty.
      source: what was trained: it gives config, tokenizer and the layout of the tensors.
      read: gives the float32 array of a parameter by its dotted path; of a layer's, stacked. Called once for each.
      dtype: of the stored tensors: float32, bfloat16 or float16.
      shard_bytes: largest weight file.
      card: text of README.md.

    Raises:
      UserError: the target is not empty, the weights are not finite, or config.json cannot express the model.
    """
    config = config_json(source, dtype)
    with new_folder(target) as folder:
        shapes = tensor_shapes(source.config)
        with SafetensorsWriter(folder, shapes, dtype, shard_bytes, source.allow_nonfinite) as writer:
            for name, value in stored_tensors(source.config, read):
                writer.write(name, value)
        write_tokenizer(folder, source)
        generation = generation_config(source, config)
        if generation == read_generation_config(source.folder):
            _copy(source.folder, folder, ("generation_config.json",))
        else:
            write_json(folder / "generation_config.json", generation)
        write_json(folder / "config.json", config)
        (folder / "README.md").write_text(card)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside `target` that is renamed to it at the end, or removed after an error.

    Raises:
      UserError: the target is there and not an empty folder, another process writes it, or it cannot be written.
    """
    with output_lock(target):
        check_new_folder(target)
        remove_leftovers(target.parent)
        with whole_folder(target) as folder:
            yield folder


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every stored tensor, layer by layer, so that a weight file holds whole layers."""
    params = parameter_shapes(config)
    stored = FAMILIES[config.family].stored(config)
    layered = [name for name, parts in stored.items() if parts[0].stacked]
    names = list(stored)
    first = names.index(layered[0])
    order = [(name, None) for name in names[:first]]
    order += [(name, layer) for layer in range(config.num_layers) for name in layered]
    order += [(name, None) for name in names[first:] if name not in layered]
    shapes = {}
    for name, layer in order:
        of_parts = [params[part.param] if layer is None else params[part.param][1:] for part in stored[name]]
        shapes[name.format(layer=layer)] = fused_shape(stored[name], of_parts)
    return shapes


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of the decoder by its dotted path."""
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    return {".".join(path): leaf.shape for path, leaf in nnx.to_flat_state(state)}


def stored_tensors(config: DecoderConfig, read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and value of every stored tensor; it holds one parameter at a time, or those that are stored as one."""
    for name, parts in FAMILIES[config.family].stored(config).items():
        values = [read(part.param) for part in parts]
        if not parts[0].stacked:
            yield name, join(parts, values)
            continue
        for layer in range(config.num_layers):
            yield name.format(layer=layer), join(parts, [value[layer] for value in values])


def config_json(source: ModelSource, dtype: str) -> dict[str, Any]:
    """Returns the `config.json` of the folder: that of the model which was trained, with the dtype of the new weights.

    Raises:
      UserError: the model comes from a file with a config that Hugging Face's classes cannot express.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    hf = FAMILIES[source.config.family].text(source.hf)
    config = {key: value for key, value in hf.items() if value is not None and key != "_name_or_path"}
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "factors":
        config["rope_scaling"] = _llama3_scaling(source)
    config.setdefault("architectures", [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]])
    if not _own_tokenizer(source):
        tokenizer = source.tokenizer()
        config |= {key: getattr(tokenizer, key) for key in TOKEN_IDS if getattr(tokenizer, key) is not None}
    config.pop("torch_dtype", None)
    # The key's name differs between versions of transformers; each reads its own.
    config |= {"dtype": dtype, "torch_dtype": dtype}
    _check_same(DecoderConfig.from_hf(config), source)
    return config


def generation_config(source: ModelSource, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `generation_config.json`: the base model's, ended by the chat template's end of turn as well.

    Training on chats teaches the end of turn; readers of the folder stop at the listed ids alone. The base model's ids
    are kept where the tokenizer is still its own.

    Args:
      source: the model.
      config: its `config.json`, whose ids count where there is no file.
    """
    base = read_generation_config(source.folder)
    found = {"_from_model_config": True} if base is None else dict(base)
    if base is None or not _own_tokenizer(source):
        found |= {key: config[key] for key in TOKEN_IDS if config.get(key) is not None}
    if found.get("eos_token_id") is None:
        found["eos_token_id"] = config.get("eos_token_id")
    ends = found["eos_token_id"]
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    ends = list(dict.fromkeys((*ends, *end_of_turn(source.tokenizer()))))
    found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {key: value for key, value in found.items() if value is not None}


def _check_same(written: DecoderConfig, source: ModelSource) -> None:
    expected = source.config
    if (source.hf.get("rope_scaling") or {}).get("rope_type") == "factors":  # checked by _llama3_scaling
        written = dataclasses.replace(written, rope_scaling=expected.rope_scaling)
    if written != expected:
        fields = [f.name for f in dataclasses.fields(expected) if getattr(written, f.name) != getattr(expected, f.name)]
        raise UserError(f"model {source.name!r}: config.json cannot express its {', '.join(fields)}")


def _llama3_scaling(source: ModelSource) -> dict[str, Any]:
    """Returns the scaling whose divisors a GGUF file holds: Llama 3.1 and 3.2 differ in the factor alone."""
    for factor in (8.0, 32.0):
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        config = DecoderConfig.from_hf({**source.hf, "rope_scaling": scaling})
        if np.allclose(rope_frequencies(config), rope_frequencies(source.config), rtol=1e-6, atol=0):
            return scaling
    raise UserError(
        f"model {source.name!r}: its rotary divisors are not those of Llama 3.1 or 3.2, so config.json cannot express "
        "them; train from the model's Hugging Face folder to export it"
    )


def write_tokenizer(folder: Path, source: ModelSource) -> None:
    """Writes tokenizer, chat template and licence: the files of the model's folder, or rebuilt ones."""
    tokenizer = source.tokenizer()  # also checks that there is one, and that it fits the embedding
    _copy(source.folder, folder, ("LICENSE*", "NOTICE*"))
    if source.tokenizer_folder is not None:
        _copy(source.tokenizer_folder, folder, TOKENIZER_FILES)
    else:
        tokenizer.save_pretrained(str(folder))
        path = folder / "tokenizer_config.json"
        # transformers 5 writes a name of its own that earlier versions do not know.
        write_json(path, json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _own_tokenizer(source: ModelSource) -> bool:
    """Returns whether the model's folder has the tokenizer, so that its ids are in config.json too."""
    return source.folder is not None and source.tokenizer_folder == source.folder


def _copy(source: Path | None, target: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns if source else ():
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(inside(source, path.name), target / path.name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes indented JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
