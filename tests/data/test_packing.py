"""The plan: every example once an epoch, within capacities, a function of (sizes, seed) alone."""

import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallr.data import packing
from smallr.data.batch import Completion, Example
from smallr.data.packing import PackingPlan, RowShape, Sizes, describe, pack


def random_sizes(count: int, seed: int = 0, low: int = 20, high: int = 100) -> Sizes:
    rng = np.random.default_rng(seed)
    prefix, completion = rng.integers(5, 40, count), rng.integers(low, high, count)
    return Sizes(prefix, completion, np.full(count, 2), completion - rng.integers(0, 5, count))


def flat(rows: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(rows))


def epoch_rows(plan: PackingPlan, epoch: int = 0) -> list[list[int]]:
    first = plan.num_steps(epoch) if epoch else 0
    return [row for n in range(first, plan.num_steps(epoch + 1)) for row in plan.step(n)]


def test_sizes_of_examples():
    prefix = np.arange(3, dtype=np.int32)
    chosen = Completion(np.arange(4, dtype=np.int32), np.array([0, 1, 1, 2], np.int32))
    rejected = Completion(np.arange(2, dtype=np.int32), np.array([1, 1], np.int32))
    sizes = Sizes.of([Example(prefix, (chosen, rejected), {}, 0), Example(prefix, (chosen,), {}, 1)])
    np.testing.assert_array_equal(sizes.prefix, [3, 3])
    np.testing.assert_array_equal(sizes.completion_tokens, [6, 4])
    np.testing.assert_array_equal(sizes.completions, [2, 1])
    np.testing.assert_array_equal(sizes.scored, [5, 3])
    np.testing.assert_array_equal(sizes.tokens(share_prompt=True), [9, 7])
    np.testing.assert_array_equal(sizes.tokens(share_prompt=False), [12, 7])


def test_sizes_from_lengths():
    sizes = Sizes.from_lengths(np.array([3, 5], np.int32), np.array([[4, 2], [1, 6]]), np.array([[3, 2], [1, 1]]))
    np.testing.assert_array_equal(sizes.tokens(share_prompt=True), [9, 12])
    np.testing.assert_array_equal(sizes.tokens(share_prompt=False), [12, 17])
    np.testing.assert_array_equal(sizes.scored, [5, 2])
    assert sizes.prefix.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 60), st.integers(1, 2)), min_size=1, max_size=60),
    rows_per_step=st.integers(1, 7),
    extra=st.integers(0, 90),
    seed=st.integers(0, 2**40),
    shuffle=st.booleans(),
    packing=st.booleans(),
    share=st.booleans(),
    window=st.integers(1, 70),
)
def test_every_example_once_an_epoch_within_capacity(
    lengths, rows_per_step, extra, seed, shuffle, packing, share, window
):
    prefix, completion, completions = np.array(lengths, np.int64).T
    sizes = Sizes(prefix, completion, completions, np.maximum(completion // 2, 1))
    tokens = sizes.tokens(share)
    plan = PackingPlan(
        sizes,
        rows_per_step,
        int(tokens.max()) + extra,
        seed=seed,
        shuffle=shuffle,
        packing=packing,
        share_prompt=share,
        window=window,
    )
    for epoch in (0, 1, 2):
        rows = epoch_rows(plan, epoch)
        assert sorted(flat(rows)) == list(range(len(lengths)))
        assert len(rows) % rows_per_step == 0
        filled = [bool(row) for row in rows]
        assert filled == sorted(filled, reverse=True), "only the end of the last step may be empty"
        assert sum(not full for full in filled) < rows_per_step
        for row in rows:
            assert sum(tokens[row]) <= plan.shape.tokens
            assert sum(sizes.scored[row]) <= plan.shape.scored
            assert len(row) <= (plan.shape.examples if packing else 1)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    most_scored=st.integers(20, 60),
    most_examples=st.integers(1, 6),
    window=st.integers(1, 90),
)
def test_all_three_capacities_hold_when_they_bind(tokens, most_scored, most_examples, window):
    tokens = np.array(tokens)
    scored = np.minimum(tokens, 20)
    positions, starts = pack(tokens, scored, RowShape(60, most_scored, most_examples), window)
    assert sorted(positions.tolist()) == list(range(len(tokens)))
    longest_wait = 0
    for r, (a, b) in enumerate(itertools.pairwise(starts)):
        row = positions[a:b]
        assert 1 <= len(row) <= most_examples
        assert tokens[row].sum() <= 60
        assert scored[row].sum() <= most_scored
        longest_wait = max(longest_wait, r - row.min())
    assert longest_wait <= window


def test_packing_fills_rows_better_than_first_come_first_served():
    sizes = random_sizes(4000)
    tokens = sizes.tokens(True)
    plan = PackingPlan(sizes, 8, 256)
    naive, room = 1, 256
    for n in tokens:
        naive, room = (naive, room - n) if n <= room else (naive + 1, 256 - n)
    ideal = tokens.sum() / 256
    assert plan.stats().rows < 1.02 * ideal < 1.08 * ideal < naive


def test_packing_is_optimal_on_a_known_case():
    # Four full rows exist (60+40, 70+30, 50+50, 45+30+25); whoever puts 45 beside 50 needs five.
    tokens = np.array([60, 70, 50, 45, 40, 30, 50, 30, 25])
    _, starts = pack(tokens, np.ones_like(tokens), RowShape(100, 100, 9))
    assert len(starts) - 1 == 4


def test_a_plan_is_a_function_of_sizes_and_seed():
    sizes = random_sizes(200)
    a, b, other = (
        PackingPlan(sizes, 4, 256, seed=3),
        PackingPlan(sizes, 4, 256, seed=3),
        PackingPlan(sizes, 4, 256, seed=4),
    )
    steps = range(a.num_steps(3))
    forwards = [a.step(n) for n in steps]
    # Asked backwards, so from epoch 2 first, and with epochs forgotten in between.
    assert forwards == [b.step(n) for n in reversed(steps)][::-1]
    assert forwards != [other.step(n) for n in steps]
    assert epoch_rows(a, 0) != epoch_rows(a, 1)


def test_shuffle_is_pinned():
    # A resumed run must see the same order under every version of numpy and smallr.
    plan = PackingPlan(random_sizes(8), 1, 256, seed=5, packing=False)
    assert flat(epoch_rows(plan, 1)) == [7, 4, 5, 1, 6, 0, 2, 3]


def test_unshuffled_epochs_are_alike_and_in_order():
    plan = PackingPlan(random_sizes(100), 4, 256, shuffle=False)
    assert epoch_rows(plan, 0) == epoch_rows(plan, 2)
    plan = PackingPlan(random_sizes(50), 3, 256, shuffle=False, packing=False)
    assert flat(epoch_rows(plan)) == list(range(50))


def test_fewer_examples_than_a_batch():
    plan = PackingPlan(random_sizes(2), 8, 512)
    assert plan.num_steps(5) == 5
    for n in range(5):
        rows = plan.step(n)
        assert len(rows) == 8
        assert sorted(flat(rows)) == [0, 1]


def test_epochs_have_no_end():
    plan = PackingPlan(random_sizes(10), 2, 256)
    assert sorted(flat(epoch_rows(plan, 99))) == list(range(10))
    assert plan.epoch_of(plan.num_steps(99)) == 99
    assert plan.epoch_of(plan.num_steps(99) - 1) == 98


def test_an_epoch_is_planned_once(monkeypatch):
    planned = []

    def count(tokens, *rest):
        planned.append(len(tokens))
        return pack(tokens, *rest)

    monkeypatch.setattr(packing, "pack", count)
    shuffled, ordered = PackingPlan(random_sizes(100), 4, 256), PackingPlan(random_sizes(100), 4, 256, shuffle=False)
    for plan, times in ((shuffled, 2), (ordered, 1)):
        planned.clear()
        for n in range(plan.num_steps(2)):
            plan.step(n)
        plan.stats()
        assert len(planned) == times


def test_threads_see_one_plan(monkeypatch):
    sizes = random_sizes(300)
    expected = [PackingPlan(sizes, 4, 256).step(n) for n in range(40)]

    plan, seen, planned = PackingPlan(sizes, 4, 256), {}, []

    def slow(*arguments):
        planned.append(threading.get_ident())
        time.sleep(0.01)  # others run while one is planning
        return pack(*arguments)

    monkeypatch.setattr(packing, "pack", slow)

    def read(offset: int) -> None:
        for n in range(offset, 40, 4):
            seen[n] = plan.step(n)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[n] for n in range(40)] == expected
    assert len(planned) == plan.epoch_of(39) + 1, "an epoch was planned twice"


def test_shape_is_chosen_once_and_rarely_binds():
    sizes = random_sizes(5000)
    shape = RowShape.choose(sizes, 1024)
    assert shape.tokens == 1024
    assert shape.scored % 64 == 0
    assert shape.scored >= sizes.scored.max()
    plan = PackingPlan(sizes, 8, 1024)
    assert plan.stats().scored_used > 0.85, "N is not far above what rows need"
    unbound = PackingPlan(sizes, 8, 1024, shape=RowShape(1024, 1024, 1024))
    free = [int(sizes.scored[row].sum()) for row in epoch_rows(unbound)]
    assert np.mean(np.array(free) > shape.scored) < 0.03
    assert max(len(row) for row in epoch_rows(unbound)) <= shape.examples
    assert RowShape.choose(sizes, 256).scored % 8 == 0
    assert RowShape.choose(sizes, 1024, packing=False) == RowShape(1024, 128, 1)


def test_stats_by_hand():
    # Two pairs of 10 + 20 tokens and one of 10 + 30; rows of 64 hold two at most.
    sizes = Sizes(np.full(3, 10), np.array([20, 20, 30]), np.full(3, 2), np.array([18, 18, 27]))
    stats = PackingPlan(sizes, 2, 64, shape=RowShape(64, 48, 2)).stats()
    assert (stats.steps, stats.rows, stats.examples, stats.tokens) == (1, 2, 3, 100)
    assert stats.padding == pytest.approx(1 - 100 / 128)
    assert stats.saved == pytest.approx(30 / 130)
    assert stats.scored == pytest.approx(63 / 100)
    assert stats.scored_used == pytest.approx(63 / 96)


def test_describe():
    report = describe(PackingPlan(random_sizes(20), 2, 256), {"over-long": 3})
    flat = dict(report.items())
    assert flat["dropped/over-long"] == 3
    assert flat["examples"] == 20
    assert flat["row_tokens"] == 256
    assert flat["longest_example"] == random_sizes(20).tokens(True).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_length": 60}, r"examples do not fit in a row: example \d+ has \d+ tokens, a row holds 60"),
        ({"shape": RowShape(512, 8, 4)}, r"scored tokens, a row holds 8"),
        ({"shape": RowShape(512, 512, 0)}, "room for at least one example"),
        ({"rows_per_step": 0}, "rows_per_step must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"sizes": Sizes(*np.zeros((4, 0), np.int64))}, "no examples to plan"),
    ],
)
def test_refusals(change, message):
    arguments = {"sizes": random_sizes(10), "rows_per_step": 2, "row_length": 512} | change
    with pytest.raises(ValueError, match=message):
        PackingPlan(**arguments)


def test_packing_refuses_what_fits_nowhere():
    for shape in (RowShape(39, 99, 9), RowShape(99, 39, 9), RowShape(99, 99, 0)):
        with pytest.raises(ValueError, match=r"do not fit in a row: example 1 has 40|room for at least one"):
            pack(np.array([10, 40]), np.array([10, 40]), shape)
    with pytest.raises(ValueError, match="example 1 has 40 tokens, a row holds 30"):
        RowShape.choose(Sizes(*np.array([[5, 10], [5, 30], [1, 1], [5, 30]])), 30)


def test_steps_count_from_zero():
    plan = PackingPlan(random_sizes(10), 2, 512)
    with pytest.raises(ValueError, match="steps count from 0"):
        plan.step(-1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        plan.num_steps(0)
