"""GPT-2 beside transformers."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.loading import load_decoder, open_model
from tests.models.families.checks import check_parity, check_table, config_of, logits_of
from tests.models.families.models import gpt2
from tests.models.files import save_folder
from tests.models.helpers import from_torch

pytestmark = pytest.mark.parity

GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "vocab_size": 50257,
}


def test_parity():
    model = gpt2()
    decoder = check_parity(model)
    check_table(model)
    beyond = np.asarray(logits_of(decoder, np.ones((1, 38), np.int32)))
    assert np.isnan(beyond[:, 37]).all()  # a position that the table lacks is not read as its neighbour


def test_files_without_the_prefix_and_with_the_mask(tmp_path):
    """As the first files on the hub are."""
    model = gpt2()
    folder = save_folder(model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 37, 37), np.float32))
    save_file(tensors, folder / "model.safetensors")
    got, want = load_decoder(open_model(str(folder)), make_mesh()), from_torch(model)
    tokens = np.arange(1, 30)[None]
    np.testing.assert_array_equal(logits_of(got, tokens), logits_of(want, tokens))


def test_published_size():
    config = DecoderConfig.from_hf(GPT2)
    assert (config.num_params, config.d_ff, config.activation) == (124_439_808, 3072, "gelu_tanh")
    assert config_of(gpt2()).d_ff == 58
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx = True is not supported"):
        DecoderConfig.from_hf(GPT2 | {"scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(UserError, match="activation_function = 'relu' is not supported"):
        DecoderConfig.from_hf(GPT2 | {"activation_function": "relu"})
