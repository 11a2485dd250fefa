"""Planners on a task of letters, which has nothing to do with SQL."""

from __future__ import annotations

import random

import pytest

from smallr.methods.planner.discriminators.base import Case
from smallr.methods.planner.discriminators.oracle import Oracle
from smallr.methods.planner.planners import PLANNERS, Budget, Search, best
from smallr.methods.planner.task import Candidate, Draft, Outcome, Problem, gather, groups
from smallr.methods.planner.writers import GivenWriter

PROBLEM = Problem("p", "spell it", gold="cab")


class Letters:
    """Plans are words of a, b and c; a step is a letter."""

    noun, context_title = "word", ""

    def propose(self, problem, write, count, *, prefix="", rejected="", round=0):
        return gather(write(problem, Draft("", prefix, rejected, count, round)), str.strip)

    def check(self, plan):
        return "" if plan.isalpha() else "no word"

    def execute(self, jobs):
        return [[Outcome(plan, plan, self.check(plan)) for plan in plans] for _, plans in jobs]

    def gold(self, problems):
        return [Outcome(problem.gold) for problem in problems]

    def equal(self, found, wanted):
        return found.value == wanted.value

    def next_step(self, plan, prefix):
        return plan[: len(prefix) + 1]


def searched(planner: str, write, judge, **budget):
    found = Search(Letters(), write, judge, PROBLEM, Budget(**budget))
    return PLANNERS[planner](found), found


def constant(_, plans, outcomes):
    return [0.5] * len(plans)


def test_rerank_breaks_ties_by_the_alphabet():
    assert best(["b", "a", "c"], [0.5, 0.5, 0.1]) == 1
    assert best([], []) is None
    plan, _ = searched("rerank", lambda *_: ["b", "c", "a"], constant)
    assert plan == "a"


def test_greedy_takes_one_plan_and_asks_nobody():
    plan, found = searched("greedy", lambda _, draft: ["b", "a"][: draft.count], None)
    assert (plan, found.proposals, found.scored) == ("b", 1, {})


def test_iterative_stops_by_patience_rounds_or_acceptance():
    asked = []

    def write(_, draft):
        asked.append(draft.rejected)
        return [f"{'abc'[draft.round % 3]}"]

    plan, _found = searched("iterative", write, constant, patience=3, rounds=10)
    assert plan == "a"
    assert asked == ["", "a", "a", "a"]
    asked.clear()
    searched("iterative", write, constant, patience=9, rounds=4)
    assert len(asked) == 4
    asked.clear()
    plan, _ = searched("iterative", write, lambda _, plans, __: [1.0 if p == "b" else 0.1 for p in plans], accept=0.9)
    assert plan == "b"
    assert asked == ["", "a"]


def test_iterative_keeps_the_best_and_survives_rounds_without_proposals():
    def write(_, draft):
        return [["b"], [], ["c"], []][draft.round]

    plan, found = searched("iterative", write, lambda _, plans, __: [{"b": 0.8, "c": 0.2}[p] for p in plans], rounds=4)
    assert plan == "b"
    assert set(found.scored) == {"b", "c"}
    assert searched("iterative", lambda *_: [], constant)[0] is None


def random_writer(seed: int = 0):
    rng = random.Random(seed)

    def write(_, draft):
        return [draft.prefix + "".join(rng.choices("abc", k=3 - len(draft.prefix))) for _ in range(draft.count)]

    return write


@pytest.mark.parametrize("expansions", [1, 2, 7, 50])
def test_tree_never_exceeds_its_budget(expansions):
    for seed in range(5):
        rng = random.Random(seed)

        def judge(_, plans, outcomes, rng=rng):
            return [rng.random() for _ in plans]

        plan, found = searched("tree", random_writer(seed), judge, expansions=expansions, candidates=3)
        assert found.expansions <= expansions
        assert found.proposals <= 3 * expansions
        assert plan in found.scored


def test_tree_follows_the_best_rollouts_to_the_goal():
    def judge(_, plans, __):
        return [sum(a == b for a, b in zip(plan, "cab", strict=True)) / 3 for plan in plans]

    plan, found = searched("tree", random_writer(1), judge, candidates=12, expansions=50)
    assert plan == "cab"
    assert 1 < found.expansions <= 10
    assert searched("tree", lambda *_: [], constant)[0] is None


def test_tree_leaves_plans_that_only_look_like_the_prefix():
    given = {"p": [Candidate("ab"), Candidate("abc")]}
    plan, _found = searched("tree", GivenWriter(given), lambda _, plans, __: [float(len(p)) for p in plans])
    assert plan == "abc"


def test_no_plan_is_judged_twice():
    judged = []

    def judge(_, plans, __):
        judged.extend(plans)
        return [0.1] * len(plans)

    searched("iterative", lambda *_: ["a", "b", "a"], judge)
    assert sorted(judged) == ["a", "b"]


@pytest.mark.parametrize("seed", range(4))
def test_an_oracle_of_accuracy_one_is_always_right(seed):
    plans = ("abc", "cab", "ccc", "1")
    case = Case(PROBLEM, plans, tuple(Letters().execute([(PROBLEM, plans)])[0]))
    ((_, found),) = Oracle(Letters(), 1.0, seed).judge([case])
    assert [each.correct for each in found] == [False, True, False, False]
    ((_, found),) = Oracle(Letters(), 0.0, seed).judge([case])
    assert [each.correct for each in found] == [True, False, True, True]


def test_an_oracle_errs_as_often_as_it_shall_and_repeats_itself():
    plans = tuple(f"{'abc'[i % 3]}{i}" for i in range(2000))
    case = Case(PROBLEM, plans, tuple(Outcome(plan) for plan in plans))
    ((_, found),) = Oracle(Letters(), 0.8, 1).judge([case])
    ((_, again),) = Oracle(Letters(), 0.8, 1).judge([case])
    assert found == again
    assert 0.77 < sum(not each.correct for each in found) / len(found) < 0.83


def test_a_given_generator_repeats_itself_and_keeps_to_prefixes():
    given = {"p": [Candidate("abc", 5), Candidate("acb", 1), Candidate("ccc", 3)]}
    write = GivenWriter(given, 0)
    assert write(PROBLEM, Draft("", count=1)) == ["abc"]
    drawn = write(PROBLEM, Draft("", prefix="a", count=50))
    assert set(drawn) == {"abc", "acb"}
    assert drawn.count("abc") > 30
    assert drawn == GivenWriter(given, 0)(PROBLEM, Draft("", prefix="a", count=50))
    assert drawn != write(PROBLEM, Draft("", prefix="a", count=50, round=1))
    assert "abc" not in write(PROBLEM, Draft("", rejected="abc", count=50))
    assert write(PROBLEM, Draft("", prefix="b", count=2)) == []


def test_groups_of_equal_outcomes():
    outcomes = [Outcome("a"), Outcome("b"), Outcome(error="no"), Outcome("a")]
    assert groups(Letters(), outcomes) == [0, 1, -1, 0]
