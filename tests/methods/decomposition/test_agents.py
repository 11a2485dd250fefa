"""Strict readings of replies, and the oracles on the built-in problems."""

from __future__ import annotations

import random

import pytest

from smallr.agents.oracle import read_oracle
from smallr.data.builtin.problems import solve
from smallr.data.builtin.templates import TEMPLATES, draw_problem
from smallr.methods.decomposition.answers import final_number
from smallr.methods.decomposition.arithmetic import answers_of, final_of, question_of, questions_of
from smallr.methods.decomposition.names import ANSWERER, JUDGE, QUESTIONER, SOLVER
from smallr.methods.decomposition.oracle import CalculatorOptions, Oracle, OracleOptions
from smallr.methods.decomposition.prompts import load_prompts
from smallr.methods.decomposition.raw import numbered, read_numbered
from smallr.methods.decomposition.replies import read_answers, read_final_answer, read_sub_questions, read_verdicts
from smallr.methods.decomposition.sequence import PUBLISHED
from smallr.sampling.requests import Request, Sample, SamplingParams


def stop(text):
    return Sample(text, "stop")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q1: Who?\nQ2:  How  many?", ("Who?", "How many?")),
        ("<think>hm</think>\n\nQ1. Who?\n\nQ2) How?", ("Who?", "How?")),
        ("**Q1: Who?**", ("Who?",)),
        ("Q1: Who?\nSo it is.", "a line that is no sub-question"),
        ("Q1: Who?\nQ3: How?", "sub-questions are not numbered 1, 2, …"),
        ("Q2: Who?", "sub-questions are not numbered 1, 2, …"),
        ("Q1: Who </QUE>?", "a marker in a sub-question"),
        (numbered(["Who?"] * 33), "more than 32 sub-questions"),
        (" ", "empty reply"),
    ],
)
def test_sub_questions(text, expected):
    value, problem = read_sub_questions(stop(text), PUBLISHED)
    assert (value if value is not None else problem) == expected
    assert read_sub_questions(Sample("Q1: Who?", "length"), PUBLISHED) == (None, "cut off")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A1: 2\nA2: 3\n\nFinal answer: 3", ""),
        ("A1: 2\nso\n**A2:** 3\n\nfinal answer: 3", ""),
        ("A1: 2\nA2: 3", "no final answer"),
        ("A1: 2\nA2: 3\nFinal answer:", "no final answer"),
        ("A1: 2\nFinal answer: 3\nA2: 3", "not one answer to each sub-question"),
        ("A1: 2\nA2: 3\nA3: 4\nFinal answer: 3", "not one answer to each sub-question"),
    ],
)
def test_answers(text, problem):
    assert read_answers(stop(text), 2) == ((text, "") if not problem else (None, problem))


def test_final_answers_of_a_solver():
    assert read_final_answer(Sample("Final answer: 3\n\nProblem: a", "length"))[0]
    assert read_final_answer(stop("A1: 3")) == (None, "no final answer")
    assert read_final_answer(Sample("A1: 3", "length")) == (None, "cut off")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q1: Yes\nQ2: No", (True, False)),
        ("Q1: <no> Q2: YES.", (False, True)),
        ("Q1: Yes", "not one verdict on each sub-question"),
        ("Q1: Yes\nQ1: No", "not one verdict on each sub-question"),
        ("Q1: maybe\nQ2: No", "not one verdict on each sub-question"),
    ],
)
def test_verdicts(text, expected):
    value, problem = read_verdicts(stop(text), 2)
    assert (value if value is not None else problem) == expected


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.__name__.strip("_"))
def test_the_calculator_is_right_exactly_if_the_sub_questions_are_well_posed(template):
    problem = draw_problem(random.Random(1), [template])
    asked, lines = questions_of(problem), solve(problem)
    assert len(set(asked)) == len(asked) >= 3
    answers = answers_of(problem, asked)
    assert [answer.line for answer in answers] == list(lines)
    assert all(answer.is_useful for answer in answers)
    assert final_of(problem, answers) == lines[-1].value
    for left_out, line in enumerate(lines):  # every step is needed, and needed before the ones that use it
        answers = answers_of(problem, asked[:left_out] + asked[left_out + 1 :])
        told = [answer.line.step.name for answer in answers if answer.line]
        users = {later.step.name for later in lines if line.step.name in (later.step.left, later.step.right)}
        assert not users & set(told)
        assert final_of(problem, answers) is None
    swapped = answers_of(problem, asked[::-1])
    assert swapped[0].line is None
    odd = answers_of(problem, [asked[0], f" {asked[0].upper()} ", "Is it so?"])
    assert [answer.is_useful for answer in odd] == [True, False, False]
    assert odd[1].is_repeated


def ask(oracle, prompt, **params):
    with oracle:
        (result,) = oracle.complete_sync(
            [Request(({"role": "user", "content": prompt},), params=SamplingParams(**params))]
        )
    return [sample.text for sample in result.samples] if result.error is None else result.error


def test_the_oracle_reads_the_prompts_and_errs_as_often_as_it_is_told():
    problem, prompts = (
        draw_problem(random.Random(2)),
        load_prompts(dict.fromkeys(("sub_questions", "answers", "usefulness"), "")),
    )
    steps, final = questions_of(problem), solve(problem)[-1].value
    prompt = prompts.render("sub_questions", problem=problem.question)
    assert ask(Oracle(QUESTIONER), prompt) == [numbered(steps)]
    told = OracleOptions(omit=0.2, repeat=0.2, useless=0.2, slip=0.3, verdict_error=0.25)
    drawn = [read_numbered(text) for text in ask(Oracle(QUESTIONER, told), prompt, n=400, seed=3)]
    kept = sum(len(set(texts) & set(steps)) for texts in drawn)
    assert kept / (400 * len(steps)) == pytest.approx(0.8, abs=0.05)
    assert sum(texts.count(step) > 1 for texts in drawn for step in steps) / kept == pytest.approx(0.2, abs=0.05)
    assert sum("problem say" in text for texts in drawn for text in texts) / kept == pytest.approx(0.2, abs=0.05)
    both = {"problem": problem.question, "questions": numbered([*steps, steps[0], "Is it so?"])}
    for role in (ANSWERER, SOLVER):
        (reply,) = ask(Oracle(role), prompts.render("answers", **both))
        assert final_number(reply) == str(final)
        assert read_answers(stop(reply), len(steps) + 2)[0]
    replies = ask(Oracle(ANSWERER, told), prompts.render("answers", **both), n=400)
    assert sum(final_number(reply) == str(final) for reply in replies) / 400 == pytest.approx(0.7, abs=0.07)
    prompt = prompts.render("usefulness", **both)
    right = [True] * len(steps) + [False, False]
    assert [list(read_verdicts(stop(text), len(right))[0]) for text in ask(Oracle(JUDGE), prompt)] == [right]
    said = [read_verdicts(stop(text), len(right))[0] for text in ask(Oracle(JUDGE, told), prompt, n=400)]
    wrong = sum(a != b for verdicts in said for a, b in zip(verdicts, right, strict=True))
    assert wrong / (400 * len(right)) == pytest.approx(0.25, abs=0.04)
    assert ask(Oracle(JUDGE), "Problem: Why?").startswith("400: the oracle does not know this problem: 'Why?'")
    assert question_of(problem.steps[0]).endswith("?")


def test_names_of_oracles():
    assert read_oracle("oracle:arithmetic?omit=0.5&seed=3", OracleOptions) == OracleOptions(omit=0.5, seed=3)
    assert read_oracle("oracle:calculator", CalculatorOptions, "calculator") == CalculatorOptions()
    for spec, message in (
        ("oracle:x", "there is one oracle"),
        ("oracle:arithmetic?omt=1", "did you mean 'omit'"),
        ("oracle:arithmetic?omit=2", "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            read_oracle(spec, OracleOptions)
