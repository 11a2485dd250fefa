"""The batch, read back by its one attention rule: a query sees exactly its own example's prefix and completion."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallr.data.batch import ROLE_ANSWER, ROLE_NONE, ROLE_RATIONALE, Batch, Completion, Example
from smallr.data.packing import PackingPlan, RowShape, Sizes
from smallr.data.pipeline import assemble, stack_columns

ROLES = (ROLE_NONE, ROLE_ANSWER, ROLE_RATIONALE)


@st.composite
def completions(draw) -> Completion:
    roles = draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=12))
    tokens = draw(st.lists(st.integers(0, 50), min_size=len(roles), max_size=len(roles)))
    rewards = np.arange(np.count_nonzero(roles), dtype=np.float32) + draw(st.integers(1, 9))
    score = {"score": draw(st.floats(1, 2, width=32))}
    return Completion(np.array(tokens, np.int32), np.array(roles, np.int32), score, {"reward": rewards})


@st.composite
def example_sets(draw) -> list[Example]:
    examples = []
    for row in range(draw(st.integers(1, 12))):
        prefix = np.array(draw(st.lists(st.integers(0, 50), min_size=1, max_size=10)), np.int32)
        continued = tuple(draw(completions()) for _ in range(draw(st.integers(1, 4))))
        columns = {"beta": draw(st.floats(0, 1, width=32)), "gap": float(row % 3)}
        examples.append(Example(prefix, continued, columns, row))
    return examples


def visible(batch: Batch, row: int, query: int) -> list[int]:
    """Keys that a query sees, by the rule alone."""
    return [k for k in range(batch.tokens.shape[1]) if k <= query < batch.horizon[row, k]]


def check(batch: Batch, examples: list[Example], columns: dict[str, np.ndarray]) -> list[int]:
    """Asserts that the batch says exactly what its examples say; returns the examples that it holds."""
    per_row = batch.example.shape[1]
    weights, scores = batch.completion_columns["weight"], batch.completion_columns["score"]
    seen = []
    for r in range(len(batch.tokens)):
        scored: dict[int, list[int]] = {}
        for n in np.flatnonzero(batch.role[r]):
            scored.setdefault(int(batch.completion[r, n]), []).append(n)
        unused = batch.role[r] == ROLE_NONE
        for field in (batch.logit_position, batch.target, batch.completion, batch.token_columns["reward"]):
            assert not field[r, unused].any()
        for p in range(per_row):
            index = int(batch.example[r, p])
            for name, values in columns.items():
                assert batch.columns[name][r, p] == (values[index] if index >= 0 else 0)
            assert batch.columns["weight"][r, p] == (index >= 0)
            own = examples[index].completions if index >= 0 else ()
            for s, (weight, score) in enumerate(zip(weights[r, :, p], scores[r, :, p], strict=True)):
                assert (score, weight) == ((own[s].columns["score"], 1) if s < len(own) else (0, 0))
            if index < 0:
                continue
            seen.append(index)
            for s, completion in enumerate(own):
                check_completion(batch, r, scored.pop(s * per_row + p, []), examples[index], completion)
        assert not scored, "scored positions of no example"
    return seen


def check_completion(batch: Batch, r: int, positions: list[int], example: Example, completion: Completion) -> None:
    scored = np.flatnonzero(completion.roles)
    np.testing.assert_array_equal(batch.token_columns["reward"][r, positions], completion.token_columns["reward"])
    for n, i in zip(positions, scored, strict=True):
        keys = visible(batch, r, int(batch.logit_position[r, n]))
        assert batch.tokens[r, keys].tolist() == [*example.prefix, *completion.tokens[:i]]
        assert batch.positions[r, keys].tolist() == list(range(len(example.prefix) + i))
        assert batch.target[r, n] == completion.tokens[i]
        assert batch.role[r, n] == completion.roles[i]


@settings(max_examples=80, deadline=None)
@given(
    examples=example_sets(),
    share=st.booleans(),
    packing=st.booleans(),
    rows_per_step=st.integers(1, 4),
    extra=st.integers(0, 60),
)
def test_every_scored_position_sees_its_own_past_and_nothing_else(examples, share, packing, rows_per_step, extra):
    sizes, columns = Sizes.of(examples), stack_columns(examples)
    length = int(sizes.tokens(share).max()) + extra
    plan = PackingPlan(sizes, rows_per_step, length, packing=packing, share_prompt=share)
    seen, tokens = [], 0
    for n in range(plan.num_steps(1)):
        batch = assemble(plan.step(n), examples, plan.shape, columns, share)
        seen += check(batch, examples, columns)
        tokens += int((batch.horizon > 0).sum())
    assert sorted(seen) == list(range(len(examples)))
    assert tokens == sizes.tokens(share).sum()


def pair() -> Example:
    chosen = Completion(np.array([11, 12, 13], np.int32), np.array([1, 1, 1], np.int32))
    rejected = Completion(np.array([21, 22], np.int32), np.array([0, 2], np.int32))
    return Example(np.array([1, 2], np.int32), (chosen, rejected), {"beta": 0.5}, 7)


def test_shared_layout_by_hand():
    batch = assemble([[0], []], [pair()], RowShape(9, 6, 2), {"beta": np.array([0.5], np.float32)})
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 11, 12, 13, 21, 22, 0, 0], [0] * 9])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 4, 2, 3, 0, 0], [0] * 9])
    np.testing.assert_array_equal(batch.horizon, [[7, 7, 5, 5, 5, 7, 7, 0, 0], [0] * 9])
    np.testing.assert_array_equal(batch.logit_position, [[1, 2, 3, 5, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch.target, [[11, 12, 13, 22, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch.completion, [[0, 0, 0, 2, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch.role, [[1, 1, 1, 2, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch.example, [[0, -1], [-1, -1]])
    np.testing.assert_array_equal(batch.columns["beta"], [[0.5, 0], [0, 0]])
    np.testing.assert_array_equal(batch.columns["weight"], [[1, 0], [0, 0]])
    for name in ("tokens", "positions", "horizon", "logit_position", "target", "completion", "role", "example"):
        assert getattr(batch, name).dtype == np.int32
    assert {values.dtype for values in batch.columns.values()} == {np.dtype(np.float32)}


def test_plain_layout_by_hand():
    batch = assemble([[0]], [pair()], RowShape(10, 4, 1), {}, share_prompt=False)
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 11, 12, 13, 1, 2, 21, 22, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0]])
    np.testing.assert_array_equal(batch.horizon, [[5, 5, 5, 5, 5, 9, 9, 9, 9, 0]])
    np.testing.assert_array_equal(batch.logit_position, [[1, 2, 3, 7]])
    np.testing.assert_array_equal(batch.completion, [[0, 0, 0, 1]])


def test_first_rejected_token_is_predicted_by_the_prefix():
    example = pair()
    rejected = Completion(example.completions[1].tokens, np.array([1, 1], np.int32))
    example = Example(example.prefix, (example.completions[0], rejected), {}, 0)
    shared = assemble([[0, 0]], [example], RowShape(14, 10, 2), {})
    np.testing.assert_array_equal(shared.logit_position, [[1, 2, 3, 1, 5, 8, 9, 10, 8, 12]])
    plain = assemble([[0]], [example], RowShape(9, 5, 1), {}, share_prompt=False)
    np.testing.assert_array_equal(plain.logit_position, [[1, 2, 3, 6, 7]])


def test_a_batch_is_a_pytree():
    batch = assemble([[0]], [pair()], RowShape(9, 6, 1), {"beta": np.array([0.5], np.float32)})
    doubled = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    assert isinstance(doubled, Batch)
    assert doubled.columns["beta"].shape == (2, 1)
    assert len(jax.tree.leaves(batch)) == 11
    np.testing.assert_array_equal(batch.completion_columns["weight"], [[[1], [1]]])


@pytest.mark.parametrize(
    ("rows", "shape", "columns", "message"),
    [
        ([[0]], RowShape(6, 8, 1), {}, r"row 0: 7 tokens do not fit in 6 \(source row 7\)"),
        ([[], [0, 0]], RowShape(14, 5, 2), {}, r"row 1: over 5 scored tokens"),
        ([[0, 0]], RowShape(14, 8, 1), {}, "a row of 2 examples does not fit"),
        ([[0]], RowShape(14, 8, 1, 1), {}, r"row 0: an example of 2 completions, over 1 \(source row 7\)"),
        ([[0]], RowShape(14, 8, 1), {"weight": np.ones(1, np.float32)}, "'weight' is made by the pipeline"),
    ],
)
def test_refusals(rows, shape, columns, message):
    with pytest.raises(ValueError, match=message):
        assemble(rows, [pair()], shape, columns)
