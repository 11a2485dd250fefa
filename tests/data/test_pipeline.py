"""The loader: the batch of a step is the same on any number of hosts and threads, from any start."""

import itertools
import sys

import jax
import numpy as np
import pytest

from smallr.data.batch import Batch, Completion, Example
from smallr.data.packing import PackingPlan, Sizes
from smallr.data.pipeline import assemble, batches, local_rows, stack_columns


def make_examples(count: int) -> list[Example]:
    rng = np.random.default_rng(0)

    def tokens(most: int) -> np.ndarray:
        return rng.integers(0, 99, int(rng.integers(1, most))).astype(np.int32)

    def completion() -> Completion:
        return Completion(ids := tokens(30), np.ones_like(ids))

    return [Example(tokens(20), (completion(), completion()), {"beta": i / 8}, i) for i in range(count)]


EXAMPLES = make_examples(60)
COLUMNS = stack_columns(EXAMPLES)


def make_plan(**options) -> PackingPlan:
    return PackingPlan(Sizes.of(EXAMPLES), 4, 128, seed=1, **options)


def assert_equal(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_stack_columns():
    assert COLUMNS.keys() == {"beta"}
    assert COLUMNS["beta"].dtype == np.float32
    np.testing.assert_array_equal(COLUMNS["beta"], np.arange(60) / 8)
    assert stack_columns([]) == {}


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_the_steps_of_the_plan(threads, share_prompt):
    plan = make_plan(share_prompt=share_prompt)
    steps = plan.num_steps(2)
    found = list(batches(plan, EXAMPLES, COLUMNS, 0, steps, threads=threads))
    assert len(found) == steps
    for n, batch in enumerate(found):
        assert_equal(batch, assemble(plan.step(n), EXAMPLES, plan.shape, COLUMNS, share_prompt))


def test_resume_goes_on_with_the_same_batches():
    steps = make_plan().num_steps(3)
    whole = list(batches(make_plan(), EXAMPLES, COLUMNS, 0, steps))
    for start in (1, steps // 2, steps - 1):
        rest = list(batches(make_plan(), EXAMPLES, COLUMNS, start, steps - start))
        assert len(rest) == steps - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert_equal(a, b)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_see_one_host_s_batch(hosts):
    steps = make_plan().num_steps(2)
    whole = batches(make_plan(), EXAMPLES, COLUMNS, 0, steps)
    parts = [
        batches(make_plan(), EXAMPLES, COLUMNS, 0, steps, rows=np.split(np.arange(4), hosts)[host], threads=host % 2)
        for host in range(hosts)
    ]
    for expected, *shares in zip(whole, *parts, strict=True):
        assert shares[0].tokens.shape == (4 // hosts, 128)
        assert_equal(expected, jax.tree.map(lambda *x: np.concatenate(x), *shares))


def test_evaluation_sees_every_example_once_in_order():
    plan = make_plan(shuffle=False, packing=False)
    found = np.concatenate([b.example for b in batches(plan, EXAMPLES, COLUMNS, 0, plan.num_steps(1))])
    np.testing.assert_array_equal(found[:, 0], np.arange(60))
    plan = PackingPlan(Sizes.of(EXAMPLES), 7, 128, shuffle=False)
    found = np.concatenate([b.example.ravel() for b in batches(plan, EXAMPLES, COLUMNS, 0, plan.num_steps(1))])
    np.testing.assert_array_equal(np.sort(found[found >= 0]), np.arange(60))


def test_one_shape_for_all_steps_and_epochs():
    plan = make_plan()
    shapes = {
        tuple(x.shape for x in jax.tree.leaves(batch))
        for batch in batches(plan, EXAMPLES, COLUMNS, 0, plan.num_steps(4))
    }
    assert len(shapes) == 1


def test_a_run_without_end():
    stream = batches(make_plan(), EXAMPLES, COLUMNS, 10**4, sys.maxsize)
    first, second = itertools.islice(stream, 2)
    plan = make_plan()
    assert_equal(second, assemble(plan.step(10**4 + 1), EXAMPLES, plan.shape, COLUMNS))
    assert (first.example != second.example).any()


def test_nothing_left_to_do():
    assert list(batches(make_plan(), EXAMPLES, COLUMNS, 5, 0)) == []


class OfOneProcess:
    """The sharding of some rows as one process sees it: device -> what it holds."""

    def __init__(self, *held: slice):
        self._held = {device: (rows,) for device, rows in enumerate(held)}

    def addressable_devices_indices_map(self, shape):
        return self._held


def test_a_process_assembles_the_rows_that_its_devices_hold():
    assert local_rows(OfOneProcess(slice(0, 2), slice(2, 4)), 8).tolist() == [0, 1, 2, 3]
    assert local_rows(OfOneProcess(slice(None), slice(None)), 4).tolist() == [0, 1, 2, 3], "replicated over tensor"
    assert local_rows(OfOneProcess(slice(6, 8), slice(0, 2), slice(0, 2)), 8).tolist() == [0, 1, 6, 7]


def test_refusals():
    with pytest.raises(ValueError, match="plan is of 60 examples, but examples has 59"):
        batches(make_plan(), EXAMPLES[:59], COLUMNS, 0, 1)
    with pytest.raises(ValueError, match="column 'beta' has 3"):
        batches(make_plan(), EXAMPLES, {"beta": np.ones(3, np.float32)}, 0, 1)
