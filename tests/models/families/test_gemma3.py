"""Gemma 3 beside transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.loading import load_decoder, open_model
from smallr.training.exporting import convert
from tests.data import toy_tokenizer
from tests.models.families.checks import check_parity, check_sees_beyond, check_table, config_of
from tests.models.families.models import gemma3
from tests.models.files import save_folder

GEMMA3_270M = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": False,
    "vocab_size": 262144,
}
GEMMA3_4B = {  # as published: what is left out is transformers' default
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}


@pytest.mark.parity
def test_parity_with_two_kinds_of_layers():
    model = gemma3()
    assert config_of(model).layer_windows == (6, None, 6, None)
    check_parity(model)
    check_sees_beyond(model, window=7, local_rope_theta=None)
    check_table(model)


def test_published_sizes():
    config = DecoderConfig.from_hf(GEMMA3_270M)
    assert (config.num_params, config.rope_theta, config.local_rope_theta) == (268_098_176, 1e6, 1e4)
    assert (config.window, config.full_layers, config.tie_embeddings) == (512, (5, 11, 17), True)
    assert config.final_softcap is None
    text = DecoderConfig.from_hf(GEMMA3_4B)
    assert (text.vocab_size, text.num_layers, text.window) == (262208, 34, 1024)
    assert (text.full_layers, text.rope_scaling.factor) == ((5, 11, 17, 23, 29), 8.0)


def test_what_it_can_not_compute():
    with pytest.raises(UserError, match="use_bidirectional_attention makes an encoder"):
        DecoderConfig.from_hf(GEMMA3_270M | {"use_bidirectional_attention": True})
    with pytest.raises(UserError, match="layers of type 'chunked_attention' are not supported"):
        DecoderConfig.from_hf(GEMMA3_270M | {"layer_types": ["chunked_attention"] * 18})


@pytest.mark.parity
@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_of_a_multimodal_folder(tmp_path, prefix):
    model = gemma3()
    folder = save_folder(model, tmp_path)
    tensors = {name.replace("model.", prefix, 1): x for name, x in load_file(folder / "model.safetensors").items()}
    tensors["vision_tower.embeddings.weight"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    got, want = load_decoder(open_model(str(folder)), make_mesh()), config_of(model)
    assert got.config == want
    scale = got.layers.attention.q_norm.scale[2]
    np.testing.assert_array_equal(scale, model.model.layers[2].self_attn.q_norm.weight.detach().numpy())


@pytest.mark.parity
def test_the_language_model_of_a_multimodal_folder_is_exported_alone(tmp_path, caplog):
    """What transformers saves of text and vision comes out as `gemma3_text`, and computes the same on text."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = gemma3(vocab_size=531).config
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, eos_token_id=[1, 106]
    )
    whole = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    folder = save_folder(whole, tmp_path / "whole", toy_tokenizer.build())
    stored = load_file(folder / "model.safetensors")
    foreign = [name for name in stored if "vision" in name or "multi_modal" in name]
    assert len(foreign) > 10
    with caplog.at_level("WARNING"):
        convert(str(folder), tmp_path / "text", dtype="float32", shard_size="5GB")
    assert f"{len(foreign)} tensors of another modality are left out, e.g. " in caplog.text
    out = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert isinstance(out, transformers.Gemma3ForCausalLM)
    assert (out.config.model_type, out.config.eos_token_id) == ("gemma3_text", [1, 106])
    tokens = torch.arange(1, 38)[None]
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens).logits.numpy() for model in (out, whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    again = load_file(tmp_path / "text" / "model.safetensors")
    assert len(again) == len(stored) - len(foreign)

    stored["audio_tower.weight"] = np.zeros(3, np.float32)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"not part of this model: audio_tower\.weight"):
        load_decoder(open_model(str(folder)), make_mesh())
