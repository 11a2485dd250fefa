"""The experiment on answering first: teacher rows, slips, policies, and a whole run on tiny data."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.adaptive.corruption import corrupt, slips, steps
from experiments.adaptive.policies import Outcomes, abstaining, at_rate, bootstrap, oracle, tokens_saved, unsure
from experiments.adaptive.report import Arm, at_shares, slip_claim
from experiments.adaptive.small_tasks import RULES
from experiments.adaptive.students import answer_of, right
from experiments.adaptive.teacher_rows import READERS, Row, more, read
from smallr.core.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = [
    Row("Tom has 3 pens.", "He has 3 pens. 3 * 4 is 12.\nSo 12 - 2 = 10.", "10", "t", 0),
    Row("Ann has 1.50.", "She pays 1.50. Nothing else happens here.", "1.5", "t", 1),
    Row("No numbers.", None, "7", "t", 2),
] * 10
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_steps_are_sentences_and_lines():
    text = "He has 3.5 pens. 3 * 4 is 12.\nSo 12 - 2 = 10"
    assert [text[a:b] for a, b in steps(text)] == ["He has 3.5 pens.", "3 * 4 is 12.", "So 12 - 2 = 10"]
    assert [text[slip.start : slip.end] for slip in slips(text)] == ["3.5", "12", "10"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_corruption_changes_an_exact_share_of_the_steps_and_numbers_only(share):
    corrupted = corrupt(ROWS, share, seed=3)
    changed = 0
    for before, after in zip(ROWS, corrupted, strict=True):
        assert (after.question, after.answer, after.group) == (before.question, before.answer, before.group)
        if before.rationale is None:
            assert after.rationale is None
            continue
        assert NUMBER.sub("#", after.rationale) == NUMBER.sub("#", before.rationale)
        old = [before.rationale[a:b] for a, b in steps(before.rationale)]
        new = [after.rationale[a:b] for a, b in steps(after.rationale)]
        for one, other in zip(old, new, strict=True):
            differing = [a != b for a, b in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)]
            assert sum(differing) <= 1
            assert not any(differing[:-1])
            changed += any(differing)
    assert changed == round(share * 40)  # 10 times 3 and 1 steps with a number


def test_corruption_is_seeded_and_nested():
    assert corrupt(ROWS, 0.5, 1) == corrupt(ROWS, 0.5, 1)
    assert corrupt(ROWS, 0.5, 1) != corrupt(ROWS, 0.5, 2)
    few, many = corrupt(ROWS, 0.2, 1), corrupt(ROWS, 0.6, 1)
    for row, a, b in zip(ROWS, few, many, strict=True):
        assert a.rationale == row.rationale or b.rationale != row.rationale
    with pytest.raises(ValueError, match="not between 0 and 1"):
        corrupt(ROWS, 1.5, 0)


def test_an_item_is_replaced_by_another_of_its_group():
    row = Row(
        "?", "Only a red ball fits. The ball is here. 12 balls.", "red ball", "t", 0, (("ball", "red ball", "cup"),)
    )
    (after,) = corrupt([row], 1.0, 0)
    first, second, third = [after.rationale[a:b] for a, b in steps(after.rationale)]
    assert first in ("Only a ball fits.", "Only a cup fits.")  # the longest item that ends there
    assert second in ("The red ball is here.", "The cup is here.")
    assert re.fullmatch(r"\d+ balls\.", third)
    assert third != "12 balls."


def test_rules_derive_the_steps():
    coin = RULES["coin_flip"]("A coin is heads up. Al flips the coin. Bo does not flip the coin. Is the coin …?", "")
    assert (coin.rationale, coin.answer) == (
        "The coin was flipped 1 times. 1 is an odd number. So it is tails up.",
        "no",
    )
    letters = RULES["last_letter_concatenation"]('… words in "Al Bo" and concatenate them.', "")
    assert letters.answer == "lo"
    assert letters.rationale.endswith('Concatenating them is "lo".')
    story = (
        "Alice has a red ball, Bob has a tan ball, and Claire has a blue ball. \n\nFirst, Alice and Bob swap balls. Then, Bob and "
        "Claire swap balls. Finally, Alice and Bob swap balls. At the end of the game, Bob has the \nWhich choice is true? …"
    )
    shuffled = RULES["tracking_shuffled_objects"](story, "")
    assert shuffled.answer == "B"  # Alice B, Bob A, Claire C; then Bob C, Claire A; then Alice C, Bob B
    assert shuffled.rationale.split(". ")[-1] == "Finally, Alice C, Bob B, Claire A."
    date = "Tomorrow is 1/1/2000. What is the date a month ago in MM/DD/YYYY?\nWhich …: (A) 11/30/1999, (B) 11/30/1998."
    assert RULES["date_understanding"](date, "A").rationale == "Today is 12/30/1999. A month ago is 11/30/1999."
    assert RULES["date_understanding"](date, "C") is None


@pytest.fixture
def published(tmp_path):
    """A few rows in the published formats, plain and gzipped."""

    def lines(name, rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode())) if name.endswith("gz") else path.write_text(text)

    svamp = {"question": "A has 2.\nHow many?", "answer": 2.0, "palm_rationale": " A has 2. ", "palm_correct": True}
    lines("palm/svamp_train.jsonl.gz", [svamp, {**svamp, "palm_correct": False}])
    lines("palm/svamp_test.jsonl", [svamp, {**svamp, "palm_correct": False}])
    cqa = {
        "question": "Where?",
        "choices": ["bus", "bridge", "bridge"],
        "answer": "bridge",
        "palm_rationale": "A bridge.",
    }
    lines("cqa_train.jsonl", [{**cqa, "palm_correct": True}])
    lines("cqa_test.jsonl", [{**cqa, "palm_correct": True}])
    gsm = {"question": "Q", "answer": "2*3 = <<2*3=6>>6.\nSo 1,006.\n#### 1,006"}
    lines("gsm8k/train.jsonl", [gsm])
    lines("gsm8k/test.jsonl", [gsm])
    names = [f"N{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(40)]
    question = (
        'A coin is heads up. {} flips the coin. {} flips the coin. Is the coin still heads up? "flip" means "reverse".'
    )
    coins = [{"question": question.format(a, b), "answer": "yes"} for a, b in zip(names[::2], names[1::2], strict=True)]
    (tmp_path / "coin_flip.json").write_text(json.dumps([*coins, {"question": "What?", "answer": "no"}]))
    return tmp_path


def test_readers_of_small_files(published):
    svamp = read("palm_svamp", published)
    assert [(r.question, r.rationale, r.answer) for r in svamp.train] == [("A has 2. How many?", "A has 2.", "2")]
    assert [r.rationale for r in svamp.test] == ["A has 2.", None]  # all test rows are there
    assert svamp.left_out == {"no rationale that leads to the answer": 1}
    (cqa,) = read("palm_cqa", published).train
    assert cqa.question == "Where? Answer choices: (a) bus, (b) bridge, (c) bridge"
    assert cqa.items == (("bus", "bridge"),)
    (gsm,) = read("gsm8k", published).train
    assert (gsm.rationale, gsm.answer) == ("2*3 = 6.\nSo 1,006.", "1006")
    coins = read("coin_flip", published)
    assert len(coins.train) + len(coins.test) + coins.left_out.total() == 21
    assert len(coins.test) == 6
    assert not {r.question for r in coins.train} & {r.question for r in coins.test}
    made = more("coin_flip", coins.train, 20, seed=0, avoid=coins.test, people=3)
    assert len({r.question for r in made} - {r.question for r in coins.test}) == 20
    assert all(r.question.count("flip the coin") + r.question.count("flips the coin") == 3 for r in made)
    with pytest.raises(UserError, match="no last_letter_concatenation"):
        read("last_letter_concatenation", published)
    with pytest.raises(UserError, match="must be one of: palm_cqa"):
        read("cqa", published)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("task", "train", "test"),
    [
        ("palm_cqa", 7234, 1221),
        ("palm_svamp", 586, 200),
        ("gsm8k", 7473, 1319),
        ("coin_flip", 350, 150),
        ("last_letter_concatenation", 337, 150),  # the file's answers to 15 of 500 are not the letters of its words
        ("tracking_shuffled_objects", 525, 225),
        ("date_understanding", 261, 108),
    ],
)
def test_readers_of_the_published_files(task, train, test):
    rows = read(task, SHARED)
    assert (len(rows.train), len(rows.test)) == (train, test)
    assert all(row.rationale and row.answer for row in rows.train)
    if task in RULES:  # no story is on both sides
        assert not {row.group for row in rows.train} & {row.group for row in rows.test}
    assert set(READERS) >= {task}


ANSWER = Outcomes(np.array([[1.0, 0, 0, 1]]), np.array([[2.0, 2, 2, 2]]))
THINK = Outcomes(np.array([[1.0, 1, 1, 0]]), np.array([[10.0, 20, 30, 40]]))


def test_random_and_oracle_of_known_outcomes():
    random = at_rate(ANSWER, THINK, 0.25)
    assert random.accuracy == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)
    assert random.tokens_per_answer == pytest.approx(0.75 * 2 + 0.25 * 25)
    best = oracle(ANSWER, THINK)
    assert best.correct.tolist() == [[1, 1, 1, 1]]
    assert best.tokens.tolist() == [[2, 20, 30, 2]]  # it thinks about the second and third alone
    # A mixture at random that is as accurate as thinking always is thinking always.
    assert tokens_saved(Outcomes(THINK.correct, THINK.tokens - 5), ANSWER, THINK) == pytest.approx(5)
    assert tokens_saved(random, ANSWER, THINK) == pytest.approx(0)
    assert tokens_saved(best, ANSWER, THINK) is None  # no mixture is so accurate
    nll = np.array([[0.1, 2.0, np.nan, 0.2]])
    again = unsure(ANSWER, THINK, nll, 1.0)
    assert again.tokens.tolist() == [[2, 22, 32, 2]]  # both completions are paid for
    assert again.correct.tolist() == [[1, 1, 1, 1]]
    assert abstaining(THINK, nll, 0.5) == (0.5, 50.0)  # the first and the last question, paid for by all four
    assert abstaining(ANSWER, nll, 1.0) == (ANSWER.accuracy, 2.0)


def test_bootstrap_draws_groups_and_seeds():
    values = np.random.default_rng(0).integers(0, 2, (1, 400)).astype(float)
    low, high = bootstrap(values, np.arange(400))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    doubled = np.repeat(values, 2, axis=1)  # each question twice says no more
    clustered = bootstrap(doubled, np.repeat(np.arange(400), 2))
    assert clustered[1] - clustered[0] == pytest.approx(high - low, rel=0.1)
    seeds = bootstrap(np.array([[0.0] * 400, [1.0] * 400]), np.arange(400))
    assert seeds == (0.0, 1.0)


def test_answers_of_completions():
    assert answer_of(" 12 --> 3 + 9", "answer_first") == "12"
    assert answer_of(" 3 + 9 --> 12", "rationale_first") == "12"
    assert answer_of(" 3 + 9", "rationale_first") is None
    assert right("1,200.0", "1200")
    assert not right("12", "13")
    assert not right(None, "12")
    assert right(" Math  problem.", "math problem")
    assert not right("yes", "no")


class Folders:
    """As much of a grid as a report reads."""

    def __init__(self, folders):
        self._folders = folders

    def folder(self, run):
        return self._folders[run]


def test_a_router_cut_at_a_share_thinks_where_its_scores_are_highest(tmp_path):
    scores = [[0.1, -3.0, 2.0, -1.0], [5.0, 6.0, 7.0, 8.0]]
    for seed, values in enumerate(scores):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "module.json").write_text(json.dumps({"scores": values}))
    nan = np.full((2, 4), np.nan)
    answer = Arm("post", Outcomes(np.zeros((2, 4)), np.full((2, 4), 6.0)), nan)
    think = Arm("pre", Outcomes(np.ones((2, 4)), np.full((2, 4), 28.0)), nan)
    (quarter, chance), (half, _) = at_shares(answer, think, Folders({0: tmp_path / "0", 1: tmp_path / "1"}), [0, 1])
    np.testing.assert_array_equal(quarter.outcomes.correct, [[0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(half.outcomes.correct, [[1, 0, 1, 0], [0, 0, 1, 1]])
    assert quarter.outcomes.tokens_per_answer == chance.outcomes.tokens_per_answer == 6 + 22 / 4
    np.testing.assert_allclose(chance.outcomes.correct, 0.25)


@pytest.mark.parametrize(("slipped_pre", "said"), [(0.5, "held"), (1.0, "undecided: slips cost")])
def test_slips_that_hurt_nobody_prove_nothing(slipped_pre, said):
    """post gains from 0.8 to 1; pre falls to one half, or stays as it was."""
    groups, nan = np.arange(20), np.full((2, 20), np.nan)

    def arm(share):
        return Arm("", Outcomes(np.tile(np.arange(20) < 20 * share, (2, 1)).astype(float), np.ones((2, 20))), nan)

    arms = {("pre", 0.0): arm(1.0), ("post", 0.0): arm(0.8), ("pre", 0.5): arm(slipped_pre), ("post", 0.5): arm(1.0)}
    ((_, _, verdict),) = slip_claim(arms, groups)
    assert verdict.startswith(said)
