"""Describes Gemma 3, text (arXiv 2503.19786): five layers with a window and their own rotary base to one that sees all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.families import gemma2, qwen3
from smallr.models.families.base import LAYER_KINDS, TOKEN_IDS, Family, check_neutral, required, windows_of

# The published multimodal files leave out of `text_config` what transformers has as default.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Returns the decoder that `model_type: gemma3_text` describes, or the `text_config` of `model_type: gemma3`."""
    hf = text_of(hf)
    check_neutral(hf, handled=gemma2.HANDLED)
    if hf.get("use_bidirectional_attention"):
        raise UserError("config.json: use_bidirectional_attention makes an encoder; smallr trains decoders")
    layers, period = int(required(hf, "num_hidden_layers")), int(hf.get("sliding_window_pattern") or 6)
    kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]
    rope, local_theta = _ropes(hf)
    return DecoderConfig(
        family="gemma3",
        qk_norm="head",
        local_rope_theta=local_theta,
        attention_softcap=hf.get("attn_logit_softcapping"),
        final_softcap=hf.get("final_logit_softcapping"),
        **windows_of(hf, kinds, required(hf, "sliding_window")),
        **gemma2.gemma_fields({**hf, "rope_parameters": rope}, theta=1e6),
    )


def text_of(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the `config.json` of the language model in a multimodal one; another as it is."""
    if hf.get("model_type") != "gemma3":
        return hf
    text = _DEFAULTS | {"tie_word_embeddings": hf.get("tie_word_embeddings", True)} | required(hf, "text_config")
    ids = {key: hf[key] for key in TOKEN_IDS if hf.get(key) is not None}  # text_config has transformers' defaults
    return text | ids | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}


def _ropes(hf: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, float]:
    """Returns the rotary parameters of the layers that see all, and the base of the layers with a window."""
    both = hf.get("rope_parameters") or {}
    for kind, rope in both.items():
        if kind not in LAYER_KINDS or not (rope or {}).get("rope_theta"):
            raise UserError(
                f"config.json: rope_parameters of Gemma 3 holds rope_theta for each of {' and '.join(LAYER_KINDS)}, "
                f"found {kind!r}: {rope!r}"
            )
    if both and len(both) < len(LAYER_KINDS):
        raise UserError(f"config.json: rope_parameters of Gemma 3 has no {(set(LAYER_KINDS) - set(both)).pop()!r}")
    local = both.get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise UserError(f"config.json: rope scaling {local['rope_type']!r} of sliding_attention is not supported")
    return both.get("full_attention"), float(local.get("rope_theta") or hf.get("rope_local_base_freq") or 10000.0)


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    config=config,
    tensors=(*gemma2.TENSORS, *qwen3.QK_NORMS),
    aliases=((r"^(language_model\.model|model\.language_model)\.", "model."), (r"^language_model\.lm_head", "lm_head")),
    foreign=r"(^|\.)(vision_tower|multi_modal_projector)\.",
    text=text_of,
    gguf_architectures=("gemma3",),
    gguf_config=partial(gemma2.gguf_config, largest=62),
)
