"""Model files for the loading tests: a folder as transformers saves it, and a GGUF file as llama.cpp converts it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import transformers

GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
SUFFIXES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def save_folder(model: transformers.PreTrainedModel, folder: Path, tokenizer=None, **options) -> Path:
    """`save_pretrained` of a model and, if given, a tokenizer."""
    model.save_pretrained(folder, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def save_gguf(
    model: transformers.PreTrainedModel, path: Path, quantised: gguf.GGMLQuantizationType | None = None
) -> Path:
    """Writes the model with the names, orders and permutation of llama.cpp's converter (convert_hf_to_gguf.py)."""
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    for field, attribute in GGUF_FIELDS.items():
        writer.add_uint32(f"{arch}.{field}", getattr(config, attribute))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_uint32(f"{arch}.attention.key_length", head_dim)
    writer.add_uint32(f"{arch}.rope.dimension_count", head_dim)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config.rope_parameters, head_dim))
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.detach().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if arch == "llama" and heads:
            array = _permute(array, heads)
        if quantised is not None and array.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    _, _, layer, *middle, kind = name.split(".")
    return f"blk.{layer}.{SUFFIXES['.'.join(middle)]}.{kind}"


def _permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i and 2i + 1 of a head become its rotary pair (i, i + half)."""
    out = np.empty_like(weights)
    dim = len(weights) // heads
    for head in range(heads):
        for i in range(dim // 2):
            out[head * dim + 2 * i] = weights[head * dim + i]
            out[head * dim + 2 * i + 1] = weights[head * dim + dim // 2 + i]
    return out


def _llama3_divisors(rope: dict, dim: int) -> np.ndarray:
    """The converter's `rope_freqs`: by how much each frequency is divided, from wavelengths."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    divisors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / dim)
        if wavelength < high:
            divisors.append(1.0)
        elif wavelength > low:
            divisors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.asarray(divisors, np.float32)
