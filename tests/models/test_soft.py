"""Soft prompts: what transformers computes of the same vectors as inputs_embeds, in packed rows and one by one; gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.data.batch import ROLE_ANSWER, Completion, Example, soft_ids
from smallr.data.packing import RowShape
from smallr.data.pipeline import assemble
from smallr.models.decoder import Decoder
from smallr.models.soft import attach_soft_prompts, drawn_vectors, is_soft_path
from smallr.training.forward import score
from tests.models.helpers import from_torch
from tests.sampling.models import model
from tests.tiny import batch_of

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("cpu_mesh")]

LENGTH = 3  # vectors of a soft prompt


def soft_decoder(family: str) -> tuple[Decoder, np.ndarray]:
    """A decoder with two soft prompts of random vectors."""
    decoder = from_torch(model(family), remat="none")
    vectors = np.random.default_rng(0).normal(0, 0.5, (2 * LENGTH, decoder.config.d_model)).astype(np.float32)
    attach_soft_prompts(decoder, vectors, make_mesh(1, 1, 1))
    return decoder, vectors


def examples(vocab: int) -> list[Example]:
    """Five examples: of soft prompt 0, of 1, without any, and pairs that share a prompt with soft tokens."""
    rng = np.random.default_rng(1)

    def completion(length: int) -> Completion:
        return Completion(rng.integers(1, vocab, length).astype(np.int32), np.full(length, ROLE_ANSWER, np.int32))

    def prefix(number: int | None, length: int) -> np.ndarray:
        soft = [] if number is None else soft_ids(number, LENGTH)
        return np.concatenate([soft, rng.integers(1, vocab, length)]).astype(np.int32)

    plain = [Example(prefix(number, 4 + i), (completion(3 + i),), {}, i) for i, number in enumerate((0, 1, None))]
    return [*plain, *(Example(prefix(number, 5), (completion(4), completion(2)), {}, 3) for number in (1, 0))]


def torch_logps(family: str, vectors: torch.Tensor, example: Example, side: int) -> torch.Tensor:
    """Log-probs of a completion, with the vectors in place of embeddings."""
    network = model(family)
    completion = torch.tensor(example.completions[side].tokens, dtype=torch.long)
    ids = torch.cat([torch.tensor(example.prefix, dtype=torch.long), completion])
    embedded = network.get_input_embeddings()(ids.clamp(min=0))
    rows = vectors[(-1 - ids).clamp(min=0)]
    logits = network(inputs_embeds=torch.where((ids < 0)[:, None], rows, embedded)[None]).logits[0]
    return torch.log_softmax(logits[len(example.prefix) - 1 : -1], -1).gather(1, completion[:, None])[:, 0]


@pytest.mark.parametrize("family", ["gpt2 positions", "gemma3 two bases"])
def test_packed_rows_equal_transformers_with_inputs_embeds(family):
    """Two rows of several examples each: learned positions, scaled embeddings and windows included."""
    decoder, vectors = soft_decoder(family)
    own = examples(decoder.config.vocab_size)
    row = [4, 0, 3, 1, 2]
    batch = jax.tree.map(jnp.asarray, batch_of([row], own, {}))
    logps = np.asarray(jax.jit(lambda batch: score(decoder, batch, 16).logps)(batch))[0]
    for place, index in enumerate(row):
        for side in range(len(own[index].completions)):
            completion = side * batch.example.shape[1] + place
            member = (np.asarray(batch.completion[0]) == completion) & (np.asarray(batch.role[0]) > 0)
            with torch.no_grad():
                expected = torch_logps(family, torch.tensor(vectors), own[index], side).numpy()
            np.testing.assert_allclose(logps[member], expected, atol=1e-4)


def test_the_gradient_is_that_of_the_dense_model():
    """Of the summed log-prob of packed examples, for the vectors alone; those of no example have none."""
    decoder, vectors = soft_decoder("llama")
    own = examples(decoder.config.vocab_size)[:3]
    graphdef, params, frozen = nnx.split(decoder, lambda path, _: is_soft_path(path), ...)
    assert [path for path, _ in nnx.to_flat_state(params)] == [("soft", "vectors")]

    @jax.jit
    @jax.grad
    def gradient(params, batch):
        return jnp.sum(score(nnx.merge(graphdef, params, frozen), batch, 16).logps)

    def ours(row: list[int]) -> np.ndarray:
        batch = assemble([row], own, RowShape(tokens=64, scored=16, examples=3), {})
        return jax.tree.leaves(gradient(params, jax.tree.map(jnp.asarray, batch)))[0]

    theirs = torch.tensor(vectors, requires_grad=True)
    sum(torch_logps("llama", theirs, example, 0).sum() for example in own).backward()
    np.testing.assert_allclose(ours([0, 1, 2]), theirs.grad.numpy(), atol=2e-5 * float(theirs.grad.abs().max()))
    one = ours([1])
    assert np.abs(one[:LENGTH]).max() == 0 < np.abs(one[LENGTH:]).max()


def test_fresh_vectors_are_embeddings_of_different_tokens():
    decoder = from_torch(model("gemma3 two bases"), remat="none")
    scaled = np.asarray(decoder.embed.table[...]) * decoder.config.embedding_scale
    drawn = np.asarray(drawn_vectors(decoder, 8, seed=3))
    places = [int(np.flatnonzero((scaled == vector).all(1))[0]) for vector in drawn]
    assert len(set(places)) == 8
    np.testing.assert_array_equal(drawn, drawn_vectors(decoder, 8, seed=3))
    assert np.abs(drawn - np.asarray(drawn_vectors(decoder, 8, seed=4))).max() > 0
    with pytest.raises(UserError, match="more than the model's vocabulary"):
        drawn_vectors(decoder, decoder.config.vocab_size + 1, seed=0)
    with pytest.raises(UserError, match="they are of another model"):
        attach_soft_prompts(decoder, np.zeros((4, 5), np.float32), make_mesh(1, 1, 1))
