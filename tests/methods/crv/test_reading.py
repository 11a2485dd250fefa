"""Replies, formats, answers and prompts, read strictly."""

from __future__ import annotations

import asyncio

import pytest

from smallr.core.errors import UserError
from smallr.methods.crv import formats
from smallr.methods.crv.checking import RuleCheck
from smallr.methods.crv.holdout import normalise
from smallr.methods.crv.prompts import FIELDS, load_prompts
from smallr.methods.crv.replies import read_rationale, read_verdict
from smallr.sampling.requests import Sample


def said(text: str, finish: str = "stop") -> Sample:
    return Sample(text, finish)


@pytest.mark.parametrize(
    ("text", "verdict", "problem"),
    [
        ("Step 1 holds.\nVERDICT: correct", (True, ""), ""),
        ("**Verdict:** incorrect: 2 + 2 is not 5.", (False, "2 + 2 is not 5."), ""),
        ("verdict - incorrect", (False, ""), ""),
        ("Correct.", (True, ""), ""),
        ("incorrect", (False, ""), ""),
        ("The first step is correct.", None, "no verdict"),
        ("VERDICT: correct\nor\nVERDICT: incorrect", None, "several verdicts"),
        ("", None, "empty reply"),
        ("VERDICT: yes", None, "no verdict"),
    ],
)
def test_verdicts(text, verdict, problem):
    assert read_verdict(said(text)) == (verdict, problem)


def test_a_verdict_that_was_cut_off_says_so():
    assert read_verdict(said("Step 1 holds. Step", "length")) == (None, "cut off")


def test_rationales():
    def read(text: str, form: str = "plain", finish: str = "stop") -> tuple[str | None, str]:
        return read_rationale(said(text, finish), form, "How many are there?", "2 + 2 = 4")

    assert read(" 2 and 2 make 4.\n") == ("2 and 2 make 4.", "")
    assert read("<think>hm</think>2 and 2 make 4.") == ("2 and 2 make 4.", "")
    assert read("```text\n2 and 2 make 4.\n```") == ("2 and 2 make 4.", "")
    assert read("<rationale>\n2 and 2 make 4.\n</rationale>") == ("2 and 2 make 4.", "")
    assert read("2 and 2 make", finish="length") == (None, "cut off")
    assert read("  ") == (None, "empty reply")
    assert read("2 + 2 = 4") == (None, "unchanged")
    for bare in (
        "The answer is \\boxed{4}.",
        "**4**",
        "So, the final answer is: 4. The answer is \\boxed{4}.",
        "#### 4",
    ):
        assert read(bare) == (None, "nothing but an answer")
    assert read("2 + 2 = \\boxed{4}")[0], "a terse one is one"
    assert read("二加二等于四") == (None, "another language")
    assert read("2 and 2", "think")[1] == "it is not in the format think"
    assert read("<think>2 and 2</think>", "think")[1] == "thoughts or solution are empty"
    assert read("<think>2 and 2</think>4", "think") == ("<think>2 and 2</think>4", "")


def test_formats():
    sky = (
        "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n\\boxed{4}\n\n<|end_of_solution|>"
    )
    think = "<think>\nhm\n</think>\n\n\\boxed{4}"
    assert [formats.detect(text) for text in (sky, think, "hm \\boxed{4}")] == ["sky_t1", "think", "plain"]
    assert formats.parts(sky) == formats.parts(think) == ("hm", "\\boxed{4}")
    assert formats.compose("hm", "\\boxed{4}", "sky_t1") == sky
    for form, text in (("sky_t1", sky), ("think", think)):
        assert not formats.misfit(text, form)
        assert formats.convert(sky, form, "") == formats.convert(think, form, "") == text
        assert "marker" in formats.misfit(text, "plain")
        assert formats.INSTRUCTIONS[form]
    assert formats.convert(think, "plain", "") == "hm\n\n\\boxed{4}"
    assert formats.convert("2 + 2 = 4, so \\boxed{4}", "think", "4") == (
        "<think>\n2 + 2 = 4, so \\boxed{4}\n</think>\n\nThe answer is \\boxed{4}."
    )
    assert formats.convert("6 * 3 = 18\n#### 18", "plain", "") == "6 * 3 = 18\nThe answer is \\boxed{18}."
    assert formats.convert("6 * 3 is 18.", "plain", "18") == "6 * 3 is 18. The answer is \\boxed{18}."
    assert formats.convert("6 * 3 is 18.", "plain", "") == "6 * 3 is 18."


def test_the_rule_check_goes_by_the_gold_answer():
    rules = RuleCheck("auto")

    def check(rationale: str, gold: str) -> tuple[bool, str | None]:
        verdict = asyncio.run(rules.check(rationale, gold))
        return verdict.correct, verdict.extracted

    assert check("6 * 3 = 18\n#### 18", "18") == (True, "18")
    assert check("10 * 45 is 450.", "450") == (True, "450")
    assert check("it is \\boxed{1,000}", "1000") == (True, "1,000")
    assert check("so \\boxed{17}, not 18", "18") == (False, "17")
    assert check("<think>18? no</think> The answer is \\boxed{17}.", "17") == (True, "17")
    assert check("The answer is (B).", "B") == (True, "B")
    assert check("The answer is (B).", "(c)".upper()) == (False, "B")
    assert check("So the answer is yes.", "Yes")[0]
    assert check("So the answer is train station.", "bridge") == (False, "train station")
    assert check("So the answer is the bridge.", "bridge")[0]
    assert check("nothing here", "18") == (False, None)
    assert check("It is \\boxed{\\frac{2}{4}}.", "\\frac{1}{2}")[0]
    assert check("It is \\boxed{\\frac{1}{2}}.", "0.5")[0], "an expression in the box is compared as one"
    assert not check("It is \\boxed{x+2}.", "x+1")[0]
    assert asyncio.run(rules.check("18", "")) is None
    rules.close()
    assert asyncio.run(RuleCheck("none").check("18", "18")) is None


def test_prompts_are_filled_in_once():
    prompts = load_prompts({})
    text = prompts.render(
        "critique", question="{{rationale}} \\boxed{1} $x$", rationale="r", student="9 parameters", answer=""
    )
    assert "{{rationale}} \\boxed{1} $x$" in text
    assert "9 parameters" in text
    for word in ("easy", "medium", "hard", "exactly one word"):
        assert word in text
    filled = dict.fromkeys(("question", "answer", "rationale", "student", "format", "reason", "attempt"), "here")
    for name in FIELDS:
        assert "{{" not in prompts.render(name, **filled)
    assert prompts.render("student", question="Why?") == "Why?"


def test_prompts_are_replaced_and_checked(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("Judge: {{ question }} / {{rationale}}\n")
    prompts = load_prompts({"critique": str(mine)})
    assert prompts.render("critique", question="q", rationale="r", student="s", answer="a") == "Judge: q / r"
    assert prompts.digest != load_prompts({}).digest
    for text, message in (
        ("{{question}}", r"config.prompts.critique = .*lacks the field \{\{rationale\}\}"),
        ("{{question}} {{rationale}} {{rational}}", r"no field \{\{rational\}\}.*did you mean 'rationale'"),
    ):
        mine.write_text(text)
        with pytest.raises(UserError, match=message):
            load_prompts({"critique": str(mine)})
    with pytest.raises(UserError, match=r"config.prompts.verify = .* cannot be read"):
        load_prompts({"verify": str(tmp_path / "none")})


def test_questions_are_compared_without_case_and_signs_of_sentences():
    assert normalise("What is  2+3?\n") == normalise("what is 2+3")
    assert normalise("What is 2+3?") != normalise("What is 2-3?")
    assert normalise("1.5 km") != normalise("15 km")
    assert normalise(" ?! ") == ""
