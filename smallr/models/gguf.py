"""Reads GGUF files: metadata as a config, quantised tensors as float32 under their Hugging Face names."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.families import FAMILIES, Family
from smallr.models.gguf_header import check_header
from smallr.models.schema import GGUF, check, check_config, damage

# GGUF key (after the architecture's name) -> key of config.json. Families refuse what they can not compute.
_KEYS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "expert_count": "num_experts",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}
# Divisors of the rotary frequencies: Llama 3.1's scaling, written out, and those of LongRoPE.
_LENGTH = struct.Struct("<Q")
_PIECE = 2**17  # bytes that are dequantised at once
_PLAIN = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
_ROPE_FACTORS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"


class _Reader(gguf.GGUFReader):
    """Reads lists at once, and cuts plain arrays out of the mapped file.

    A vocabulary and its merges are 10^5 texts: item by item, as the package reads them, they take a second, and of a
    memmap each slice costs five times as much.
    """

    @property
    def data(self) -> np.ndarray:
        """Returns the bytes of the file, which stay on the disk until they are read."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self.mapped, self._bytes = mapped, mapped.view(np.ndarray)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[np.ndarray], list[int], list[gguf.GGUFValueType]]:
        """Returns size, parts, indices of the parts with values, and types, as the package does (the header is checked)."""
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        start = orig_offs + 12  # behind the type of the items and their number
        kind = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0])
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        if kind == gguf.GGUFValueType.STRING:
            values, end = self._texts(start, count)
        else:
            numbers = self._get(start, self.gguf_scalar_to_np[kind], count)
            values, end = list(numbers.reshape(-1, 1)), start + numbers.nbytes
        parts = [self._bytes[orig_offs : orig_offs + 4], self._bytes[orig_offs + 4 : start], *values]
        types = [gguf.GGUFValueType.ARRAY, *([kind] if count else [])]
        return end - orig_offs, parts, list(range(2, len(parts))), types

    def _texts(self, start: int, count: int) -> tuple[list[np.ndarray], int]:
        """Returns the bytes of texts, each behind its length, and where they end."""
        texts = []
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(self._bytes, start)
            texts.append(self._bytes[start + 8 : start + 8 + size])
            start += 8 + size
        return texts, start


class GGUFFile:
    """Reads one open GGUF file, memory-mapped.

    Attributes:
      path: the file.
      config: the decoder that it describes.

    Raises:
      UserError: not a GGUF file, an unsupported architecture, or a config that the decoder can not compute.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_header(self.path)
        with damage(self.path):
            self._file = _Reader(str(path))
        self._stored = {tensor.name: tensor for tensor in self._file.tensors}
        self.family = self._find_family()
        with damage(self.path):
            hf = self.hf_config()
        check_config(hf, str(self.path))
        self.config: DecoderConfig = self.family.config(hf)
        self._names = self._hf_names()
        # The converter turns GPT-2's weights round, so that all files hold [outputs, inputs].
        transposed = [tensor.name for tensor in self.family.tensors if tensor.layout == "conv1d"]
        self._transposed = {name.format(layer=layer) for name in transposed for layer in range(self.config.num_layers)}

    def metadata(self, key: str, default: Any = None) -> Any:
        """Returns the value of a metadata key, or `default`.

        Raises:
          UserError: the value is of another type than the key has.
        """
        field = self._file.get_field(key)
        if field is None:
            return default
        with damage(self.path):
            value = field.contents()
        if key in GGUF:
            check({key: value}, GGUF, str(self.path))
        return value

    def hf_config(self) -> dict[str, Any]:
        """Returns the metadata as a `config.json` of the family."""
        arch = self.metadata("general.architecture")
        hf = {new: self.metadata(f"{arch}.{old}") for old, new in _KEYS.items()}
        hf = {key: value for key, value in hf.items() if value is not None}
        check_config(hf, str(self.path))
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
            if key not in hf:
                raise UserError(f"{self.path}: its metadata do not say {key}")
        if "token_embd.weight" not in self._stored:
            raise UserError(f"{self.path}: no tensor 'token_embd.weight'; is this a language model?")
        # Sizes come from the tensors where both say them: the vocabulary may be padded, the head left out if tied.
        hf |= {
            "model_type": self.family.model_types[0],
            "vocab_size": int(self._stored["token_embd.weight"].shape[1]),
            "tie_word_embeddings": "output.weight" not in self._stored,
            "attention_bias": "blk.0.attn_output.bias" in self._stored,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._stored,
        }
        hf.setdefault("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
        rotary = self.metadata(f"{arch}.rope.dimension_count", hf["head_dim"])
        hf |= {"partial_rotary_factor": rotary / hf["head_dim"], "rope_scaling": self._rope_scaling(arch)}
        return dict(self.family.gguf_config(hf))

    def _rope_scaling(self, arch: str) -> dict[str, Any] | None:
        if _ROPE_FACTORS in self._stored:
            return {"rope_type": "factors", "factors": self._dequantise(_ROPE_FACTORS, slice(None)).tolist()}
        long = self._rope_divisors() if _LONG in self._stored else {}
        kind = "longrope" if long else self.metadata(f"{arch}.rope.scaling.type")
        if kind in (None, "none"):
            return None
        scaling = {
            "rope_type": kind,
            "factor": self.metadata(f"{arch}.rope.scaling.factor"),
            "original_max_position_embeddings": self.metadata(f"{arch}.rope.scaling.original_context_length"),
            "attention_factor": self.metadata(f"{arch}.rope.scaling.attn_factor"),
            **long,
        }
        return {key: value for key, value in scaling.items() if value is not None}

    def _rope_divisors(self) -> dict[str, list[float]]:
        names = {"short_factor": _SHORT, "long_factor": _LONG}
        return {key: self._dequantise(name, slice(None)).tolist() for key, name in names.items()}

    def _find_family(self) -> Family:
        arch = self.metadata("general.architecture")
        for family in FAMILIES.values():
            if arch in family.gguf_architectures:
                return family
        supported = ", ".join(name for family in FAMILIES.values() for name in family.gguf_architectures)
        keys = [key for key in self._file.fields if key.startswith(f"{arch}.")]
        peculiar = [key for key in keys if key.partition(".")[2] not in {*_KEYS, "rope.dimension_count", "vocab_size"}]
        raise UserError(
            f"{self.path}: GGUF architecture {arch!r} is not supported; supported: {supported}. "
            f"What this one says beyond Llama: {', '.join(peculiar[:6]) or 'nothing but its name'}"
        )

    def _hf_names(self) -> dict[str, str]:
        """Maps Hugging Face names to GGUF names of all tensors; one without a translation keeps its own name."""
        arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[self.metadata("general.architecture")]
        table = gguf.get_tensor_name_map(arch, self.config.num_layers)
        names = {}
        for tensor in self.family.tensors:
            for layer in range(self.config.num_layers if "{layer}" in tensor.name else 1):
                name = tensor.name.format(layer=layer)
                names[name] = table.get_name(name, try_suffixes=(".weight", ".bias"))
        known = {name: stored for name, stored in names.items() if stored in self._stored}
        rest = set(self._stored) - set(known.values()) - {_ROPE_FACTORS, _SHORT, _LONG}
        return known | {name: name for name in sorted(rest)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every tensor, by its Hugging Face name."""
        shapes = {name: tuple(int(n) for n in self._stored[stored].shape) for name, stored in self._names.items()}
        return {name: shape if name in self._transposed else shape[::-1] for name, shape in shapes.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a float32 block of a tensor; only the rows asked for are dequantised."""
        if name in self._transposed:
            return self._dequantise(self._names[name], index[1])[:, index[0]].T
        block = self._dequantise(self._names[name], index[0])
        if name.endswith("norm.weight"):
            block = block - np.float32(self.config.norm_offset)  # the converter adds it
        if self.family.gguf_interleaved and (".q_proj." in name or ".k_proj." in name):
            block = deinterleave(block, self.config.head_dim)
        return block[(slice(None), *index[1:])]

    def _dequantise(self, stored: str, rows: slice) -> np.ndarray:
        tensor = self._stored[stored]
        with damage(self.path):
            try:
                block = _dequantised(tensor.data[rows], tensor.tensor_type)
            except NotImplementedError:
                kind = tensor.tensor_type.name
                raise UserError(
                    f"{self.path}: tensor {stored!r} is quantised as {kind}, which the gguf package can not read"
                ) from None
        # Pages of a mapped file count as this process' memory until they are given back; they are read again if needed.
        self._file.mapped._mmap.madvise(mmap.MADV_DONTNEED)
        return block


def _dequantised(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Returns stored rows as float32, in pieces that fit a cache.

    The package takes sixteen rows at a time, which are so few numbers that calling NumPy costs more than its work. A piece
    is one row to it: codes of a block know nothing of the row that they stand in.
    """
    if data.ndim == 1 or kind in _PLAIN:
        return gguf.quants.dequantize(data, kind)
    rows = max(1, _PIECE // data.shape[1])
    pieces = (data[start : start + rows] for start in range(0, len(data), rows))
    return np.concatenate(
        [gguf.quants.dequantize(piece.reshape(1, -1), kind).reshape(len(piece), -1) for piece in pieces]
    )


def deinterleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes the converter's order of q and k rows: within a head [half, 2] back to [2, half]."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)
