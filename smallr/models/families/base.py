"""Defines a family of models: its names for things. The mathematics is in one `Decoder` for all."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from smallr.core.errors import UserError
from smallr.data.errors import shorten
from smallr.models.config import DecoderConfig, RopeScaling

Layout = Literal["same", "flat", "linear", "conv1d"]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Is one row of a family's table: a tensor of the checkpoint and the parameter that it fills.

    Attributes:
      name: name in Hugging Face safetensors; `{layer}` where there is one per layer.
      param: dotted path in `Decoder`; the parameters of layers are stacked on a leading axis.
      layout: "same"; "flat": stored with all axes merged into one; "linear": stored [outputs, inputs], here
        [*inputs, *outputs], the merged axes on either side apart; "conv1d": stored [inputs, outputs] (GPT-2).
      inputs: for "linear" and "conv1d", how many axes of the parameter are inputs.
      fused: None, or the axis of the stored tensor along which it holds several parameters: the rows of a table
        with one name are its parts, in the table's order.
      when: field of DecoderConfig that must be true for the tensor to exist; "!field" negates.
    """

    name: str
    param: str
    layout: Layout = "same"
    inputs: int = 1
    fused: int | None = None
    when: str = ""

    def exists(self, config: DecoderConfig) -> bool:
        """Returns whether a model of this config has the tensor."""
        return not self.when or bool(getattr(config, self.when.lstrip("!"))) != self.when.startswith("!")

    @property
    def stacked(self) -> bool:
        """Returns whether there is one per layer."""
        return "{layer}" in self.name

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in the checkpoint of a parameter (one layer's) of `shape`; of its part if it is fused with others."""
        return tuple(math.prod(shape[axes]) for axes in self._stored_axes(len(shape)))

    def stored_slices(self, shape: tuple[int, ...], index: tuple[slice, ...], offset: int = 0) -> tuple[slice, ...]:
        """Returns the part of the stored tensor that holds `param[index]`, for a parameter (one layer's) of `shape`.

        Args:
          shape: the parameter's.
          index: a block of it.
          offset: where the parameter begins along the `fused` axis.

        Raises:
          ValueError: an index that is not one block of the stored tensor (only the first of several merged
            axes can be split).
        """
        slices = [_merged(shape[axes], index[axes]) for axes in self._stored_axes(len(shape))]
        if self.fused is not None:
            part = slices[self.fused]
            slices[self.fused] = slice(part.start + offset, part.stop + offset)
        return tuple(slices)

    def to_param(self, stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the stored block as a block of the parameter, of `shape`; a view where numpy can give one."""
        if self.layout != "linear":
            return stored.reshape(shape)
        outputs = shape[self.inputs :]
        view = stored.reshape(*outputs, *shape[: self.inputs])
        return np.moveaxis(view, range(len(outputs)), range(self.inputs, len(shape)))

    def to_stored(self, param: np.ndarray) -> np.ndarray:
        """Inverts `to_param` for a whole parameter (one layer's); `join` puts the parts of a fused one together."""
        if self.layout != "linear":
            return param.reshape(self.stored_shape(param.shape))
        return param.reshape(math.prod(param.shape[: self.inputs]), -1).T

    def _stored_axes(self, ndim: int) -> list[slice]:
        """Returns for each axis of the stored tensor the axes of the parameter that are merged in it."""
        if self.layout == "same":
            return [slice(axis, axis + 1) for axis in range(ndim)]
        if self.layout == "flat":
            return [slice(0, ndim)]
        if self.layout == "conv1d":
            return [slice(0, self.inputs), slice(self.inputs, ndim)]
        return [slice(self.inputs, ndim), slice(0, self.inputs)]


def fused_shape(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of the stored tensor that holds these parts, from the parameters' (one layer's) shapes."""
    stored = [part.stored_shape(shape) for part, shape in zip(parts, shapes, strict=True)]
    axis = parts[0].fused
    if axis is None:
        return stored[0]
    return (*stored[0][:axis], sum(shape[axis] for shape in stored), *stored[0][axis + 1 :])


def join(parts: Sequence[Tensor], params: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the stored tensor of its parts' parameters (one layer's), whole."""
    stored = [part.to_stored(param) for part, param in zip(parts, params, strict=True)]
    return stored[0] if parts[0].fused is None else np.concatenate(stored, parts[0].fused)


def _merged(shape: tuple[int, ...], index: tuple[slice, ...]) -> slice:
    """Returns the index of several axes as the index of their merged axis."""
    inner = math.prod(shape[1:])
    if any(part.indices(size) != (0, size, 1) for part, size in zip(index[1:], shape[1:], strict=True)):
        raise ValueError(f"only the first of the merged axes {shape} may be split over devices, got {index}")
    start, stop, _ = index[0].indices(shape[0])
    return slice(start * inner, stop * inner)


@dataclasses.dataclass(frozen=True)
class Family:
    """Translates a family's configs and holds its table of tensors.

    Attributes:
      name: value of `DecoderConfig.family`.
      model_types: values of `model_type` in `config.json`.
      config: translates the dict; raises UserError on what it can not express.
      tensors: every tensor of a checkpoint, once.
      aliases: (pattern, replacement) of names in files that spell the table's names otherwise; `re.sub`, in order.
      ignored: pattern of tensors that hold nothing which the config does not say.
      foreign: pattern of tensors of another modality, which are left out; loading says so.
      text: the `config.json` of the language model in one of several modalities; any other as it is.
      gguf_architectures: values of `general.architecture` in GGUF files.
      gguf_interleaved: the GGUF converter of this family stores q and k with rotary pairs interleaved.
      gguf_config: completes the `config.json` that a GGUF file's metadata were written as, with what llama.cpp
        knows by heart about the family.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], DecoderConfig]
    tensors: tuple[Tensor, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: str = r"\.rotary_emb\.inv_freq$"
    foreign: str = r"(?!)"
    text: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda hf: hf
    gguf_architectures: tuple[str, ...] = ()
    gguf_interleaved: bool = False
    gguf_config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda hf: hf

    def stored(self, config: DecoderConfig) -> dict[str, tuple[Tensor, ...]]:
        """Returns the tensors of a checkpoint of this config: name, `{layer}` in it, and parts; several if fused."""
        parts: dict[str, tuple[Tensor, ...]] = {}
        for tensor in self.tensors:
            if tensor.exists(config):
                parts[tensor.name] = (*parts.get(tensor.name, ()), tensor)
        return parts


TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that change the mathematics, with the values under which they change nothing. A family that handles
# a key takes it out by naming it in `handled`.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "attention_dropout": (None, 0, 0.0),
    "hidden_dropout": (None, 0, 0.0),
    "resid_pdrop": (None, 0, 0.0),
    "embd_pdrop": (None, 0, 0.0),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "residual_multiplier": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "partial_rotary_factor": (None, 1, 1.0),
    "rope_interleaved": (None, False),
    "rope_local_base_freq": (None,),
    "no_rope_layers": (None,),
    "no_rope_layer_interval": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "use_sliding_window": (None, False),
    "sliding_window": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "quantization_config": (None,),
}


def check_neutral(hf: Mapping[str, Any], handled: tuple[str, ...] = ()) -> None:
    """Refuses keys of `config.json` that ask for mathematics which the decoder does not compute.

    Raises:
      UserError: names the key, its value, and the values that would be fine.
    """
    for key, allowed in _NEUTRAL.items():
        if key in handled or key not in hf or any(hf[key] == value for value in allowed):
            continue
        fine = " or ".join("absent" if value is None else repr(value) for value in allowed)
        raise UserError(
            f"config.json of model_type {hf.get('model_type')!r}: {key} = {shorten(hf[key])} is not supported "
            f"(it must be {fine}); the numbers would be wrong without it"
        )


# Keys under which a Llama says how large it is and how it was written, and those of use in generation alone.
_PLAIN = (
    r"_|.*_token_id$|(torch_)?dtype$|(model_type|architectures|auto_map|initializer_range|use_cache|pretraining_tp|"
    r"transformers_version|vocab_size|hidden_size|intermediate_size|num_hidden_layers|num_attention_heads|head_dim|"
    r"num_key_value_heads|max_position_embeddings|rms_norm_eps|rope_theta|rope_scaling|rope_parameters|"
    r"tie_word_embeddings)$"
)


def beyond_llama(hf: Mapping[str, Any], most: int = 6) -> str:
    """Returns what a `config.json` says that a plain Llama's does not, for the refusal of an unknown family."""
    entries = [
        f"{key} = {str(value)[:40]}"
        for key, value in hf.items()
        if not re.match(_PLAIN, key) and value and value not in _NEUTRAL.get(key, ())
    ]
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return f"{', '.join(entries[:most])}{more}" or "nothing but its name"


def required(hf: Mapping[str, Any], key: str) -> Any:
    """Returns `hf[key]`, or an error that names the key."""
    if hf.get(key) is None:
        raise UserError(f"config.json of model_type {hf.get('model_type')!r} has no {key!r}")
    return hf[key]


def windows_of(hf: Mapping[str, Any], kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """Returns the fields `window` and `full_layers`.

    Args:
      hf: the dict; its `layer_types`, if it has them, come before `kinds`.
      kinds: "sliding_attention" or "full_attention" for each layer.
      window: positions that a sliding layer sees.

    Raises:
      UserError: another kind of layer.
    """
    kinds = hf.get("layer_types") or kinds
    other = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if other:
        raise UserError(
            f"config.json of model_type {hf.get('model_type')!r}: layers of type {other[0]!r} are not supported"
        )
    full = tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
    if window is None or len(full) == len(kinds):
        return {"window": None, "full_layers": ()}
    return {"window": int(window), "full_layers": full}


def activation_of(hf: Mapping[str, Any], key: str, default: str) -> str:
    """Returns `DecoderConfig.activation` under transformers' name for it in `hf[key]`."""
    names = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    name = hf.get(key) or default
    if name not in names:
        known = ", ".join(names)
        raise UserError(
            f"config.json of model_type {hf.get('model_type')!r}: {key} = {name!r} is not supported ({known} are)"
        )
    return names[name]


def rope_of(hf: Mapping[str, Any], theta: float = 10000.0, partial: bool = False) -> tuple[float, RopeScaling | None]:
    """Returns theta and scaling, from `rope_parameters` (newer) or `rope_theta` and `rope_scaling` (older files).

    Args:
      hf: the dict.
      theta: the family's, where the file says none.
      partial: the family reads `partial_rotary_factor` itself; otherwise it must be 1.

    Raises:
      UserError: a kind of scaling that is not supported, a missing number, or layers that rotate differently.
    """
    rope = dict(rope_dict(hf))
    theta = float(rope.pop("rope_theta", None) or hf.get("rope_theta") or theta)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0) and not partial:
        raise UserError(f"rope partial_rotary_factor {rope['partial_rotary_factor']} is not supported (it must be 1.0)")
    if kind == "default":
        return theta, None
    try:
        if hf.get("original_max_position_embeddings"):
            rope.setdefault("original_max_position_embeddings", hf["original_max_position_embeddings"])
        return theta, _scaling(kind, rope, int(hf.get("max_position_embeddings") or 0))
    except KeyError as error:
        raise UserError(f"rope scaling {kind!r} in config.json has no {error}") from None


LAYER_KINDS = ("full_attention", "sliding_attention")


def rope_dict(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the rotary parameters that all layers of a model share.

    Files of transformers 5 may hold them for each kind of layer.

    Raises:
      UserError: kinds of layers that this model has rotate differently, or one says no `rope_theta`.
    """
    key = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    rope = hf.get(key) or {}
    nested = {kind: value for kind, value in rope.items() if isinstance(value, Mapping)}
    if not nested:
        return rope
    where = f"config.json of model_type {hf.get('model_type')!r}: {key}"
    if others := sorted(set(rope) - set(LAYER_KINDS)):
        raise UserError(f"{where}: {others[0]!r} beside parameters of kinds of layers is not supported")
    kinds = sorted(set(hf.get("layer_types") or nested))
    for kind in kinds:
        if nested.get(kind, {}).get("rope_theta") is None:
            raise UserError(f"{where} says no rope_theta for layers of type {kind!r}")
    if any(nested[kind] != nested[kinds[0]] for kind in kinds):
        raise UserError(
            f"{where} differs between {' and '.join(kinds)}, which this family does not compute; where all layers are "
            "of one kind, name it for each layer in layer_types"
        )
    return nested[kinds[0]]


def _scaling(kind: str, rope: Mapping[str, Any], max_positions: int) -> RopeScaling:
    if kind == "linear":
        return RopeScaling("linear", factor=float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=float(rope["factor"]),
            original_max_positions=int(rope["original_max_position_embeddings"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
        )
    if kind == "factors":  # written by the GGUF reader, which finds the divisors in the file
        return RopeScaling("factors", factors=tuple(map(float, rope["factors"])))
    if kind == "yarn":
        original = int(rope.get("original_max_position_embeddings") or max_positions)
        factor = float(rope.get("factor") or max_positions / original)
        return RopeScaling(
            "yarn",
            factor=factor,
            original_max_positions=original,
            beta_fast=float(rope.get("beta_fast") or 32.0),
            beta_slow=float(rope.get("beta_slow") or 1.0),
            attention_factor=_yarn_attention_factor(rope, factor),
            truncate=bool(rope.get("truncate", True)),
        )
    if kind in ("longrope", "su"):
        return _longrope(rope, max_positions)
    hint = ""
    if kind == "dynamic":
        hint = (
            "; its frequencies change with the longest position in a batch, so a packed row would not equal its "
            "examples. Up to max_position_embeddings it has no effect: remove rope_scaling if your rows are no longer"
        )
    raise UserError(f"rope scaling {kind!r} is not supported (default, linear, llama3, yarn, longrope are){hint}")


def _longrope(rope: Mapping[str, Any], max_positions: int) -> RopeScaling:
    """Reads LongRoPE (arXiv 2402.13753): one set of divisors up to the original length, another beyond."""
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope.get("factor") or max_positions / original)
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        "longrope",
        factor=factor,
        original_max_positions=original,
        attention_factor=float(attention_factor),
        factors=tuple(map(float, rope["short_factor"])),
        long_factors=tuple(map(float, rope["long_factor"])),
    )


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    """Returns 0.1 ln(s) + 1 (arXiv 2309.00071, eq. 22), or the ratio that DeepSeek's two mscale keys ask for."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1.0)
