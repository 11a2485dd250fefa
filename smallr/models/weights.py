"""Fills the parameters of a decoder from the tensors of a file, block by block."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from smallr.core.errors import UserError
from smallr.core.sharding import named_sharding
from smallr.models.config import DecoderConfig
from smallr.models.families import FAMILIES, Family, Tensor
from smallr.models.families.base import fused_shape

_ROWS = 4096  # rows of a table read at once
THREADS = min(4, os.cpu_count() or 1)  # that read pieces side by side
Convert = Callable[[tuple[str, ...], nnx.Variable], nnx.Variable]  # by the parameter's path


class TensorReader(Protocol):
    """Reads tensors under their Hugging Face names, whatever the file."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every tensor."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a block of a tensor, in any float dtype."""


def is_variable(leaf: Any) -> bool:
    """Returns whether a node of a state is a parameter with its metadata."""
    return isinstance(leaf, nnx.Variable)


def read_parameters(
    abstract: nnx.State,
    config: DecoderConfig,
    reader: TensorReader,
    mesh: Mesh,
    origin: str,
    allow_nonfinite: bool = False,
    convert: Convert | None = None,
) -> nnx.State:
    """Replaces every abstract parameter by its array.

    Args:
      abstract: state of an `nnx.eval_shape` of Decoder.
      config: its config, whose family names the tensors.
      reader: the tensors.
      mesh: where the arrays go.
      origin: the model's name, for messages.
      allow_nonfinite: take NaN and infinite weights as they are.
      convert: gets each parameter as soon as it is read, and returns what is held in its place.

    Raises:
      UserError: tensors that are missing, left over, of another shape, or not finite, by name.
    """
    leaves = dict(nnx.to_flat_state(abstract))
    stored = StoredParameters(leaves, config, reader, origin, allow_nonfinite)
    filled = []
    for path, leaf in leaves.items():
        sharding = named_sharding(mesh, leaf.get_metadata("axes"), leaf.shape)
        tensor, offset = stored.places[".".join(path)]
        leaf = leaf.replace(_read_parameter(tensor, offset, leaf.shape, sharding, stored.reader))
        filled.append((path, convert(path, leaf) if convert else leaf))
    return nnx.from_flat_state(filled)


class StoredParameters:
    """Finds the parameters of a decoder in a file, and reads them layer by layer.

    Args:
      leaves: the abstract parameters by their paths; see `read_parameters` for the others.

    Attributes:
      reader: the tensors under the table's names.
      places: for each parameter its row of the table, and where it begins along the axis that the row may be fused on.

    Raises:
      UserError: see `read_parameters`.
    """

    def __init__(
        self,
        leaves: Mapping[tuple[str, ...], nnx.Variable],
        config: DecoderConfig,
        reader: TensorReader,
        origin: str,
        allow_nonfinite: bool = False,
    ):
        family = FAMILIES[config.family]
        renamed = _Renamed(reader, family)
        if renamed.foreign:
            logging.warning(
                f"model {origin!r}: {len(renamed.foreign)} tensors of another modality are left out, e.g. "
                f"{renamed.foreign[0]}; the language model alone is loaded, and exported"
            )
        finite = _Finite(renamed, origin)
        self._shapes = {".".join(path): _one_layer(leaf.shape, path) for path, leaf in leaves.items()}
        self.places = _check(family, self._shapes, config, renamed, origin)
        self.reader: TensorReader = renamed if allow_nonfinite else finite

    def read(self, path: str, layer: int = 0) -> np.ndarray:
        """Returns a layer's part of a parameter, or a parameter that is of no layer."""
        tensor, _ = self.places[path]
        return tensor.to_param(self._stored(path, layer, slice(None)), self._shapes[path])

    def read_rows(self, path: str, layer: int) -> np.ndarray:
        """Returns a layer's part of a projection as [outputs, inputs], which most files hold as it is."""
        tensor, _ = self.places[path]
        stored = self._stored(path, layer, slice(None))
        return stored if tensor.layout == "linear" else stored.T

    def read_table(self, path: str) -> np.ndarray:
        """Returns a parameter of no layer, in pieces that are read side by side, in memory that JAX takes as it is."""
        out = aligned(self._shapes[path], np.float32)

        def fill(start: int) -> None:
            rows = slice(start, min(start + _ROWS, len(out)))
            target = out[rows]
            target[...] = self.places[path][0].to_param(self._stored(path, 0, rows), target.shape)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, range(0, len(out), _ROWS)))
        return out

    def _stored(self, path: str, layer: int, rows: slice) -> np.ndarray:
        tensor, offset = self.places[path]
        shape = self._shapes[path]
        slices = tensor.stored_slices(shape, (rows, *(slice(None),) * (len(shape) - 1)), offset)
        return self.reader.read(tensor.name.format(layer=layer), slices)


def aligned(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """Returns zeros that begin at a multiple of 64 bytes, which JAX takes without a copy on a CPU.

    They cost no memory before they are written.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _one_layer(shape: tuple[int, ...], path: tuple[str, ...]) -> tuple[int, ...]:
    return shape[1:] if path[0] == "layers" else shape


class _Renamed:
    """Reads under the table's names, without the tensors that the family ignores; `foreign` names those left out."""

    def __init__(self, reader: TensorReader, family: Family):
        self._reader = reader
        self._names: dict[str, str] = {}
        self.foreign: list[str] = []
        for stored in reader.shapes():
            name = stored
            for pattern, replacement in family.aliases:
                name = re.sub(pattern, replacement, name)
            if re.search(family.foreign, stored):
                self.foreign.append(stored)
            elif not re.search(family.ignored, name):
                self._names[name] = stored

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self._reader.shapes()
        return {name: shapes[stored] for name, stored in self._names.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._reader.read(self._names[name], index)


class _Finite:
    """Reads, and refuses NaN and infinite numbers."""

    def __init__(self, reader: TensorReader, origin: str):
        self._reader, self._origin = reader, origin

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._reader.shapes()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        block = self._reader.read(name, index)
        if not np.isfinite(block).all():
            raise UserError(
                f"model {self._origin!r}: tensor {name} holds NaN or infinite numbers, so the file is damaged or its "
                "training diverged; config.allow_nonfinite=True (of convert: --allow_nonfinite) takes it as it is"
            )
        return block


def _read_parameter(
    tensor: Tensor, offset: int, shape: tuple[int, ...], sharding: NamedSharding, reader: TensorReader
) -> jax.Array:
    """Returns one parameter. Every distinct block of this process' devices is read once; replicas share it."""

    def block(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
        out = np.empty([stop - start for start, stop, _ in bounds], np.float32)
        # Piece by piece, a layer or some rows of a table: beside `out` there is never a second copy of it.
        first, last, _ = bounds[0]
        step = 1 if tensor.stacked else _ROWS

        def fill(start: int) -> None:
            rows = slice(start, min(start + step, last))
            target = out[rows.start - first : rows.stop - first]
            if tensor.stacked:
                slices = tensor.stored_slices(shape[1:], index[1:], offset)
                stored = reader.read(tensor.name.format(layer=start), slices)
                target[0] = tensor.to_param(stored, target.shape[1:])
            else:
                stored = reader.read(tensor.name, tensor.stored_slices(shape, (rows, *index[1:]), offset))
                target[...] = tensor.to_param(stored, target.shape)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, range(first, last, step)))
        return out

    blocks: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def shared(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        if key not in blocks:
            blocks[key] = block(index)
        return blocks[key]

    # Waits for the copies to the devices: the next parameter's block must not stand beside this one's.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, shared))


def _check(
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    config: DecoderConfig,
    reader: TensorReader,
    origin: str,
) -> dict[str, tuple[Tensor, int]]:
    """Checks that every parameter has its tensor, every tensor its parameter, and that their shapes agree.

    Returns:
      For each parameter its row of the table, and where it begins along the axis that the row may be fused on.
    """
    found = reader.shapes()
    expected: dict[str, tuple[int, ...]] = {}
    stored: dict[str, tuple[Tensor, int]] = {}
    for name, parts in family.stored(config).items():
        offset = 0
        for part in parts:
            stored[part.param] = (part, offset)
            offset += part.stored_shape(shapes[part.param])[part.fused or 0]
        shape = fused_shape(parts, [shapes[part.param] for part in parts])
        expected |= {name.format(layer=n): shape for n in range(config.num_layers if parts[0].stacked else 1)}
    extra = [name for name in found if name not in expected]
    if config.tie_embeddings and "lm_head.weight" in extra:
        table = next(tensor.name for tensor in family.tensors if tensor.param == "embed.table")
        _check_tied(found, table, reader, origin)
        extra.remove("lm_head.weight")
    problems = _listed("missing", [name for name in expected if name not in found])
    problems += _listed("not part of this model", extra)
    wrong = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    problems += _listed("of another shape", [f"{name} {found[name]}, expected {expected[name]}" for name in wrong])
    if problems:
        raise UserError(f"model {origin!r} (family {config.family}): tensors {'; '.join(problems)}")
    return stored


def _check_tied(found: Mapping[str, tuple[int, ...]], table: str, reader: TensorReader, origin: str) -> None:
    """Checks a stored head beside tied embeddings: it must be the embedding, or one of the two statements is false."""
    head = "lm_head.weight"
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
