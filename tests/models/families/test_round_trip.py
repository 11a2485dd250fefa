"""HF to smallr to HF, for every family: the same bits, the same logits, whatever the number of files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from smallr.training.exporting import convert
from tests.data import toy_tokenizer
from tests.models.families.models import MODELS

pytestmark = pytest.mark.parity

VOCAB = 531


@pytest.fixture(scope="module")
def tokenizer():
    """Smaller than the vocabulary, which is padded."""
    return toy_tokenizer.build()


@pytest.mark.parametrize("name", list(MODELS))
def test_a_folder_comes_back_bit_for_bit_and_computes_the_same(tmp_path, name, tokenizer):
    model = MODELS[name](vocab_size=VOCAB)
    tokens = torch.arange(1, 38)[None]
    with torch.no_grad():
        expected = model(tokens).logits.numpy()
    for dtype, size in (("float32", "5GB"), ("bfloat16", "60KB")):
        folder, out = tmp_path / dtype, tmp_path / f"{dtype} out"
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        convert(str(folder), out, dtype=dtype, shard_size=size)
        before, after = load_file(folder / "model.safetensors"), {}
        for file in out.glob("*.safetensors"):
            after |= load_file(file)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key].dtype == value.dtype
            assert after[key].shape == value.shape
            assert after[key].tobytes() == np.ascontiguousarray(value).tobytes(), key
        again = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert type(again) is type(model)
        assert again.dtype == getattr(torch, dtype)
        theirs = json.loads((folder / "config.json").read_text())
        ours = json.loads((out / "config.json").read_text())
        assert {key: value for key, value in theirs.items() if value is not None} == {
            key: value for key, value in ours.items() if key != "torch_dtype"
        }
        if dtype == "float32":
            with torch.no_grad():
                np.testing.assert_allclose(again(tokens).logits.numpy(), expected, atol=1e-5 * np.abs(expected).max())
