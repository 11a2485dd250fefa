"""One row through critique, rethink and verify, with agents whose replies are scripted."""

from __future__ import annotations

import dataclasses

import pytest
from datasets import Dataset

from smallr.methods.crv.rows import FEATURES
from tests.methods.crv.fakes import ROW, tagged, worker

RIGHT, GOOD = "VERDICT: correct", "3 * 4 = 12 and 2 + 12 = 14, so \\boxed{14}."
WRONG = "2 + 3 = 5 and 5 * 4 = 20, so \\boxed{20}."


@pytest.mark.parametrize(("label", "action"), [("easy", "extend"), ("hard", "simplify")])
def test_what_does_not_fit_is_rethought_and_verified(label, action):
    out, models = worker()(critic=[label], rethinker=[GOOD], verifier=[RIGHT])
    assert list(out) == list(FEATURES)
    assert (out["label"], out["rationale"], out["reason"]) == (label, GOOD, "")
    assert out["completion"] == GOOD
    assert out["prompt"] == ROW.question
    assert out["rewritten"]
    assert out["original_correct"]
    assert out["verified_by"] == "rule and agent"
    (attempt,) = out["attempts"]
    assert (attempt["action"], attempt["verdict"], attempt["rationale"]) == (action, "right", GOOD)
    words = [len(prompt.split()) for model in models.values() for prompt in model.prompts]
    assert out["requests"] == 3
    assert out["prompt_tokens"] == sum(words)
    assert out["completion_tokens"] == 1 + len(GOOD.split()) + 2
    assert attempt["prompt_tokens"] == sum(words) - len(models["critic"].prompts[0].split())
    assert out["agents"]["verifier"] == "the verifier"
    for role in ("critic", "rethinker"):
        assert "7 parameters" in models[role].prompts[0]
        assert tagged(models[role].prompts[0], "rationale") == ROW.rationale
    assert tagged(models["rethinker"].prompts[0], "answer") == "14"
    assert f"<label>{label}</label>" in models["rethinker"].prompts[0]
    assert tagged(models["verifier"].prompts[0], "rationale") == GOOD


def test_what_fits_is_kept_and_verified_too():
    out, models = worker()(critic=["medium"], verifier=[RIGHT])
    assert (out["rationale"], out["rewritten"]) == (ROW.rationale, False)
    assert out["attempts"][0]["action"] == "keep"
    assert tagged(models["verifier"].prompts[0], "rationale") == ROW.rationale
    assert not models["rethinker"].prompts


def test_what_fits_but_is_wrong_is_mended():
    row = dataclasses.replace(ROW, rationale=WRONG)
    out, models = worker(row)(critic=["medium"], rethinker=[GOOD], verifier=[RIGHT])
    assert [(each["action"], each["verdict"]) for each in out["attempts"]] == [
        ("keep", "wrong answer"),
        ("repair", "right"),
    ]
    assert (out["rationale"], out["original_correct"], out["rewritten"]) == (GOOD, False, True)
    assert "there is a mistake" in models["rethinker"].prompts[0]
    assert "The answer is not 14: it comes to 20." in models["rethinker"].prompts[0]


def test_the_rule_check_comes_before_the_verifier():
    out, models = worker()(critic=["easy"], rethinker=[WRONG, GOOD], verifier=[RIGHT])
    assert [each["verdict"] for each in out["attempts"]] == ["wrong answer", "right"]
    assert [tagged(prompt, "rationale") for prompt in models["verifier"].prompts] == [GOOD], (
        "a wrong answer costs no request"
    )


def test_rethinking_is_told_what_was_wrong():
    rejected = "VERDICT: incorrect: the order of operations is not explained."
    other = "First 3 * 4 = 12. Then 2 + 12 = 14, so \\boxed{14}."
    out, models = worker()(critic=["hard"], rethinker=[GOOD, other], verifier=[rejected, RIGHT])
    assert [each["verdict"] for each in out["attempts"]] == ["rejected", "right"]
    assert out["attempts"][0]["reason"] == "the order of operations is not explained."
    assert out["rationale"] == other
    first, second = models["rethinker"].prompts
    assert "earlier attempt" not in first
    assert "the order of operations is not explained." in second
    assert GOOD in second


def test_a_row_that_never_passes_fails_after_all_retries():
    wrong = [f"{i} + 14 = {i + 14}, so \\boxed{{{i + 14}}}." for i in (1, 2, 3, 4)]
    out, models = worker(max_retries=3)(critic=["easy"], rethinker=list(wrong))
    assert out["reason"] == "not verified: wrong answer"
    assert out["detail"] == "The answer is not 14: it comes to 18."
    assert [each["rationale"] for each in out["attempts"]] == wrong
    assert (out["rationale"], out["completion"], out["rewritten"], out["verified_by"]) == ("", "", False, "")
    assert out["label"] == "easy"
    assert not models["verifier"].prompts
    assert out["requests"] == 5


def test_replies_that_cannot_be_used_are_asked_for_again_and_then_counted():
    out, models = worker(reasks=2)(critic=["", "easy hard", "hard"], rethinker=["", GOOD], verifier=["hm", RIGHT])
    assert (out["label"], out["rationale"], out["requests"]) == ("hard", GOOD, 7)
    temperatures = [request.params.temperature for request in models["critic"].requests]
    assert temperatures == [0.0, 0.7, 0.7]
    assert len({request.params.seed for request in models["critic"].requests}) == 3
    out, _ = worker(reasks=1)(critic=["很容易", "简单"])
    assert (out["reason"], out["label"], out["attempts"]) == ("critic: no label", "", [])
    out, _ = worker(reasks=1, max_retries=1)(critic=["hard"], rethinker=["", "二加十二等于十四", "", ""])
    assert [(each["verdict"], each["reason"]) for each in out["attempts"]] == [
        ("malformed", "another language"),
        ("malformed", "empty reply"),
    ]
    assert out["reason"] == "not verified: malformed"
    out, _ = worker(reasks=0, max_retries=0)(critic=["hard"], rethinker=[GOOD], verifier=["I like it."])
    assert (out["reason"], out["detail"]) == ("not verified: no verdict", "verifier: no verdict")


def test_without_a_gold_answer_the_verifier_alone_decides():
    row = dataclasses.replace(ROW, answer="")
    out, models = worker(row)(critic=["easy"], rethinker=[WRONG], verifier=["VERDICT: incorrect: no.", RIGHT])
    assert (out["rationale"], out["verified_by"]) == (WRONG, "agent")
    assert (out["original_correct"], out["original_verdict"]) == (False, "rejected")
    assert tagged(models["verifier"].prompts[0], "answer") == "(not known)"
    out, models = worker(row)(critic=["medium"], verifier=[RIGHT])
    assert (out["original_correct"], out["original_verdict"]) == (True, "right")
    assert len(models["verifier"].prompts) == 1, "the same text is not judged twice"
    out, _ = worker(check="none")(critic=["medium"], verifier=[RIGHT])
    assert out["verified_by"] == "agent"


def test_the_verifier_may_judge_the_original_too():
    out, models = worker(verify_original=True)(
        critic=["easy"], rethinker=[GOOD], verifier=["VERDICT: incorrect: terse.", RIGHT]
    )
    assert (out["original_correct"], out["original_verdict"]) == (False, "rejected")
    assert [tagged(prompt, "rationale") for prompt in models["verifier"].prompts] == [ROW.rationale, GOOD]


def test_an_empty_rationale_costs_nothing():
    out, _ = worker(dataclasses.replace(ROW, rationale=""))()
    assert (out["reason"], out["requests"]) == ("empty rationale", 0)


def test_the_critic_may_judge_again():
    out, models = worker(recheck=True)(critic=["easy", "medium"], rethinker=[GOOD], verifier=[RIGHT])
    assert (out["label"], out["relabel"]) == ("easy", "medium")
    assert tagged(models["critic"].prompts[1], "rationale") == GOOD
    out, _ = worker(recheck=True)(critic=["medium"], verifier=[RIGHT])
    assert out["relabel"] == "medium", "the same text is not judged twice"
    out, _ = worker(recheck=True, reasks=0)(critic=["easy", "?"], rethinker=[GOOD], verifier=[RIGHT])
    assert (out["relabel"], out["reason"]) == ("", ""), "a verified row stays verified"


def test_answers_are_put_into_boxes():
    row = dataclasses.replace(ROW, rationale="3 * 4 = 12 and 2 + 12 = 14\n#### 14")
    out, _ = worker(row)(critic=["medium"], verifier=[RIGHT])
    assert out["rationale"] == out["original"] == "3 * 4 = 12 and 2 + 12 = 14\nThe answer is \\boxed{14}."
    assert out["teacher_rationale"] == row.rationale
    assert not out["rewritten"]
    bare = "3 * 4 is 12. 2 + 12 is 14."
    out, _ = worker(row)(critic=["hard"], rethinker=[bare], verifier=[RIGHT])
    assert out["rationale"] == f"{bare} The answer is \\boxed{{14}}."
    out, _ = worker(row, box=False)(critic=["hard"], rethinker=[bare], verifier=[RIGHT])
    assert out["rationale"] == bare


def test_formats_are_asked_for_and_held():
    think = "<think>\n3 * 4 = 12.\n</think>\n\n2 + 12 = \\boxed{14}"
    out, models = worker(form="think", reasks=1)(critic=["easy"], rethinker=[GOOD, think], verifier=[RIGHT])
    assert out["rationale"] == think
    assert out["requests"] == 4
    assert "between <think> and </think>" in models["rethinker"].prompts[0]
    assert out["original"].startswith("<think>\n")
    out, _ = worker(dataclasses.replace(ROW, rationale=think))(
        critic=["hard"], rethinker=[think + "."], verifier=[RIGHT]
    )
    assert out["rationale"] == think + ".", "the teacher's format is kept"


def test_incorrect_rationales_come_from_teacher_student_and_injector():
    row = dataclasses.replace(ROW, rationale=WRONG)
    injected = "3 * 4 = 11 and 2 + 11 = 13, so \\boxed{13}."
    run = worker(row, count=3, samples=2)
    out, models = run(
        critic=["easy"],
        rethinker=[GOOD],
        verifier=[RIGHT],
        student=["It is 24."],
        injector=[injected, injected, injected],
    )
    assert [(each["source"], each["answer"], each["reason"]) for each in out["incorrect"]] == [
        ("teacher", "20", "wrong answer"),
        ("student", "24", "wrong answer"),
        ("injected", "13", "wrong answer"),
    ]
    assert out["incorrect"][1]["rationale"] == "It is 24. The answer is \\boxed{24}."
    assert models["student"].requests[0].params.n == 2
    assert models["student"].prompts == [ROW.question]
    assert tagged(models["injector"].prompts[0], "rationale") == GOOD
    # What is right, has no answer or is there already is not kept.
    out, _ = worker(count=2)(
        critic=["medium"],
        verifier=[RIGHT],
        student=["2 + 12 = 14"],
        injector=["Who knows?", "It comes to \\boxed{14}."],
    )
    assert out["incorrect"] == []
    assert out["reason"] == ""
    out, _ = worker(count=2, sources=("injected",))(critic=["medium"], verifier=[RIGHT], injector=[injected, injected])
    assert [each["source"] for each in out["incorrect"]] == ["injected"]


def test_without_gold_the_verifier_confirms_the_error():
    row = dataclasses.replace(ROW, answer="")
    out, _ = worker(row, count=1, sources=("injected",))(
        critic=["medium"], injector=[WRONG], verifier=[RIGHT, "VERDICT: incorrect: 2 + 3 comes later."]
    )
    assert out["incorrect"] == [
        {"rationale": WRONG, "source": "injected", "answer": "", "reason": "rejected: 2 + 3 comes later."}
    ]


def test_half_a_character_in_a_reply_can_be_written():
    out, _ = worker()(critic=["hard"], rethinker=["\ud800 " + GOOD], verifier=[RIGHT])
    assert out["rationale"] == "? " + GOOD


def test_a_row_that_cannot_be_encoded_fails_and_costs_nothing():
    for name in ("question", "answer", "rationale"):
        row = dataclasses.replace(ROW, **{name: "half \ud83d"})
        out, _ = worker(row)()
        assert (out["reason"], out["requests"]) == ("not encodable", 0)
        assert out["id"] == row.id
        written = {**out, "teacher": out["teacher_rationale"]}
        assert "half ?" in [written[key] for key in ("question", "answer", "teacher")]
        Dataset.from_list([out], features=FEATURES)
