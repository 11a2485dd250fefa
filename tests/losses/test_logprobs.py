"""Chunked log-probs against a dense float64 head: values, gradients, memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from smallr.losses.logprobs import TokenScores, chunking, completion_sums, head_scores, token_logps, token_scores

pytestmark = pytest.mark.usefixtures("cpu_mesh")


def make_case(rows=2, positions=13, width=8, vocab=37, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, positions, width)).astype(np.float32)
    head = (rng.normal(size=(vocab, width)) * np.sqrt(8 / width)).astype(np.float32)
    target = rng.integers(0, vocab, size=(rows, positions)).astype(np.int32)
    outer = rng.normal(size=(rows, positions)).astype(np.float32)
    return hidden, head, target, outer


def dense_reference(hidden, head, target, outer, softcap):
    """Values and gradients of sum(outer * logps) in float64, derivatives written out by hand."""
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    raw = hidden @ head.T
    logits = raw if softcap is None else softcap * np.tanh(raw / softcap)
    shifted = logits - logits.max(-1, keepdims=True)
    probs = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    one_hot = np.eye(head.shape[0])[target]
    logps = np.log((probs * one_hot).sum(-1))
    slope = outer[..., None] * (one_hot - probs)
    if softcap is not None:
        slope = slope * (1 - np.tanh(raw / softcap) ** 2)
    return logps, slope @ head, np.einsum("bnv,bnd->vd", slope, hidden)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("chunk", "width"), [(0, 8), (1, 8), (5, 8), (10, 8), (37, 8), (1000, 8), (5, 40)])
def test_values_and_gradients_equal_the_dense_float64_head(chunk, width, softcap):
    """There are 26 tokens: more than the width, or fewer."""
    hidden, head, target, outer = make_case(width=width)
    logps, hidden_gradient, head_gradient = dense_reference(hidden, head, target, outer, softcap)

    def scalar(hidden, head):
        values = token_logps(hidden, head, target, chunk=chunk, softcap=softcap)
        return jnp.sum(values * outer), values

    (_, values), gradients = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))(hidden, head)
    np.testing.assert_allclose(values, logps, atol=2e-6)
    np.testing.assert_allclose(gradients[0], hidden_gradient, atol=1e-5)
    np.testing.assert_allclose(gradients[1], head_gradient, atol=2e-5)


def test_gradients_equal_finite_differences():
    hidden, head, target, _ = make_case(rows=1, positions=5, width=4, vocab=7)
    check_grads(lambda h, w: token_logps(h, w, target, chunk=2, softcap=5.0), (hidden, head), order=1, modes=["rev"])


def test_large_logits_stay_finite_and_normalised():
    head = np.eye(4, dtype=np.float32)
    hidden = np.array([[[1e4, 0, 0, 0], [-1e4, -1e4, -1e4, -1e4]]], np.float32)
    logps = token_logps(hidden, head, np.array([[1, 2]]), chunk=1)
    np.testing.assert_allclose(logps, [[-1e4, -np.log(4)]], rtol=1e-6)


def test_bfloat16_hidden_gives_float32_results_within_its_rounding():
    hidden, head, target, outer = make_case(width=64)
    hidden = hidden / 8
    exact, *_ = dense_reference(hidden, head, target, outer, None)
    summed = jax.value_and_grad(
        lambda h, w: jnp.sum(token_logps(h.astype(jnp.bfloat16), w, target, chunk=4)), argnums=1
    )
    logps, gradient = jax.jit(summed)(hidden, head)
    assert gradient.dtype == jnp.float32
    values = token_logps(jnp.asarray(hidden, jnp.bfloat16), head, target, chunk=4)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, exact, atol=0.05)
    np.testing.assert_allclose(logps, exact.sum(), rtol=0.01)


def test_no_array_of_all_logits_exists_in_the_compiled_program():
    rows, positions, width, vocab, chunk = 2, 64, 16, 512, 32
    shapes = (
        jax.ShapeDtypeStruct((rows, positions, width), jnp.float32),
        jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((rows, positions), jnp.int32),
    )

    def memory(chunk):
        gradient = jax.grad(lambda h, w, t: jnp.sum(token_logps(h, w, t, chunk=chunk)), argnums=(0, 1))
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    all_logits = rows * positions * vocab * 4
    head_bytes = vocab * width * 4
    assert memory(vocab) >= all_logits  # one chunk holds them all: the measure sees them
    assert memory(chunk) < all_logits // 4 + 2 * head_bytes


def test_completion_sums_by_hand():
    values = jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
    completion = jnp.array([[0, 0, 1, 2, 3]])  # two examples: chosen of 0 and 1, then rejected of 0 and 1
    mask = jnp.array([[True, True, True, True, False]])
    np.testing.assert_array_equal(completion_sums(values, completion, mask, 2, 2), [[[3.0, 4.0], [8.0, 0.0]]])


def test_log_sum_p2_is_the_log_of_the_sum_of_squares():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 5, 8)).astype(np.float32), rng.normal(size=(37, 8)).astype(np.float32)
    target = rng.integers(0, 37, (2, 5)).astype(np.int32)
    scores = token_scores(hidden, head, target, chunk=2, softcap=3.0, log_sum_p2=True)
    logits = 3.0 * np.tanh(np.einsum("bnd,vd->bnv", hidden.astype(np.float64), head) / 3.0)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(scores.log_sum_p2, np.log((probs**2).sum(-1)), rtol=1e-5)
    np.testing.assert_array_equal(scores.logps, token_logps(hidden, head, target, chunk=2, softcap=3.0))
    gradient = jax.grad(lambda h: token_scores(h, head, target, chunk=2, log_sum_p2=True).log_sum_p2.sum())(hidden)
    assert not np.any(gradient)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [0, 5, 37])
def test_entropy_and_the_most_probable_token_are_those_of_a_dense_head(chunk, softcap):
    hidden, head, target, _ = make_case()
    target[:, ::2] = (hidden @ head.T).argmax(-1)[:, ::2]
    raw = hidden.astype(np.float64) @ head.T
    logits = raw if softcap is None else softcap * np.tanh(raw / softcap)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    plain = token_scores(hidden, head, target, chunk=chunk, softcap=softcap)
    scores = token_scores(hidden, head, target, chunk=chunk, softcap=softcap, entropy=True)
    np.testing.assert_allclose(scores.entropy, -(np.exp(logps) * logps).sum(-1), atol=5e-6)
    np.testing.assert_array_equal(scores.is_top, logits.argmax(-1) == target)
    assert 0 < scores.is_top.mean() < 1
    np.testing.assert_array_equal(scores.logps, plain.logps)

    def gradient(entropy):
        total = lambda h: token_scores(h, head, target, chunk=chunk, softcap=softcap, entropy=entropy).logps.sum()  # noqa: E731
        return jax.grad(total)(hidden)

    np.testing.assert_array_equal(gradient(True), gradient(False))


def test_chunks_of_the_vocabulary_as_a_run_prints_them():
    assert chunking(49152, 1504, 0, "cpu") == (96, 512)
    assert chunking(49152, 1504, 0, "gpu") == (1, 49152)
    assert chunking(49152, 1504, 1000, "cpu") == (50, 984)
    assert chunking(49152, 16, 0, "cpu") == chunking(49152, 1024, 0, "cpu") == (64, 768)


def dense_heads(hidden, heads, target, softcap) -> TokenScores:
    """Logit, log-sum-exp and log-prob from logits [H, B, N, V] that exist at once."""
    logits = jnp.einsum("...bnd,hvd->hbnv" if hidden.ndim == 3 else "hbnd,hvd->hbnv", hidden, heads)
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    picked = jnp.take_along_axis(logits, jnp.broadcast_to(target, logits.shape[:3])[..., None], axis=-1)[..., 0]
    log_sum_exp = jax.nn.logsumexp(logits, axis=-1)
    return TokenScores(picked - log_sum_exp, None, picked, log_sum_exp)


@pytest.mark.parametrize(
    ("heads", "chunk", "own", "softcap", "positions"),
    [(1, 0, False, 3.0, 3), (2, 5, True, None, 3), (2, 37, False, None, 13), (3, 10, True, 3.0, 13)],
)
def test_several_heads_equal_dense_ones(heads, chunk, own, softcap, positions):
    """There are 26 tokens, more than the width, or 6."""
    hidden, _, target, _ = make_case(positions=positions)
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(heads, *hidden.shape)).astype(np.float32) if own else hidden
    tables = rng.normal(size=(heads, 37, 8)).astype(np.float32)
    weights = rng.normal(size=(3, heads, *target.shape)).astype(np.float32)

    def total(score, hidden, tables):
        scores = score(hidden, tables)
        used = (scores.logps, scores.logits, scores.log_sum_exp)
        return sum(jnp.sum(w * jnp.sin(x)) for w, x in zip(weights, used, strict=True)), used

    def chunked(hidden, tables):
        return head_scores(hidden, tables, target, chunk=chunk, softcap=softcap)

    def dense(hidden, tables):
        return dense_heads(hidden, tables, target, softcap)

    with jax.default_matmul_precision("highest"):
        outcomes = [
            jax.jit(jax.value_and_grad(lambda h, t, f=f: total(f, h, t), argnums=(0, 1), has_aux=True))(hidden, tables)
            for f in (chunked, dense)
        ]
    ((_, values), gradients), ((_, dense_values), dense_gradients) = outcomes
    for ours, theirs in zip((*values, *gradients), (*dense_values, *dense_gradients), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_gradients_of_logit_and_log_sum_exp_equal_finite_differences():
    hidden, _, target, _ = make_case(rows=1, positions=4, width=4, vocab=7)
    heads = np.random.default_rng(1).normal(size=(2, 7, 4)).astype(np.float32)

    def scores(hidden, heads):
        found = head_scores(hidden, heads, target, chunk=2)
        return found.logits, found.log_sum_exp, found.logps

    check_grads(scores, (hidden / 2, heads / 2), order=1, modes=["rev"], atol=5e-3, rtol=5e-3)


def test_one_head_is_the_language_model_s_to_the_bit():
    hidden, head, target, _ = make_case()
    alone, with_logits = (token_scores(hidden, head, target, chunk=5, logits=flag) for flag in (False, True))
    np.testing.assert_array_equal(alone.logps, with_logits.logps)
    assert alone.logits is None
    np.testing.assert_allclose(with_logits.logits - with_logits.log_sum_exp, alone.logps, atol=1e-5)
    of_several = head_scores(hidden, head[None], target, chunk=5)
    np.testing.assert_allclose(of_several.logps[0], alone.logps, atol=1e-6)


def test_several_heads_in_bfloat16():
    hidden, _, target, _ = make_case(width=64)
    heads = np.random.default_rng(1).normal(size=(2, 37, 64)).astype(np.float32)
    scores = head_scores(jnp.asarray(hidden / 8, jnp.bfloat16), heads, target, chunk=8)
    assert scores.logits.dtype == jnp.float32
    np.testing.assert_allclose(scores.logits, dense_heads(hidden / 8, heads, target, None).logits, atol=0.1)
    gradient = jax.jit(
        jax.grad(lambda t: head_scores(jnp.asarray(hidden, jnp.bfloat16), t, target, chunk=8).log_sum_exp.sum())
    )(heads)
    assert gradient.dtype == jnp.float32


def test_no_logits_of_all_heads_exist_in_the_compiled_program():
    heads, positions, width, vocab = 3, 128, 16, 512
    shapes = (
        jax.ShapeDtypeStruct((1, positions, width), jnp.float32),
        jax.ShapeDtypeStruct((heads, vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((1, positions), jnp.int32),
    )

    def memory(chunk):
        gradient = jax.grad(lambda h, w, t: jnp.sum(head_scores(h, w, t, chunk=chunk).logits), argnums=(0, 1))
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    all_logits = heads * positions * vocab * 4
    assert memory(vocab) >= all_logits
    assert memory(32) < all_logits // 4 + 2 * heads * vocab * width * 4
