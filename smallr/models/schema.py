"""Checks the files of a model: every field with its type and range, in one place.

Whatever is beside it, wrong in type or beyond its range, is one `UserError` that names the file and the field.
Fields that are not listed here are not read, or are compared with the values that a family knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError

MAX_JSON_BYTES = 256 * 2**20  # the largest published tokenizer.json has 35 MB


@dataclasses.dataclass(frozen=True)
class Field:
    """Describes a value that a file may hold; null stands for a missing one.

    Attributes:
      kind: "int", "number", "bool", "str", "dict" or "list".
      low, high: bounds of a number, of a list's length or of a text's length; both included.
      above: excluded lower bound of a number.
      items: of a list.
      also: another field that the value may be instead.
      null: whether null may stand for a missing value.
    """

    kind: str
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    items: Field | None = None
    also: Field | None = None
    null: bool = True

    def problem(self, value: Any) -> str:
        """Says what is wrong with a value; empty if nothing is."""
        if value is None:
            return "" if self.null else f"null is not {self.describe()}"
        problem = self._problem(value)
        if problem and self.also is not None:
            return "" if not self.also.problem(value) else problem
        return problem

    def _problem(self, value: Any) -> str:
        if not _KINDS[self.kind](value):
            return self._wrong(value)
        size = len(value) if self.kind in ("list", "str") else value if self.kind in ("int", "number") else None
        # Comparisons with NaN are false.
        if size is not None and not (self.low <= size <= self.high and size > self.above):
            return self._wrong(value)
        if self.items is not None and not self.items.all_right(value):
            found = ((index, self.items.problem(item)) for index, item in enumerate(value))
            return next((f"item {index}: {problem}" for index, problem in found if problem), "")
        return ""

    def all_right(self, values: Sequence[Any]) -> bool:
        """Returns whether plain values are all right, in passes that Python makes in C: a vocabulary has 10^5 items.

        Where the answer is no, they are looked at one by one.
        """
        if self.also is not None or not set(map(type, values)) <= _PLAIN.get(self.kind, frozenset()):
            return False
        if self.kind == "bool" or not values:
            return True
        if self.kind == "number" and not all(map(math.isfinite, values)):
            return False
        sizes = list(map(len, values)) if self.kind == "str" else values
        least = min(sizes)
        return self.low <= least and max(sizes) <= self.high and least > self.above

    def _wrong(self, value: Any) -> str:
        return f"{_short(value)} is not {self.describe()}"

    def describe(self) -> str:
        """Returns the values that are allowed, for messages."""
        name = {"int": "a whole number", "bool": "true or false", "str": "text", "dict": "an object"}
        text = f"a list of {self.items.describe()}" if self.items else name.get(self.kind, f"a {self.kind}")
        sized = {"list": " of a length", "str": " of a length"}.get(self.kind, "")
        if self.above > -math.inf:
            text += f"{sized} above {self.above:g}"
        elif self.low > -math.inf:
            text += f"{sized} of at least {self.low:g}"
        if self.high < math.inf:
            text += (
                f"{'' if '>' in text or self.low > -math.inf or self.above > -math.inf else sized} up to {self.high:g}"
            )
        return f"{text} or {self.also.describe()}" if self.also else text


_KINDS = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "dict": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list | tuple),
}

# Types of a kind's values; whatever else is of the kind is looked at by itself.
_PLAIN = {
    "int": frozenset({int}),
    "number": frozenset({int, float}),
    "bool": frozenset({bool}),
    "str": frozenset({str}),
}

_WIDTH, _COUNT = Field("int", low=1, high=2**20), Field("int", low=1, high=2**14)
_LAYERS, _POSITIONS = Field("int", low=1, high=1000), Field("int", low=1, high=2**30)
_EPS, _POSITIVE = Field("number", above=0, high=1), Field("number", above=0, high=1e12)
_THETA, _BOOL, _TEXT, _OBJECT = (
    Field("number", above=1, high=1e12),
    Field("bool"),
    Field("str", high=200),
    Field("dict"),
)
_PER_LAYER = {"low": 1, "high": 1000}
_FACTORS = Field("list", low=1, high=2**14, items=Field("number", above=0, high=1e12, null=False))
_TOKEN_ID = Field("int", low=-1, high=2**31 - 1)  # -1 stands for none in older files
_TOKEN_IDS = dataclasses.replace(
    _TOKEN_ID, also=Field("list", high=1000, items=dataclasses.replace(_TOKEN_ID, null=False))
)
_TOKEN = Field("str", high=10_000, also=_OBJECT)

CONFIG: Mapping[str, Field] = {
    **dict.fromkeys(("hidden_size", "n_embd", "intermediate_size", "n_inner", "head_dim"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), _COUNT),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), _LAYERS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "original_max_position_embeddings"), _POSITIONS),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon"), _EPS),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), _THETA),
    **dict.fromkeys(
        ("query_pre_attn_scalar", "attention_multiplier", "attn_logit_softcapping", "final_logit_softcapping"),
        _POSITIVE,
    ),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), _BOOL),
    **dict.fromkeys(("model_type", "activation_function", "hidden_act", "hidden_activation"), _TEXT),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _TOKEN_IDS),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "text_config"), _OBJECT),
    "vocab_size": Field("int", low=1, high=2**26),
    "architectures": Field("list", high=100, items=Field("str", null=False)),
    "partial_rotary_factor": Field("number", above=0, high=1),
    "sliding_window": Field("int", low=0, high=2**30),
    "max_window_layers": Field("int", low=0, high=2**20),
    "sliding_window_pattern": Field("int", low=1, high=1000),
    "no_rope_layer_interval": Field("int", low=1, high=1000),
    "no_rope_layers": Field("list", **_PER_LAYER, items=Field("int", low=0, high=1, null=False)),
    "layer_types": Field("list", **_PER_LAYER, items=Field("str", null=False)),
}
ROPE: Mapping[str, Field] = {
    **dict.fromkeys(("rope_type", "type"), _TEXT),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), _POSITIVE),
    **dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"), _POSITIVE),
    **dict.fromkeys(("short_factor", "long_factor", "factors"), _FACTORS),
    "rope_theta": _THETA,
    "original_max_position_embeddings": Field("int", low=2, high=2**30),
    "partial_rotary_factor": Field("number", above=0, high=1),
    "truncate": _BOOL,
    **dict.fromkeys(("full_attention", "sliding_attention"), _OBJECT),  # of each kind of layer
}
GENERATION: Mapping[str, Field] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _TOKEN_IDS)
TEMPLATE = Field("str", high=2**20)
TOKENIZER_CONFIG: Mapping[str, Field] = {
    **dict.fromkeys(
        ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"), _TOKEN
    ),
    "chat_template": dataclasses.replace(TEMPLATE, also=Field("list", high=100, items=Field("dict", null=False))),
    "added_tokens_decoder": _OBJECT,
    "additional_special_tokens": Field("list", high=2**20, items=dataclasses.replace(_TOKEN, null=False)),
    "model_max_length": Field("number", low=1, high=1e31),  # transformers writes 1e30 for none
    "tokenizer_class": _TEXT,
}
TOKENIZER: Mapping[str, Field] = {
    "model": Field("dict", null=False),
    "added_tokens": Field("list", high=2**26, items=Field("dict", null=False)),
}
# adapter_config.json of PEFT, of LoRA and of prompt tuning
ADAPTER: Mapping[str, Field] = {
    "peft_type": _TEXT,
    "base_model_name_or_path": Field("str", high=4096),
    "r": _COUNT,
    "lora_alpha": _POSITIVE,
    "lora_dropout": Field("number", low=0, high=1),
    "use_rslora": _BOOL,
    "num_virtual_tokens": _WIDTH,
    "num_transformer_submodules": Field("int", low=1, high=2),
}
WEIGHT_INDEX: Mapping[str, Field] = {"weight_map": Field("dict", null=False)}
# Values of GGUF metadata; those of `smallr.models.gguf` that become a config are checked as one.
_IDS, _WORDS = Field("int", low=0, high=2**31 - 1), Field("list", low=1, high=2**26, items=Field("str", null=False))
GGUF: Mapping[str, Field] = {
    **dict.fromkeys(("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"), _TEXT),
    **dict.fromkeys(
        [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "unknown", "padding")],
        _IDS,
    ),
    **dict.fromkeys([f"tokenizer.ggml.add_{name}" for name in ("bos_token", "eos_token", "space_prefix")], _BOOL),
    **dict.fromkeys(("tokenizer.ggml.tokens", "tokenizer.ggml.merges"), _WORDS),
    "tokenizer.ggml.scores": Field("list", low=1, high=2**26, items=Field("number", null=False)),
    "tokenizer.ggml.token_type": Field("list", low=1, high=2**26, items=Field("int", null=False)),
    "tokenizer.chat_template": TEMPLATE,
}


def check(values: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> None:
    """Checks the fields that are there.

    Args:
      values: of a file.
      fields: what is allowed.
      where: the file, for messages.

    Raises:
      UserError: a value of another type or beyond its range; the field is named.
    """
    for name, field in fields.items():
        if name in values or not field.null:
            problem = field.problem(values.get(name))
            if problem:
                raise UserError(f"{where}: {name}: {problem}")


def check_config(hf: Mapping[str, Any], where: str = "config.json") -> None:
    """Checks a `config.json`, and the `text_config` and rotary parameters in it.

    Raises:
      UserError: see `check`; or per-layer lists of another length than there are layers, or heads that do not divide.
    """
    check(hf, CONFIG, where)
    for name in ("rope_scaling", "rope_parameters"):
        for kind, rope in {"": hf.get(name) or {}, **(hf.get(name) or {})}.items():
            if isinstance(rope, dict):
                check(rope, ROPE, f"{where}: {name}{f'.{kind}' if kind else ''}")
    layers = hf.get("num_hidden_layers")
    for name in ("layer_types", "no_rope_layers"):
        if layers and hf.get(name) and len(hf[name]) != layers:
            raise UserError(f"{where}: {name} has {len(hf[name])} entries for {layers} layers")
    heads, width = hf.get("num_attention_heads") or hf.get("n_head"), hf.get("hidden_size") or hf.get("n_embd")
    if heads and width and not hf.get("head_dim") and width % heads:
        raise UserError(f"{where}: {heads} attention heads do not divide the hidden size {width}")
    if hf.get("text_config"):
        check_config(hf["text_config"], f"{where}: text_config")


def read_json(path: Path, fields: Mapping[str, Field] = {}) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
      path: the file.
      fields: what it may say.

    Raises:
      UserError: it cannot be read, is too large, is no JSON object, has a key twice, or breaks `fields`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise UserError(f"{path}: the key {twice!r} stands there twice")
        return found

    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} has over {MAX_JSON_BYTES} bytes: it is not the file that its name says")
        content = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is expected, found {_short(content)}")
    check(content, fields, str(path))
    return content


def inside(folder: Path, name: Any) -> Path:
    """Returns the file of a folder that another file names.

    Links lead out of a folder in the hub's cache alone, into the blobs of the same repository.

    Raises:
      UserError: no file in this folder has that name, or the file is a link to somewhere else.
    """
    if not isinstance(name, str) or not 0 < len(name) < 200 or name in (".", "..") or set(name) & set("/\\\0"):
        raise UserError(f"{folder}: {_short(name)} is not the name of a file in this folder")
    path, root = folder / name, folder.resolve()
    allowed = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    with damage(path):
        target = path.resolve()
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise UserError(f"{path} is a link to {target}, outside of the model's folder: copy the file into the folder")
    return path


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns what a library raises while it reads a file into one error that names the file.

    Libraries raise classes of all kinds for damaged files; panics of Rust code are not even an `Exception`.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit, ImportError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path} is damaged or of another format ({type(error).__name__}: {reason}); get the file again"
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
