"""Fills the parameters of a decoder from the tensors of a file, block by block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from smallr.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.families import FAMILIES, Tensor
from smallr.sharding import named_sharding

# Buffers of old checkpoints that hold nothing which the config does not say.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")
_ROWS = 4096  # rows of a table compared at once


class TensorReader(Protocol):
    """Tensors under their Hugging Face names, whatever the file."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A block of a tensor, in any float dtype."""


def is_variable(leaf: Any) -> bool:
    """Whether a node of a state is a parameter with its metadata."""
    return isinstance(leaf, nnx.Variable)


def read_parameters(
    abstract: nnx.State, config: DecoderConfig, reader: TensorReader, mesh: Mesh, origin: str
) -> nnx.State:
    """Replaces every abstract parameter by its array.

    Args:
      abstract: state of an `nnx.eval_shape` of Decoder.
      config: its config, whose family names the tensors.
      reader: the tensors.
      mesh: where the arrays go.
      origin: the model's name, for messages.

    Raises:
      UserError: tensors that are missing, left over, or of another shape, by name.
    """
    leaves = dict(nnx.to_flat_state(abstract))
    table = {tensor.param: tensor for tensor in FAMILIES[config.family].tensors if tensor.exists(config)}
    rows = {path: table[".".join(path)] for path in leaves}
    _check(rows, leaves, config, reader, origin)
    filled = []
    for path, leaf in leaves.items():
        sharding = named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape)
        filled.append((path, leaf.replace(_read_parameter(rows[path], leaf.shape, sharding, reader))))
    return nnx.from_flat_state(filled)


def _read_parameter(tensor: Tensor, shape: tuple[int, ...], sharding: NamedSharding, reader: TensorReader) -> jax.Array:
    """One parameter. Every distinct block of this process' devices is read once; replicas share it."""
    stacked = "{layer}" in tensor.name

    def block(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
        out = np.empty([stop - start for start, stop, _ in bounds], np.float32)
        layers = range(bounds[0][0], bounds[0][1]) if stacked else [None]
        inner = slice(1, None) if stacked else slice(None)
        for place, layer in enumerate(layers):
            stored = reader.read(tensor.name.format(layer=layer), tensor.stored_slices(shape[inner], index[inner]))
            target = out[place] if stacked else out
            target[...] = tensor.to_param(stored, target.shape)
        return out

    blocks: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def shared(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        if key not in blocks:
            blocks[key] = block(index)
        return blocks[key]

    return jax.make_array_from_callback(shape, sharding, shared)


def _check(
    rows: Mapping[tuple[str, ...], Tensor],
    leaves: Mapping[tuple[str, ...], nnx.Variable],
    config: DecoderConfig,
    reader: TensorReader,
    origin: str,
) -> None:
    """Every parameter has its tensor, every tensor its parameter, and their shapes agree."""
    found = reader.shapes()
    expected: dict[str, tuple[int, ...]] = {}
    for path, tensor in rows.items():
        stacked = "{layer}" in tensor.name
        shape = tensor.stored_shape(leaves[path].shape[1:] if stacked else leaves[path].shape)
        expected |= {tensor.name.format(layer=n): shape for n in range(config.num_layers if stacked else 1)}
    extra = [name for name in found if name not in expected and not _DERIVED.search(name)]
    if config.tie_embeddings and "lm_head.weight" in extra:
        _check_tied(found, reader, origin)
        extra.remove("lm_head.weight")
    problems = _listed("missing", [name for name in expected if name not in found])
    problems += _listed("not part of this model", extra)
    wrong = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    problems += _listed("of another shape", [f"{name} {found[name]}, expected {expected[name]}" for name in wrong])
    if problems:
        raise UserError(f"model {origin!r} (family {config.family}): tensors {'; '.join(problems)}")


def _check_tied(found: Mapping[str, tuple[int, ...]], reader: TensorReader, origin: str) -> None:
    """A stored head beside tied embeddings must be the embedding, or one of the two statements is false."""
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    same = found[head] == found.get(table)
    for start in range(0, found[head][0] if same else 0, _ROWS):
        index = (slice(start, min(start + _ROWS, found[head][0])), slice(None))
        same = same and np.array_equal(reader.read(head, index), reader.read(table, index))
    if not same:
        raise UserError(
            f"model {origin!r}: config.json says tie_word_embeddings, but {head} differs from {table}; "
            "set tie_word_embeddings to false in config.json to use the head, or remove the tensor"
        )


def _listed(problem: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"{problem}: {', '.join(names[:4])}{more}"] if names else []
