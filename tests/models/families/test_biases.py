"""`attention_bias` and `mlp_bias` beside transformers, in the families whose models there have them."""

from __future__ import annotations

import pytest
import transformers

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.config import DecoderConfig
from smallr.models.loading import load_decoder, open_model
from tests.models.families.checks import check_parity, check_table, config_of, relative, tiny
from tests.models.families.models import MODELS
from tests.models.files import save_gguf
from tests.models.helpers import from_torch


@pytest.mark.parity
@pytest.mark.parametrize("name", ["Llama, biases", "Qwen3, biases"])
def test_parity(name):
    model = MODELS[name]()
    config = config_of(model)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, name.startswith("Llama"))
    check_parity(model)
    check_table(model)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("SmolLM3", {"attention_bias": True, "mlp_bias": True}),
        ("Olmo2", {"attention_bias": True}),
        ("Gemma2", {"attention_bias": True, "head_dim": 10}),
        ("Gemma3Text", {"attention_bias": True, "head_dim": 10}),
    ],
)
def test_the_other_families_have_the_same_tensors_as_theirs(kind, fields):
    check_table(tiny(getattr(transformers, f"{kind}Config"), num_hidden_layers=2, **fields))


def test_a_gguf_file_with_biases(tmp_path):
    """The converter turns the rows of q and k, and so their biases."""
    model = MODELS["Llama, biases"]()
    got = load_decoder(open_model(str(save_gguf(model, tmp_path / "model.gguf"))), make_mesh())
    want = from_torch(model)
    for path in ("q_bias", "k_bias", "v_bias", "o_bias"):
        assert relative(getattr(got.layers.attention, path), getattr(want.layers.attention, path)) == 0, path
    for path in ("gate_bias", "up_bias", "down_bias"):
        assert relative(getattr(got.layers.mlp, path), getattr(want.layers.mlp, path)) == 0, path


@pytest.mark.parity
def test_families_without_biases_refuse_them():
    for kind in ("Mistral", "Phi3", "Qwen2"):
        hf = tiny(getattr(transformers, f"{kind}Config"), num_hidden_layers=1).config.to_dict()
        with pytest.raises(UserError, match="attention_bias = True is not supported"):
            DecoderConfig.from_hf(hf | {"attention_bias": True})
