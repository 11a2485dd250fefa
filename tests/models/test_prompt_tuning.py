"""Soft prompts out to `peft` and back; what is no soft prompt of this model is said by name."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.loading import load_decoder, open_model
from smallr.models.prompt_tuning import read_soft_prompt, write_soft_prompt
from smallr.models.soft import attach_soft_prompts
from tests.data import toy_tokenizer
from tests.models.files import save_folder
from tests.models.helpers import qwen2_model

pytestmark = pytest.mark.parity

OPTIONS = {"digest": "d" * 64, "dtype": "float32", "card": "card"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base in Hugging Face layout and five vectors for it."""
    base = save_folder(qwen2_model(vocab_size=531), tmp_path_factory.mktemp("base"), toy_tokenizer.build())
    source = open_model(str(base))
    vectors = np.random.default_rng(0).normal(0, 0.4, (5, source.config.d_model)).astype(np.float32)
    return SimpleNamespace(base=base, source=source, vectors=vectors)


@pytest.fixture
def folder(case, tmp_path):
    write_soft_prompt(tmp_path / "soft", case.source, case.vectors, base=str(case.base), **OPTIONS)
    return tmp_path / "soft"


def test_peft_computes_the_same_logits(case, folder):
    network = transformers.AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(network, folder)(input_ids=ids).logits[0, 5:].numpy()
    mesh = make_mesh(1, 1, 1)
    decoder = load_decoder(case.source, mesh, remat="none")
    attach_soft_prompts(decoder, read_soft_prompt(folder, case.source.config, "d" * 64), mesh)
    tokens = jnp.asarray([[*range(-1, -6, -1), *range(3, 20)]])
    hidden = decoder(tokens, jnp.arange(22)[None], jnp.full((1, 22), 22))
    np.testing.assert_allclose((hidden @ decoder.unembedding().T)[0, 5:], theirs, atol=1e-4)


def test_what_peft_writes_is_read(case, tmp_path):
    network = transformers.AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.float32)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = peft.get_peft_model(network, config)
    theirs.save_pretrained(tmp_path / "theirs")
    found = read_soft_prompt(tmp_path / "theirs", case.source.config, "any: it does not say which base")
    np.testing.assert_array_equal(found, theirs.prompt_encoder["default"].embedding.weight.detach().numpy())


def test_it_is_written_and_read_exactly(case, folder):
    np.testing.assert_array_equal(read_soft_prompt(folder, case.source.config, "d" * 64), case.vectors)
    content = json.loads((folder / "adapter_config.json").read_text())
    assert (content["num_virtual_tokens"], content["base_model_name_or_path"]) == (5, str(case.base))
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(where) for where in (case.base, folder))
    assert ours("two hens and 3 eggs").input_ids == theirs("two hens and 3 eggs").input_ids


def test_another_model_or_another_file_is_refused(case, folder):
    config = case.source.config

    def refused(message, digest="d" * 64, config=config):
        with pytest.raises(UserError, match=message):
            read_soft_prompt(folder, config, digest)

    refused(r"trained on another model \(.*, digest dddddddddddd\) than this one \(digest eeeeeeeeeeee\)", "e" * 64)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({"prompt_embeddings": tensors["prompt_embeddings"][:, :7].copy()}, folder / "adapter_model.safetensors")
    refused(r"shape \(5, 7\), this model needs \(5, 48\)")
    save_file({"other": tensors["prompt_embeddings"]}, folder / "adapter_model.safetensors")
    refused("expected the tensor prompt_embeddings alone, found other")
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    refused("adapter_model.safetensors cannot be read")
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | {"peft_type": "LORA"}))
    refused("peft_type 'LORA' is no soft prompt")
    (folder / "adapter_config.json").unlink()
    refused(r"adapter_config\.json cannot be read")
