"""The built-in teacher data, checked from its texts alone: equations are evaluated again, questions solved again."""

import ast
import hashlib
import json
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from datasets import DatasetDict, load_from_disk

from smallr.data import builtin
from smallr.data.builtin import dataset
from smallr.data.builtin.dataset import normalise
from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.problems import Problem, Step, solve
from smallr.data.builtin.slips import SLIPS, make_slips
from smallr.data.builtin.templates import TEMPLATES
from smallr.data.formats import REQUIRED
from smallr.data.rows import GAPS

WORDS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
NUMBER = re.compile(r"\d+|\b(?:" + "|".join(WORDS) + r")\b")
CHAIN = re.compile(r"[\d(][\d +*/()%=of-]*= *\d+")

# The answers, worked out from the numbers in the order in which the question names them.
ANSWERS = {
    "bakery": lambda trays, each, sold, box: Fraction(trays * each - sold, box),
    "change": lambda n1, p1, n2, p2, paid: paid - n1 * p1 - n2 * p2,
    "reading": lambda pages, a_day, days, rest: Fraction(pages - a_day * days, rest),
    "ages": lambda age, times, years: age * (times + 1) + 2 * years,
    "journey": lambda h1, v1, h2, v2, trip: trip - h1 * v1 - h2 * v2,
    "discount": lambda count, price, percent: Fraction(count * price * (100 - percent), 100),
    "school": lambda students, part, percent: students * (1 - Fraction(1, part)) * Fraction(percent, 100),
    "sharing": lambda a, b, c, bags: Fraction(a + b + c, bags),
    "wages": lambda wage, hours, days, rent: wage * hours * days - rent,
    "garden": lambda rows, each, part, fruits: rows * each * (1 - Fraction(1, part)) * fruits,
    "tank": lambda volume, start, fill, leak: Fraction(volume - start, fill - leak),
    "saving": lambda price, has, earns, spends: Fraction(price - has, earns - spends),
    "theatre": lambda adults, full, children, half, hall: adults * full + children * half - hall,
    "factory": lambda machines, rate, hours, percent: machines * rate * hours * Fraction(100 - percent, 100),
    "recipe": lambda cups, serves, guests, has: Fraction(guests, serves) * cups - has,
    "stickers": lambda has, part, packs, each: has * (1 - Fraction(1, part)) + packs * each,
    "bus": lambda count, seats, percent, late: Fraction(count * seats * percent, 100) + late,
}


@pytest.fixture(scope="module")
def questions():
    return builtin.make_questions(seed=0, train=400, test=60)


def numbers(text: str) -> list[int]:
    return [WORDS.get(found) or int(found) for found in NUMBER.findall(text)]


def evaluate(expression: str) -> Fraction:
    """Exact value of an expression of whole numbers, `+ - * /`, brackets and `p% of n`."""
    operations = {
        ast.Add: Fraction.__add__,
        ast.Sub: Fraction.__sub__,
        ast.Mult: Fraction.__mul__,
        ast.Div: Fraction.__truediv__,
    }

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp), expression
        return operations[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(expression.replace("% of", "/ 100 *").strip(), mode="eval").body)


def equations(text: str) -> list[tuple[str, ...]]:
    """Every `a = b = …` of a rationale."""
    text = re.sub(r"Step \d:", "", text)
    return [tuple(side.strip() for side in found.split("=")) for found in CHAIN.findall(text)]


def holds(equation: tuple[str, ...]) -> bool:
    return len({evaluate(side) for side in equation}) == 1


def boxed(text: str) -> int:
    (answer,) = re.findall(r"\\boxed\{(\d+)\}", text)
    assert re.fullmatch(r"[\s\S]*\\boxed\{\d+\}\.?", text), "the answer comes last"
    return int(answer)


def test_evaluate():
    assert evaluate("25% of (100 - (100 / 5))") == 20
    assert equations("Step 2: So 3 * 12 = 3 * 10 + 3 * 2 = 36 km.\n4 - 2 = 3, hence") == [
        ("3 * 12", "3 * 10 + 3 * 2", "36"),
        ("4 - 2", "3"),
    ]
    assert holds(("3 * 12", "3 * 10 + 3 * 2", "36"))
    assert not holds(("4 - 2", "3"))


def test_every_template_is_used_and_its_answer_right(questions):
    used = Counter(q.problem.template for split in questions.values() for q in split)
    assert used.keys() == ANSWERS.keys()
    assert len(TEMPLATES) == len(ANSWERS)
    for split in questions.values():
        for q in split:
            assert q.answer == ANSWERS[q.problem.template](*numbers(q.problem.question)), q.problem.question
            assert 2 <= len(q.problem.steps) <= 4


def test_right_rationales_hold_step_by_step(questions):
    for q in questions["train"]:
        for text in (q.fitted, q.unfitted):
            found = equations(text)
            assert found
            assert all(map(holds, found)), text
            assert boxed(text) == q.answer == int(found[-1][-1]) or q.label == "hard"
        assert len(equations(q.fitted)) == len(q.problem.steps), "the fitted one has every step once"
        detours = len(equations(q.unfitted)) - len(q.problem.steps)
        assert detours == 1 if q.label == "hard" else detours <= 0


def test_incorrect_rationales_have_a_real_slip(questions):
    for q in questions["train"]:
        truth = {line.equation for line in solve(q.problem)}
        assert len({wrong.slip for wrong in q.incorrect}) == len(q.incorrect) == 2
        assert len({q.answer, *(wrong.answer for wrong in q.incorrect)}) == 3
        for wrong in q.incorrect:
            assert boxed(wrong.text) == wrong.answer
            found = equations(wrong.text)
            false = [equation for equation in found if not holds(equation)]
            said = {" = ".join(equation) for equation in found}
            if wrong.slip == "arithmetic":
                assert len(false) == 1, wrong.text
            else:
                assert not false, wrong.text
                assert not truth <= said, "every right step is there, so where is the slip?"
            assert f"= {wrong.answer}" in wrong.text, "the slip is carried to the answer"


def test_wrong_answers_do_not_stand_in_the_question(questions):
    for q in questions["train"]:
        for answer in (q.answer, *(wrong.answer for wrong in q.incorrect)):
            assert answer not in numbers(q.problem.question)


def test_slips_by_hand():
    steps = (Step("all", "boxes", "*", "each", "{}"), Step("left", "all", "-", "sold", "{}"))
    problem = Problem("t", "?", "", {"boxes": 6, "each": 8, "sold": 5}, steps)
    assert [line.equation for line in solve(problem)] == ["6 * 8 = 48", "48 - 5 = 43"]
    wrong = dict(make_slips(problem, 4, random.Random(0)))
    assert wrong.keys() == SLIPS.keys()
    seen = {kind: [line.equation for line in solve(slipped)] for kind, slipped in wrong.items()}
    assert [evaluate(a) == int(b) for a, b in (e.split("=") for e in seen["arithmetic"])].count(False) == 1
    assert seen["operation"] in (["6 + 8 = 14", "14 - 5 = 9"], ["6 * 8 = 48", "48 + 5 = 53"])
    assert seen["dropped"] in (["8 - 5 = 3"], ["6 * 8 = 48"])
    assert len(seen["quantity"]) == 2
    assert seen["quantity"] != [line.equation for line in solve(problem)]


def test_splits_share_neither_text_nor_numbers(questions):
    train, test = questions["train"], questions["test"]
    for key in (lambda q: normalise(q.problem.question), lambda q: tuple(sorted(numbers(q.problem.question)))):
        assert not {key(q) for q in train} & {key(q) for q in test}
    assert len({normalise(q.problem.question) for q in (*train, *test)}) == 460


def test_numbers_of_held_out_questions_are_never_drawn():
    def draw(forbidden: frozenset) -> set[tuple[int, ...]]:
        found = dataset._distinct(random.Random(7), 30, forbidden)
        return {tuple(sorted(q.problem.givens.values())) for q in found}

    held_out = draw(frozenset())
    assert not draw(frozenset(held_out)) & held_out


def test_normalise():
    assert normalise("A  Pool, of 5;\nlitres?") == "a pool of 5 litres"


def test_rows_by_gap(questions):
    rows = list(builtin.preference_rows(questions["train"], "train"))
    assert set(REQUIRED["preference"][0]) <= rows[0].keys()
    assert Counter(row["gap"] for row in rows) == dict.fromkeys(GAPS, 400)
    for q, small, medium, large in zip(questions["train"], rows[::3], rows[1::3], rows[2::3], strict=True):
        assert [row["gap"] for row in (small, medium, large)] == list(GAPS)
        assert (small["chosen"], small["rejected"]) == (q.fitted, q.unfitted)
        assert (medium["chosen"], medium["rejected"]) == (q.unfitted, q.incorrect[0].text)
        assert (large["chosen"], large["rejected"]) == (q.fitted, q.incorrect[1].text)
        assert boxed(small["rejected"]) == boxed(medium["chosen"]) == int(small["answer"])
        assert (small["slip"], medium["slip"], large["slip"]) == ("", q.incorrect[0].slip, q.incorrect[1].slip)
        assert (small["label"], large["label"]) == (q.label, "medium")
        assert len({row["question_id"] for row in (small, medium, large)}) == 1
    assert all(0.4 < count / 400 < 0.6 for count in Counter(q.label for q in questions["train"]).values())
    slips = Counter(row["slip"] for row in rows if row["slip"])
    assert slips.keys() == SLIPS.keys()
    assert all(count > 150 for count in slips.values())


def test_a_teacher_mostly_does_not_fit(questions):
    rows = list(builtin.teacher_rows(questions["train"], "train"))
    assert Counter(row["slip"] != "" for row in rows) == {False: 360, True: 40}
    assert Counter(row["fits"] == "medium" for row in rows)[True] == 80
    for q, row in zip(questions["train"], rows, strict=True):
        assert row["question"] == q.problem.question
        right = boxed(row["rationale"]) == q.answer
        assert right == (row["slip"] == "") == (row["fits"] != "")
        assert int(row["answer"]) == q.answer
        if right:
            assert row["rationale"] == (q.fitted if row["fits"] == "medium" else q.unfitted)


def test_a_question_leads_back_to_its_problem(questions):
    for q in (*questions["train"], *questions["test"]):
        assert find_problem(q.problem.question) == q.problem
    question = questions["train"][0].problem.question
    assert find_problem(question.replace(" ", "  ")) == questions["train"][0].problem
    for strange in ("", "What is 12 + 30?", question[:-1], question + " 7 8 9 10 11 12 13"):
        assert find_problem(strange) is None


def test_length_does_not_decide(questions):
    rows = list(builtin.preference_rows(questions["train"], "train"))
    for gap in GAPS:
        pairs = [(row["chosen"], row["rejected"]) for row in rows if row["gap"] == gap]
        longer = sum(len(chosen) > len(rejected) for chosen, rejected in pairs) / len(pairs)
        assert 0.4 < longer < 0.62, f"{gap}: chosen is longer in {longer:.0%} of pairs"


def test_texts_are_clean(questions):
    for q in questions["train"]:
        texts = (q.problem.question, q.fitted, q.unfitted, *(wrong.text for wrong in q.incorrect))
        for text in texts:
            assert text == text.strip()
            assert not re.search(r" {2}|\{\}|\bNone\b|\b[Aa] [aeio]|\b1 [a-z]", text), text
            assert not re.search(r"(?:^|[.?] )[a-z]", text), f"a sentence starts in lower case: {text}"
        assert q.problem.question.endswith("?")
        assert all(len(text.split()) < 90 for text in texts)


def test_rows_are_pinned():
    """Cached data sets are found by VERSION: when this digest changes, raise it and pin the new pair."""
    questions = builtin.make_questions(seed=0, train=30, test=10)
    rows = [
        list(make(questions[split], split))
        for make in (builtin.preference_rows, builtin.rationale_rows)
        for split in ("train", "test")
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    assert (builtin.VERSION, digest) == (1, "71dcf814b63d6e87")


def test_more_questions_begin_with_the_same(questions):
    few = builtin.make_questions(seed=0, train=50, test=60)
    assert few["train"] == questions["train"][:50]
    assert few["test"] == questions["test"]
    assert builtin.make_questions(seed=1, train=50, test=60)["train"] != few["train"]


def test_build_and_read_back(tmp_path):
    built = builtin.build(tmp_path / "a", seed=3, train_questions=6, test_questions=2)
    builtin.build(tmp_path / "b", seed=3, train_questions=6, test_questions=2)
    for kind, count in (("preference", 3), ("teacher", 1), ("rationale", 1)):
        read = load_from_disk(tmp_path / "a" / kind)
        assert {split: len(rows) for split, rows in read.items()} == {"train": 6 * count, "test": 2 * count}
        for split in read:
            assert read[split].to_list() == built[kind][split].to_list()
            assert read[split].to_list() == load_from_disk(tmp_path / "b" / kind)[split].to_list()
    assert set(REQUIRED["rationale"][0]) <= set(read["train"].column_names)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"preference", "rationale", "teacher"}
    builtin.build(tmp_path / "a", seed=3, train_questions=3, test_questions=1)
    assert len(load_from_disk(tmp_path / "a" / "rationale")["train"]) == 3


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    builtin.build(tmp_path, train_questions=2, test_questions=1)

    def fail(self, path, **_):
        path.mkdir(exist_ok=True)
        (path / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(DatasetDict, "save_to_disk", fail)
    with pytest.raises(OSError, match="disk full"):
        builtin.build(tmp_path, train_questions=3, test_questions=1)
    assert len(load_from_disk(tmp_path / "rationale")["train"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"preference", "rationale", "teacher"}


def test_ensure_built_builds_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path))
    folder = builtin.ensure_built(train_questions=2, test_questions=1)
    assert len(load_from_disk(folder / "preference")["train"]) == 6
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "build", lambda *_: pytest.fail("built again"))
        assert builtin.ensure_built(train_questions=2, test_questions=1) == folder
    assert builtin.ensure_built(seed=1, train_questions=2, test_questions=1) != folder


def test_refusals():
    with pytest.raises(ValueError, match="at least one question each, got 0 and 5"):
        builtin.make_questions(0, 0, 5)
