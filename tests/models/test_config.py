"""Translation of configs, refusals by name, and the counts against the real parameters."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from tests.models.helpers import TINY, with_fields

LLAMA_32_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_published_configs_and_their_sizes():
    llama = DecoderConfig.from_hf(LLAMA_32_1B, dtype="bfloat16")
    assert (llama.num_heads, llama.num_kv_heads, llama.head_dim, llama.d_ff) == (32, 8, 64, 8192)
    assert (llama.rope_theta, llama.tie_embeddings, llama.qkv_bias, llama.dtype) == (5e5, True, False, "bfloat16")
    assert llama.num_params == 1_235_814_400  # as on the model's card, in full
    qwen = DecoderConfig.from_hf(QWEN25_05B)
    assert (qwen.qkv_bias, qwen.window, qwen.head_dim, qwen.family) == (True, None, 64, "qwen2")
    assert qwen.num_params == 494_032_768


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"qkv_bias": False, "head_dim": 10}])
def test_number_of_parameters_is_that_of_the_decoder(changes):
    config = with_fields(TINY, **changes)
    leaves = jax.tree.leaves(nnx.state(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))))
    assert config.num_params == sum(leaf.size for leaf in leaves)


def test_flops_are_those_that_xla_counts():
    """A rolled-out dense forward pass; XLA also counts the elementwise work, so the sizes make that small."""
    config = DecoderConfig(
        vocab_size=512,
        num_layers=1,
        d_model=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        d_ff=1024,
        tie_embeddings=True,
    )
    tokens = 128
    weights = [(256, 256), (256, 128), (256, 128), (256, 256), (256, 1024), (256, 1024), (1024, 256), (256, 512)]
    matmul = sum(2 * tokens * a * b for a, b in weights)
    attention = 2 * 2 * config.num_heads * config.head_dim * tokens * (tokens + 1) / 2
    assert config.flops_per_token(tokens) * tokens == matmul + attention
    assert config.forward_flops(tokens, 0, 0) == matmul - 2 * tokens * 256 * 512


def test_a_window_bounds_the_attended_pairs():
    windowed = with_fields(TINY, window=4)
    seen = sum(min(q + 1, 4) for q in range(10))
    assert windowed.flops_per_token(10) * 10 == pytest.approx(windowed.forward_flops(10, seen, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba', architectures .*is not supported; supported: llama, qwen2"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported .it must be 'silu' or 'swish'."),
        (
            {"model_type": "mixtral", "num_local_experts": 8, "router_jitter_noise": 0.1, "attention_bias": True},
            "beyond Llama: attention_bias = True, num_local_experts = 8, router_jitter_noise = 0.1$",
        ),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias = True is not supported"),
        ({"model_type": "olmo2", "mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 .*must be absent"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"num_local_experts": 8}, "num_local_experts = 8"),
        ({"rms_norm_eps": None}, "has no 'rms_norm_eps'"),
        ({"num_key_value_heads": 5}, "5 kv heads do not divide 32 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is not a whole number of at least 1"),
        ({"head_dim": 33}, "head_dim must be even"),
    ],
)
def test_refusals_name_the_key(change, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig.from_hf(LLAMA_32_1B | change)


def test_windows_of_qwen2():
    windowed = QWEN25_05B | {"use_sliding_window": True, "sliding_window": 512}
    assert DecoderConfig.from_hf(windowed | {"max_window_layers": 24}).window is None
    assert DecoderConfig.from_hf(windowed | {"max_window_layers": 0}).window == 512
    assert DecoderConfig.from_hf(windowed).layer_windows == (None,) * 21 + (512,) * 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "float16", "config.compute.dtype must be one of float32, bfloat16, got 'float16'"),
        ("remat", "some", "config.compute.remat must be"),
        ("attention", "flash", "config.compute.attention must be"),
        ("window", 0, "DecoderConfig.window must be"),
    ],
)
def test_bad_choices_are_named(field, value, message):
    with pytest.raises(UserError, match=message):
        with_fields(TINY, **{field: value})


def test_configs_are_hashable_and_compare_by_value():
    assert hash(TINY) == hash(with_fields(TINY))
    assert DecoderConfig.from_hf(LLAMA_32_1B) == DecoderConfig.from_hf(dict(LLAMA_32_1B))
    assert np.isfinite(TINY.flops_per_token(5))


def test_rotary_parameters_by_kind_of_layer_are_read_or_refused():
    """transformers 5 writes them so; a family with one rotary base never falls back to its default."""
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "rms_norm_eps": 1e-5, "max_position_embeddings": 128}
    full, local = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    hf = {"model_type": "llama", **sizes, "rope_parameters": {"full_attention": full, "sliding_attention": local}}
    with pytest.raises(UserError, match="rope_parameters differs between full_attention and sliding_attention"):
        DecoderConfig.from_hf(hf)
    assert DecoderConfig.from_hf(hf | {"layer_types": ["full_attention"] * 2}).rope_theta == 1e6
    assert DecoderConfig.from_hf(hf | {"rope_parameters": {"full_attention": full}}).rope_theta == 1e6
    for wrong in ({"full_attention": {"rope_type": "default"}}, {"full_attention": full, "other": full}):
        with pytest.raises(UserError, match="rope_parameters"):
            DecoderConfig.from_hf(hf | {"rope_parameters": wrong})
