"""A new model is one that transformers reads too, with the tokenizer that was asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.loading import load_decoder, open_model
from smallr.models.scratch import Size, train_tokenizer, write_scratch

TEXTS = [f"Anna has {i} apples and buys {i + 13} more. How many has she now? {2 * i + 13}" for i in range(50)]


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_reads_it_with_equal_logits(tmp_path, family):
    tokenizer = train_tokenizer(TEXTS, 300)
    write_scratch(tmp_path / "new", tokenizer, Size(family, layers=2, width=32, heads=2, context=64), seed=3)
    source = open_model(str(tmp_path / "new"))
    ids = source.tokenizer()(TEXTS[7])["input_ids"]
    mesh = make_mesh(1, -1, 1)
    with jax.set_mesh(mesh):
        decoder = load_decoder(source, mesh)
        positions = jnp.arange(len(ids))[None]
        hidden = decoder(jnp.array([ids]), positions, jnp.full((1, len(ids)), len(ids)))
    table = np.asarray(decoder.embed.table.get_value())
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")(torch.tensor([ids])).logits
    np.testing.assert_allclose(np.asarray(hidden) @ table.T, theirs.numpy(), atol=2e-5)
    assert 0.019 < table.std() < 0.021  # N(0, 0.02^2), as documented


def test_digits_are_tokens_of_their_own_and_chats_are_chatml():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.tokenize("1234") == list("1234")
    assert tokenizer.decode(tokenizer("naïve 12 → 7")["input_ids"]) == "naïve 12 → 7"
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]
    assert 258 < len(tokenizer) <= 300


def test_the_same_texts_and_seed_give_the_same_model(tmp_path):
    for name in ("a", "b"):
        size = Size("llama", layers=1, width=16, heads=2, context=32)
        write_scratch(tmp_path / name, train_tokenizer(TEXTS, 280), size, seed=5)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_cannot_be_made_is_refused(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 260)
    with pytest.raises(UserError, match="width an even multiple of heads"):
        write_scratch(tmp_path / "x", tokenizer, Size(width=30, heads=4))
    with pytest.raises(UserError, match="'bert' must be one of: gpt2, llama"):
        write_scratch(tmp_path / "x", tokenizer, Size(family="bert"))
    with pytest.raises(UserError, match="at least 258"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(UserError, match="no texts"):
        train_tokenizer([" "], 300)
    assert not (tmp_path / "x").exists()
