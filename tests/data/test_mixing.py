"""A mixture takes what its weights say, of each example as often as of any other, and makes one set of several."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smallr.data.mixing import Mixture, merge_sets, shares
from smallr.data.packing import PackingPlan, RowShape, Sizes
from tests.data.tokens import whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1, 1.5, 2, 3.7])), min_size=1, max_size=3
    ),
    st.integers(0, 5),
)
def test_every_example_of_a_source_is_taken_equally_often(sources, seed):
    assume(all(count * weight >= 1 for count, weight in sources))
    counts, weights = zip(*sources, strict=True)
    mixture, taken, ends = Mixture(counts, weights), np.zeros(sum(counts), int), np.cumsum(counts)
    for epoch in range(7):
        drawn = mixture.epoch(seed, epoch)
        assert (np.diff(drawn) >= 0).all()
        taken += np.bincount(drawn, minlength=len(taken))
        for count, weight, stop in zip(counts, weights, ends, strict=True):
            own = taken[stop - count : stop]
            assert own.max() - own.min() <= 1
            assert abs(own.sum() - Fraction(weight) * count * (epoch + 1)) <= Fraction(1, 2) + Fraction(1, 10**6)


def test_halves_follow_each_other_and_depend_on_the_seed():
    mixture = Mixture((4, 10), (2.0, 0.5))
    first, second = mixture.epoch(0, 0), mixture.epoch(0, 1)
    assert first.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, *first[8:]]
    assert len(first) == len(second) == 13
    assert sorted([*first[8:], *second[8:]]) == list(range(4, 14))
    assert mixture.epoch(0, 0).tolist() == first.tolist()
    assert mixture.epoch(1, 0)[8:].tolist() != first[8:].tolist()
    assert Mixture((4, 10), (1.0, 1.0)).epoch(0, 3).tolist() == list(range(14))


def sizes_of(lengths) -> Sizes:
    lengths = np.asarray(lengths)
    return Sizes(lengths, lengths, np.ones_like(lengths), lengths)


@pytest.mark.parametrize("packing", [True, False])
def test_a_plan_holds_the_examples_of_the_mixture(packing):
    rng = np.random.default_rng(0)
    sizes, mixture = sizes_of(rng.integers(1, 9, 30)), Mixture((10, 20), (2.0, 0.5))
    plan = PackingPlan(sizes, 2, 64, seed=3, mixture=mixture, packing=packing)
    ends = [0, plan.num_steps(1), plan.num_steps(2)]
    for epoch in range(2):
        rows = [row for n in range(ends[epoch], ends[epoch + 1]) for row in plan.step(n)]
        drawn = sorted(i for row in rows for i in row)
        assert drawn == mixture.epoch(3, epoch).tolist()
        stats = plan.stats(epoch)
        assert (stats.examples, stats.steps) == (30, ends[epoch + 1] - ends[epoch])
        assert stats.tokens == sum(int(plan.sizes.tokens(True)[i]) for i in drawn)
    # Any step can be asked for first: what a resumed run does.
    again = PackingPlan(sizes, 2, 64, seed=3, mixture=mixture, packing=packing)
    assert again.step(ends[1] + 1) == plan.step(ends[1] + 1)
    rows = [row for n in range(plan.once.num_steps(1)) for row in plan.once.step(n)]
    assert sorted(i for row in rows for i in row) == list(range(30))
    assert plan.once.shape == plan.shape


def test_weights_of_one_change_nothing():
    sizes = sizes_of(np.random.default_rng(1).integers(1, 9, 30))
    plain, mixed = (PackingPlan(sizes, 2, 64, seed=3, mixture=each) for each in (None, Mixture((10, 20), (1.0, 1.0))))
    assert [plain.step(n) for n in range(12)] == [mixed.step(n) for n in range(12)]
    assert plain.once is plain
    assert isinstance(plain.shape, RowShape)


def test_sets_are_merged_with_their_reports(run, tmp_path):
    pairs = [
        {"prompt": f"q {i}", "chosen": "a", "rejected": "b b" * i, "ref_chosen": -1.0, "ref_rejected": -2.0}
        for i in range(3)
    ]
    orca = [{"question": f"r {i}", "chosen": "yes", "rejected": "no", "system_prompt": "s"} for i in range(2)]
    one, two = run(pairs), run(orca, kind="preference")
    found = merge_sets([one, two], cache=tmp_path / "tokens")
    assert [whole(e, s) for e in found for s in (0, 1)] == [
        whole(e, s) for part in (one, two) for e in part for s in (0, 1)
    ]
    assert found.source.tolist() == [0, 0, 1, 1]
    assert found.rows.tolist() == [1, 2, 0, 1]
    assert [report.kept for report in found.sources] == [2, 2]
    assert (found.report.kept, found.report.total) == (4, 5)
    assert list(found.report.dropped) == ["empty rejected (rows)"]
    np.testing.assert_array_equal(found.columns["ref_chosen"], np.array([-1, -1, np.nan, np.nan], np.float32))
    assert found.place(2) == "rows, row 0"
    assert one.place(1) == "row 2"
    assert merge_sets([one], cache=tmp_path / "tokens") is one
    again = merge_sets([one, two], cache=tmp_path / "tokens")
    assert again.fingerprint == found.fingerprint != one.fingerprint


def test_shares():
    found = shares(np.array([0, 0, 1]), np.array([2, 2, 1]), np.array([1, 2, 4]))
    np.testing.assert_allclose(found, [[0.8, 0.6], [0.2, 0.4]])
