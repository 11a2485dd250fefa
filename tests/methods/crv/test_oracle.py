"""The oracle agents, judged from their texts alone: equations again, boxes, the published generator's own rationales."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from smallr.core.errors import UserError
from smallr.data.builtin import make_questions
from smallr.data.builtin.reading import mistake, style
from smallr.evals.graders.base import Job
from smallr.evals.graders.matching import numbers
from smallr.methods.crv.oracle import Oracle, OracleOptions, parse_oracle
from smallr.sampling.requests import Request, SamplingParams
from tests.data.test_arithmetic import boxed, equations, holds

STYLE = {"easy": "terse", "hard": "involved"}


@pytest.fixture(scope="module")
def questions():
    return make_questions(seed=5, train=200, test=1)["train"]


def ask(role: str, texts: list[str], n: int = 1, **options) -> list[list[str]]:
    model = Oracle(role, OracleOptions(**options))
    params = SamplingParams(n=n, seed=3)
    results = model.complete_sync(
        [Request(messages=({"role": "user", "content": text},), params=params) for text in texts]
    )
    model.close()
    assert all(result.error is None for result in results), results
    return [[sample.text for sample in result.samples] for result in results]


def asked(question, rationale: str, label: str = "") -> str:
    return (
        f"Judge this.\n<question>\n{question.problem.question}\n</question>\n<rationale>\n{rationale}\n</rationale>\n"
        f"<label>{label}</label>"
    )


def test_styles_and_mistakes_are_those_of_the_generator(questions):
    for q in questions:
        assert style(q.problem, q.fitted) == "fitted"
        assert style(q.problem, q.unfitted) == STYLE[q.label]
        assert not mistake(q.problem, q.fitted)
        assert not mistake(q.problem, q.unfitted)
        assert all(mistake(q.problem, wrong.text) for wrong in q.incorrect)
    problem = questions[0].problem
    assert mistake(problem, "So it is clear.") == "There is no \\boxed answer."
    assert mistake(problem, f"2 * 3 = 7, so \\boxed{{{questions[0].answer}}}") == "2 * 3 = 7 does not hold."
    assert mistake(problem, "\\boxed{1}") == "The answer is not 1."


def test_the_critic_and_the_verifier_are_right(questions):
    texts = [asked(q, text) for q in questions for text in (q.fitted, q.unfitted)]
    assert [reply for (reply,) in ask("critic", texts)] == [label for q in questions for label in ("medium", q.label)]
    texts = [asked(q, text) for q in questions for text in (q.unfitted, q.incorrect[0].text)]
    verdicts = [reply for (reply,) in ask("verifier", texts)]
    assert set(verdicts[::2]) == {"VERDICT: correct"}
    assert all(verdict.startswith("VERDICT: incorrect: ") for verdict in verdicts[1::2])


def test_the_rethinker_fits_what_did_not_fit_and_does_what_it_is_told(questions):
    replies = ask("rethinker", [asked(q, q.unfitted, q.label) for q in questions])
    for q, (text,) in zip(questions, replies, strict=True):
        assert boxed(text) == q.answer
        assert all(map(holds, equations(text)))
        assert len(equations(text)) == len(q.problem.steps)
        assert style(q.problem, text) == "fitted"
    verdicts = numbers().grade([Job(text, str(q.answer)) for q, (text,) in zip(questions, replies, strict=True)])
    assert all(verdict.correct for verdict in verdicts)
    # A wrong verdict of the critic leads away from what fits.
    for label, expected in (("easy", "involved"), ("hard", "terse")):
        replies = ask("rethinker", [asked(q, q.fitted, label) for q in questions[:50]])
        assert {style(q.problem, text) for q, (text,) in zip(questions[:50], replies, strict=True)} == {expected}
    # A mistake is mended in the style of the text.
    replies = ask("rethinker", [asked(q, q.incorrect[0].text) for q in questions[:50]])
    for q, (text,) in zip(questions[:50], replies, strict=True):
        assert not mistake(q.problem, text)


def test_the_injector_and_the_student_err_in_the_answer(questions):
    for q, (text,) in zip(questions, ask("injector", [asked(q, q.unfitted) for q in questions]), strict=True):
        assert boxed(text) != q.answer
        if style(q.problem, text) != STYLE[q.label]:  # a dropped step of two leaves the sentences of one
            assert len(equations(text)) < len(q.problem.steps)
    samples = ask("student", [q.problem.question for q in questions], n=4, student_error=0.5)
    wrong = Counter(boxed(text) != q.answer for q, texts in zip(questions, samples, strict=True) for text in texts)
    assert_rate(wrong[True], 800, 0.5)
    assert max(Counter(len(set(texts)) for texts in samples)) == 4, "samples differ"


def assert_rate(count: int, of: int, rate: float) -> None:
    """Within four standard errors."""
    assert abs(count / of - rate) < 4 * math.sqrt(rate * (1 - rate) / of), f"{count} of {of}"


def test_rates_of_errors_are_honoured_and_repeatable(questions):
    texts = [asked(q, q.unfitted, q.label) for q in questions]
    labels = ask("critic", texts, critic_error=0.3)
    wrong = [label for q, (label,) in zip(questions, labels, strict=True) if label != q.label]
    assert_rate(len(wrong), 200, 0.3)
    assert len(set(wrong)) == 3
    assert labels == ask("critic", texts, critic_error=0.3) != ask("critic", texts, critic_error=0.3, seed=1)
    rethought = ask("rethinker", texts, rethink_error=0.2)
    slips = [text for q, (text,) in zip(questions, rethought, strict=True) if mistake(q.problem, text)]
    assert_rate(len(slips), 200, 0.2)
    assert all(boxed(text) != q.answer for q, (text,) in zip(questions, rethought, strict=True) if text in slips)
    verdicts = ask("verifier", texts, verify_error=0.4)
    assert_rate(sum("incorrect" in text for (text,) in verdicts), 200, 0.4)


def test_specs():
    assert parse_oracle("oracle:arithmetic") == OracleOptions()
    assert parse_oracle("oracle:arithmetic?critic_error=0.2&seed=4") == OracleOptions(critic_error=0.2, seed=4)
    for spec, message in (
        ("oracle:algebra", "one oracle, oracle:arithmetic"),
        ("oracle:arithmetic?critic_eror=1", "did you mean 'critic_error'"),
        ("oracle:arithmetic?critic_error=2", "from 0 to 1"),
        ("oracle:arithmetic?seed=x", "no number"),
    ):
        with pytest.raises(UserError, match=message):
            parse_oracle(spec)


def test_what_it_cannot_answer_is_an_error_of_the_request(questions):
    with_oracle = Oracle("critic")
    request = Request(messages=({"role": "user", "content": "<question>What is love?</question>"},))
    bare = Request(messages=({"role": "user", "content": f"<question>{questions[0].problem.question}</question>"},))
    unknown, no_rationale = with_oracle.complete_sync([request, bare])
    with_oracle.close()
    assert "does not know this question" in unknown.error
    assert "no <rationale>" in no_rationale.error
