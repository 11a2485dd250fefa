"""Writes safetensors files tensor by tensor, in any order, without holding more than one.

The format (github.com/huggingface/safetensors, "Format"): the length of the header as a little-endian uint64, the header
as JSON (dtype, shape and place of every tensor), the tensors' bytes. Since the header follows from names, shapes and
dtype alone, the files are laid out before the first tensor is there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import ml_dtypes
import numpy as np

from smallr.core.errors import UserError
from smallr.models.safetensors import INDEX, SINGLE

DTYPES: Mapping[str, tuple[np.dtype, str]] = {
    "float32": (np.dtype(np.float32), "F32"),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), "BF16"),
    "float16": (np.dtype(np.float16), "F16"),
}


class SafetensorsWriter:
    """Writes the weights of a folder: `model.safetensors`, or numbered shards with their index.

    Use it as a context: leaving it without an error checks that every tensor was written, and writes the index.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        shard_bytes: int,
        allow_nonfinite: bool = False,
    ):
        """Lays out the files.

        Args:
          folder: exists.
          shapes: of every tensor, in the order that the files will have.
          dtype: a key of DTYPES; all tensors are stored in it.
          shard_bytes: a file holds at most so much, and at least one tensor.
          allow_nonfinite: write NaN and infinite numbers as they are.

        Raises:
          UserError: an unknown dtype.
        """
        if dtype not in DTYPES:
            raise UserError(f"--dtype: {dtype!r} must be one of: {', '.join(DTYPES)}")
        self._dtype, self._code = DTYPES[dtype]
        self._folder, self._shapes = folder, dict(shapes)
        self._left = set(shapes)
        self._allow_nonfinite = allow_nonfinite
        shards = self._cut(shard_bytes)
        self._files: list[BinaryIO] = []
        self._where: dict[str, tuple[BinaryIO, int]] = {}
        self._names: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._open(name, names)

    def _cut(self, limit: int) -> list[list[str]]:
        shards: list[list[str]] = [[]]
        size = 0
        for name in self._shapes:
            if shards[-1] and size + self._bytes(name) > limit:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += self._bytes(name)
        return shards

    def _bytes(self, name: str) -> int:
        return math.prod(self._shapes[name]) * self._dtype.itemsize

    def _open(self, file_name: str, names: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # what transformers looks for
        offsets, end = {}, 0
        for name in names:
            offsets[name] = end
            end += self._bytes(name)
            header[name] = {
                "dtype": self._code,
                "shape": list(self._shapes[name]),
                "data_offsets": [offsets[name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
        file = open(self._folder / file_name, "wb")  # noqa: SIM115 - closed by __exit__
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name in names:
            self._where[name] = file, 8 + len(text) + offsets[name]
            self._names[name] = file_name

    def write(self, name: str, value: np.ndarray) -> None:
        """Puts a tensor in its place, rounded to nearest.

        Raises:
          ValueError: another shape than was announced.
          UserError: NaN or infinity, or a number that `dtype` cannot hold.
        """
        if value.shape != self._shapes[name]:
            raise ValueError(f"tensor {name}: shape {value.shape}, announced as {self._shapes[name]}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(value, dtype=self._dtype)
        finite = np.isfinite(value)
        if not np.isfinite(stored[finite]).all():
            raise UserError(f"tensor {name} overflows {self._dtype}: use --dtype=bfloat16 or float32")
        if not self._allow_nonfinite and not finite.all():
            raise UserError(f"tensor {name} has NaN or infinity; --allow_nonfinite writes it as it is")
        file, offset = self._where[name]
        file.seek(offset)
        file.write(stored.reshape(-1).view(np.uint8).data)
        self._left.discard(name)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for file in self._files:
            if kind is None:
                file.flush()
                os.fsync(file.fileno())
            file.close()
        if kind is not None:
            return
        if self._left:
            raise ValueError(f"tensors never written: {', '.join(sorted(self._left)[:4])}")
        if len(self._files) > 1:
            total = sum(map(self._bytes, self._shapes))
            index = {"metadata": {"total_size": total}, "weight_map": self._names}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
