"""Reads tensors of a folder with one or several safetensors files, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

from smallr.core.errors import UserError
from smallr.models.schema import WEIGHT_INDEX, damage, inside, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFolder:
    """Reads the tensors of a Hugging Face folder, memory-mapped one at a time.

    Raises:
      UserError: no safetensors file, or one that the index names is missing; a tensor that is not where the index
        says.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._where: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        index = self.folder / INDEX
        self._index: dict[str, str] | None = read_json(index, WEIGHT_INDEX)["weight_map"] if index.exists() else None
        for name in self._file_names():
            with self._open(name) as file, damage(self.folder / name):
                for tensor in file.keys():  # noqa: SIM118
                    self._where[tensor] = name
                    self._shapes[tensor] = tuple(file.get_slice(tensor).get_shape())
        if self._index is not None:
            promised = self._index
            lost = sorted(tensor for tensor, name in promised.items() if self._where.get(tensor) != name)
            if lost:
                raise UserError(
                    f"{index}: {len(lost)} tensors are not where it says, e.g. {lost[0]!r} in {promised[lost[0]]}"
                )

    def _file_names(self) -> list[str]:
        if self._index is not None:
            for name in self._index.values():
                inside(self.folder, name)
            return sorted(set(self._index.values()))
        if (self.folder / SINGLE).exists():
            return [SINGLE]
        pickles = sorted(path.name for path in self.folder.glob("*.bin")) + sorted(
            p.name for p in self.folder.glob("*.pt*")
        )
        reason = (
            f"it has {', '.join(pickles[:3])}, but a pickle can run any code while it is read, so smallr does not; "
            "convert it first, e.g. transformers' `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new)`"
            if pickles
            else f"neither {SINGLE} nor {INDEX} is there"
        )
        raise UserError(f"{self.folder}: no safetensors weights; {reason}")

    def _open(self, name: str) -> safe_open:
        path = inside(self.folder, name)
        if not path.exists():
            raise UserError(f"{path} is missing; {INDEX} names it, so the download is not complete")
        with damage(path):
            return safe_open(str(path), framework="numpy")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every tensor."""
        return dict(self._shapes)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns a block of a tensor in the dtype of the file; only its bytes are read."""
        # The pages of a mapped file count as this process' memory until it is unmapped, so it is open for one read.
        with self._open(self._where[name]) as file, damage(self.folder / self._where[name]):
            return file.get_slice(name)[index]
