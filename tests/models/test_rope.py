"""Rotary frequencies of every scaling against transformers', and the rotation against complex numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig, RopeScaling
from smallr.models.rope import apply_rope, rope_frequencies, rope_tables
from tests.models.helpers import TINY, with_fields

SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 20, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.2},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 1000,
        "attention_factor": 1.3,
        "truncate": False,
    },
]


def _config(scaling: dict, spelling: str = "rope_scaling") -> tuple[DecoderConfig, transformers.LlamaConfig]:
    fields = {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "vocab_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "max_position_embeddings": 131072,
    }
    hf = transformers.LlamaConfig(**fields, rope_theta=500000.0, rope_scaling=dict(scaling))
    ours = {"model_type": "llama", "rms_norm_eps": 1e-5, **fields}
    if spelling == "rope_scaling":
        ours |= {"rope_theta": 500000.0, "rope_scaling": scaling}
    else:
        ours |= {"rope_parameters": {"rope_theta": 500000.0, **scaling}}
    return DecoderConfig.from_hf(ours), hf


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_frequencies_are_those_of_transformers(scaling, spelling):
    config, hf = _config(scaling, spelling)
    if scaling["rope_type"] == "default":
        want, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(hf)
    else:
        want, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](hf, "cpu")
    np.testing.assert_allclose(rope_frequencies(config), want.numpy(), rtol=2e-6)
    got = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    assert got == pytest.approx(factor, rel=1e-9)
    cos, _ = rope_tables(jnp.zeros((1, 1), int), config)
    np.testing.assert_allclose(cos, np.full_like(cos, factor), rtol=1e-6)


def test_the_older_key_for_the_kind():
    config, _ = _config({"type": "linear", "factor": 2.0, "rope_type": None})
    assert config.rope_scaling == RopeScaling("linear", factor=2.0)


def test_written_out_factors_divide():
    config = with_fields(TINY, rope_scaling=RopeScaling("factors", factors=(1.0, 2.0, 4.0, 8.0)))
    np.testing.assert_allclose(rope_frequencies(config), rope_frequencies(TINY) / [1, 2, 4, 8], rtol=1e-7)
    with pytest.raises(UserError, match="has 3 factors, head_dim 8 needs 4"):
        rope_frequencies(with_fields(TINY, rope_scaling=RopeScaling("factors", factors=(1.0, 2.0, 4.0))))


def test_rotation_is_a_product_of_complex_numbers():
    positions = jnp.asarray([[0, 5, 1000], [3, 2, 1]])
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, TINY.head_dim))
    got = np.asarray(apply_rope(x, *rope_tables(positions, TINY)))
    half = TINY.head_dim // 2
    number = np.asarray(x[..., :half], np.complex128) + 1j * np.asarray(x[..., half:])
    theta = TINY.rope_theta ** (-np.arange(half) / half)
    turned = number * np.exp(1j * np.asarray(positions)[:, :, None, None] * theta)
    np.testing.assert_allclose(got[..., :half] + 1j * got[..., half:], turned, atol=1e-4)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            {"rope_type": "dynamic", "factor": 2.0},
            "'dynamic' is not supported .* remove rope_scaling if your rows are no longer",
        ),
        ({"rope_type": "spiral"}, "'spiral' is not supported .default, linear, llama3, yarn, longrope are."),
        ({"rope_type": "linear"}, "'linear' in config.json has no 'factor'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ],
)
def test_refusals(scaling, message):
    hf = {"model_type": "llama", "rope_scaling": scaling, "hidden_size": 8, "num_attention_heads": 2}
    with pytest.raises(UserError, match=message):
        DecoderConfig.from_hf(hf)
