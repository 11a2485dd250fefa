"""GGUF files as llama.cpp's converter writes them, of every family: the same config and the same numbers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.loading import load_decoder, open_model
from smallr.training.exporting import convert
from tests.data import toy_tokenizer
from tests.models.families.checks import tiny
from tests.models.helpers import from_torch

pytestmark = pytest.mark.parity

SIZES = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 96}
LONG_ROPE = {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [3.0, 5.0, 9.0],
    "original_max_position_embeddings": 24,
}
_GEMMA = {"head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 6}
KINDS = {
    "qwen3": (transformers.Qwen3Config, {"head_dim": 10}),
    "smollm3": (transformers.SmolLM3Config, {}),
    "gemma2": (transformers.Gemma2Config, _GEMMA),
    "gemma3": (transformers.Gemma3TextConfig, _GEMMA | {"num_hidden_layers": 6}),
    "phi3": (transformers.Phi3Config, {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 24}),
    "olmo2": (transformers.Olmo2Config, {}),
    "gpt2": (transformers.GPT2Config, {"n_inner": 64, "bos_token_id": 0, "eos_token_id": 0}),
}


def made(arch: str, **fields) -> transformers.PreTrainedModel:
    """A tiny random model of an architecture."""
    kind, own = KINDS[arch]
    return tiny(kind, **SIZES | own | fields)


def save(model, path: Path, arch: str, quantised: gguf.GGMLQuantizationType | None = None) -> Path:
    """Metadata by the writer's own methods, names by the package's own map; orders and offsets as in the converter."""
    config, writer = model.config, gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(config.n_inner if arch == "gpt2" else config.intermediate_size)
    if arch == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        rope = config.rope_parameters
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "phi3":
        writer.add_sliding_window(0)
        writer.add_rope_dimension_count(6)
        writer.add_rope_scaling_orig_ctx_len(24)
        for name in ("short", "long"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.asarray(LONG_ROPE[f"{name}_factor"], np.float32))
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), config.num_hidden_layers
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.detach().numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            array = array.T
        if arch == "smollm3" and name.endswith(("q_proj.weight", "k_proj.weight")):
            dim = config.hidden_size // config.num_attention_heads
            array = array.reshape(-1, 2, dim // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        array = np.ascontiguousarray(array)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if quantised is not None and array.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(stored, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _leaves(decoder) -> dict[str, np.ndarray]:
    return {".".join(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(decoder))}


@pytest.mark.parametrize("arch", list(KINDS))
def test_a_file_is_its_model(tmp_path, arch):
    model = made(arch)
    want = from_torch(model)
    source = open_model(str(save(model, tmp_path / "model.gguf", arch)))
    got = load_decoder(source, make_mesh())
    assert abs(got.config.norm_eps / want.config.norm_eps - 1) < 1e-6  # the file has it in float32
    assert got.config.rotary == want.config.rotary
    same = {"norm_eps": want.config.norm_eps, "rotary_dim": want.config.rotary_dim}
    assert {**vars(got.config), **same} == vars(want.config)
    got, want = _leaves(got), _leaves(want)
    assert got.keys() == want.keys()
    for path, value in want.items():
        atol = 1e-6 if arch.startswith("gemma") and path.endswith("scale") else 0  # the file has scale + 1
        np.testing.assert_allclose(got[path], value, rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize("arch", list(KINDS))
def test_a_file_becomes_a_folder_that_transformers_reads(tmp_path, arch):
    """With the tokenizer of another folder, since these files have none."""
    model = made(arch, vocab_size=531)
    toy_tokenizer.build().save_pretrained(tmp_path / "tokenizer")
    path = save(model, tmp_path / "model.gguf", arch)
    with pytest.raises(UserError, match="no tokenizer in the GGUF metadata"):
        convert(str(path), tmp_path / "out", dtype="float32", shard_size="5GB")
    convert(str(path), tmp_path / "out", dtype="float32", shard_size="5GB", tokenizer=str(tmp_path / "tokenizer"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    tokens = torch.arange(1, 38)[None]
    with torch.no_grad():
        ours, theirs = (m(tokens).logits.numpy() for m in (again, model))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids
    assert ids == toy_tokenizer.build()("a b").input_ids


STEPS = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q5_0": 1 / 16, "Q4_0": 1 / 8, "Q4_1": 1 / 7}


@pytest.mark.parametrize("kind", list(STEPS))
def test_kinds_of_numbers(tmp_path, kind):
    """Every number within a step of its kind, and not all of them equal; norms stay float32."""
    model = tiny(transformers.Qwen3Config, head_dim=16, **SIZES | {"hidden_size": 64, "num_hidden_layers": 1})
    quantised = gguf.GGMLQuantizationType[kind]
    got = _leaves(load_decoder(open_model(str(save(model, tmp_path / "q.gguf", "qwen3", quantised))), make_mesh()))
    for path, value in _leaves(from_torch(model)).items():
        step = 0 if path.endswith("scale") else STEPS[kind] * np.abs(value).max()
        difference = np.abs(got[path] - value).max()
        assert difference <= step, path
        assert (difference > 0) == (step > 0), path


def test_k_quants_block_by_block(tmp_path):
    """Q4_K and Q6_K, decoded here number by number from their layout in ggml-quants.h."""
    rng = np.random.default_rng(0)
    scales = np.asarray([0.01, 0.002], np.float16).view(np.uint8)

    def q4_k() -> tuple[np.ndarray, list[float]]:
        raw = np.concatenate([scales, rng.integers(0, 256, 140, np.uint8)])
        d, dmin = raw[:4].view(np.float16).astype(np.float64)
        six, nibbles = raw[4:16].astype(int), raw[16:].astype(int)
        out = []
        for j in range(8):
            if j < 4:
                scale, low = six[j] & 63, six[j + 4] & 63
            else:
                scale = (six[j + 4] & 15) | ((six[j - 4] >> 6) << 4)
                low = (six[j + 4] >> 4) | ((six[j] >> 6) << 4)
            quants = nibbles[32 * (j // 2) : 32 * (j // 2) + 32]
            out += [d * scale * ((q >> 4) if j % 2 else (q & 15)) - dmin * low for q in quants]
        return raw, out

    def q6_k() -> tuple[np.ndarray, list[float]]:
        raw = np.concatenate([rng.integers(0, 256, 208, np.uint8), scales[:2]])
        low, high = raw[:128].astype(int), raw[128:192].astype(int)
        each, d = raw[192:208].view(np.int8).astype(int), float(raw[208:].view(np.float16)[0])
        out = []
        for n in range(256):
            half, rest = divmod(n, 128)
            quarter, place = divmod(rest, 32)
            nibble = (low[64 * half + 32 * (quarter % 2) + place] >> (4 * (quarter // 2))) & 15
            bits = (high[32 * half + place] >> (2 * quarter)) & 3
            out.append(d * each[n // 16] * ((nibble | bits << 4) - 32))
        return raw, out

    for kind, block in (("Q4_K", q4_k), ("Q6_K", q6_k)):
        raws, values = zip(*(block() for _ in range(6)), strict=True)
        model = tiny(transformers.Qwen3Config, head_dim=16, **SIZES | {"num_hidden_layers": 1, "hidden_size": 256})
        path = save(model, tmp_path / f"{kind}.gguf", "qwen3")
        source = open_model(str(path)).make_reader()
        tensor = next(t for t in source._file.tensors if t.name == "blk.0.attn_k.weight")
        source._stored["blk.0.attn_k.weight"] = tensor._replace(
            data=np.stack(raws), tensor_type=gguf.GGMLQuantizationType[kind]
        )
        name = "model.layers.0.self_attn.k_proj.weight"
        got = source.read(name, (slice(2, 5), slice(None)))
        np.testing.assert_allclose(got, np.asarray(values)[2:5], rtol=1e-5, atol=1e-6)
