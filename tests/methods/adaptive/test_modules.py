"""Student, router and mode prompts on a tiny random model, beside transformers with the same vectors as inputs_embeds."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.methods.adaptive.asking import ask, write_answers
from smallr.methods.adaptive.interface import MODES, always, at_random
from smallr.methods.adaptive.labels import label_rows, report
from smallr.methods.adaptive.modules import ModePrompts, Router, Unsure
from smallr.methods.adaptive.student import Student
from smallr.models.soft import attach_soft_prompts
from tests.models.helpers import from_torch
from tests.sampling.models import letters, model

pytestmark = pytest.mark.parity

LENGTH, NEW = 3, 24
QUESTIONS = ["Howmany", "3+4", "abc", "Who", "x", "yes/no", "12,12", "end"]  # the model knows no space
SOFT = {
    name: [-1 - i for i in range(number * LENGTH, (number + 1) * LENGTH)]
    for number, name in enumerate(("router", *MODES))
}


def prompt_ids(question: str, name: str, vectors: torch.Tensor) -> torch.Tensor:
    """Soft tokens and the prompt of the formats below, embedded."""
    ids = torch.tensor(letters()(question + "?")["input_ids"])
    rows = vectors[[-1 - token for token in SOFT[name]]]
    return torch.cat([rows, model("llama").get_input_embeddings()(ids)])


def written(question: str, mode: str, vectors: torch.Tensor) -> str:
    """What transformers writes greedily."""
    embedded = prompt_ids(question, mode, vectors)[None]
    out = model("llama").generate(
        inputs_embeds=embedded,
        attention_mask=torch.ones(embedded.shape[:2]),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=0,
    )
    return letters().decode([token for token in out[0].tolist() if token])


@pytest.fixture(scope="module")
def case():
    """A student whose separator is a letter that it does write in both modes; and what it is to write."""
    vectors = torch.tensor(np.random.default_rng(5).normal(0, 0.6, (3 * LENGTH, 36)).astype(np.float32))
    with torch.no_grad():
        texts = {(q, mode): written(q, mode, vectors) for q in QUESTIONS for mode in MODES}
    common = [
        (min(sum(letter in texts[q, mode][1:-1] for q in QUESTIONS) for mode in MODES), letter)
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    ]
    letter = max(common)[1]
    formats = {
        "answer_first": f"{{question}}?{{answer}}{letter}{{rationale}}",
        "rationale_first": f"{{question}}?{{rationale}}{letter}{{answer}}",
    }
    decoder, mesh = from_torch(model("llama"), remat="none"), make_mesh(1, 1, 1)
    attach_soft_prompts(decoder, vectors.numpy(), mesh)
    prompts = {mode: SOFT[mode] for mode in MODES}
    student = Student(decoder, letters(), mesh, formats=formats, prompts=prompts, decode_slots=4, max_length=128)
    return SimpleNamespace(vectors=vectors, texts=texts, letter=letter, student=student)


@pytest.fixture(scope="module")
def answers(case):
    """All questions in both modes, each mode by itself, decoded to the end."""
    return {mode: case.student.answer(QUESTIONS, [mode] * 8, early_stop=False, max_tokens=NEW).items for mode in MODES}


def test_it_writes_what_transformers_writes_and_reads_it_back(case, answers):
    parts = {"answer": ("answer", "rationale"), "think": ("rationale", "answer")}
    for mode in MODES:
        assert sum(case.letter in case.texts[q, mode] for q in QUESTIONS) >= 2, "no separator to test with"
        for question, item in zip(QUESTIONS, answers[mode], strict=True):
            assert item.text == case.texts[question, mode]
            first, _, second = case.texts[question, mode].partition(case.letter)
            assert (getattr(item, parts[mode][0]), getattr(item, parts[mode][1])) == (first.strip(), second.strip())
            assert item.prompt_tokens == LENGTH + len(question) + 1
            if mode == "think" and not second:
                assert not item.complete


def test_early_stop_gives_the_same_answer_for_fewer_tokens(case, answers):
    early = case.student.answer(QUESTIONS, ["answer"] * 8, max_tokens=NEW).items
    saved = 0
    for item, whole in zip(early, answers["answer"], strict=True):
        assert item.answer == whole.answer
        assert item.rationale == ""
        assert item.text == whole.text.partition(case.letter)[0]
        if case.letter in whole.text:
            assert item.tokens == whole.text.index(case.letter) + 1
            assert item.complete
            saved += whole.tokens - item.tokens
        else:
            assert item.tokens == whole.tokens
    assert saved > 0


def test_both_kinds_in_one_batch_are_what_each_is_alone(case, answers):
    modes = [MODES[i % 2] for i in range(8)]
    mixed = case.student.answer(QUESTIONS, modes, early_stop=False, max_tokens=NEW).items
    assert mixed == tuple(answers[mode][i] for i, mode in enumerate(modes))


def test_likelihood_of_given_answers(case):
    """The answer's own tokens alone, mean over them; with and without a rationale in front."""
    golds, rationales = ["19", "xy", "7", "z", "q", "ab", "c", "d"], ["ab", "", "cde", "f", "g", "h", "i", "j"]
    network, tokenizer = model("llama"), letters()
    for mode, given in (("answer", None), ("think", rationales)):
        found = case.student.answer_nll(QUESTIONS, golds, given)
        for i, question in enumerate(QUESTIONS):
            before = given[i] + case.letter if given and given[i] else ""
            context = torch.tensor(tokenizer(before)["input_ids"], dtype=torch.long)
            ids = torch.tensor(tokenizer(golds[i])["input_ids"])
            table = network.get_input_embeddings()
            embedded = torch.cat([prompt_ids(question, mode, case.vectors), table(context), table(ids)])
            with torch.no_grad():
                logps = torch.log_softmax(network(inputs_embeds=embedded[None]).logits[0], -1)
            picked = logps[-1 - len(ids) : -1].gather(1, ids[:, None])
            assert found[i] == pytest.approx(-picked.mean().item(), abs=2e-4)
    nan = case.student.answer_nll(["a", "b", "c"], ["", f"1{case.letter}2", "x" * 200])
    assert all(math.isnan(value) for value in nan)  # empty, with the separator, too long


@pytest.fixture(scope="module")
def router(case):
    choices = tuple(letters()(letter)["input_ids"][0] for letter in "AT")
    return Router(case.student, SOFT["router"], choices, prompt="{question}?")


def test_the_router_reads_two_tokens_behind_its_soft_prompt(case, router):
    decided, choices = router.decide(QUESTIONS), router._choices
    for question, score, mode in zip(QUESTIONS, decided.scores, decided.modes, strict=True):
        with torch.no_grad():
            logits = model("llama")(inputs_embeds=prompt_ids(question, "router", case.vectors)[None]).logits[0, -1]
        assert score == pytest.approx((logits[choices[1]] - logits[choices[0]]).item(), abs=2e-4)
        assert mode == ("think" if score > 0 else "answer")
    assert decided.tokens == (0,) * 8
    assert decided.share == sum(mode == "think" for mode in decided.modes) / 8
    with pytest.raises(UserError, match=r"question 1: .* tokens are more than the 128"):
        router.decide(["a", "b" * 200])


@pytest.mark.parametrize(("mode", "threshold"), [("answer", math.inf), ("think", -math.inf)])
def test_a_router_forced_to_one_side_is_that_mode_always(router, answers, mode, threshold):
    """always-pre and always-post, token for token; also among threshold's own routes."""
    try:
        router.threshold = threshold
        decided, forced = ask(router, QUESTIONS, early_stop=False, max_tokens=NEW)
    finally:
        router.threshold = 0.0
    assert set(decided.modes) == {mode}
    assert forced == answers[mode] == ask(router, QUESTIONS, mode=mode, early_stop=False, max_tokens=NEW)[1]


def test_mode_prompts_take_the_answer_that_they_find_less_perplexing(case, answers):
    module = ModePrompts(case.student, max_tokens=NEW)
    decided = module.decide(QUESTIONS)
    first = case.student.answer_nll(QUESTIONS, [item.answer for item in answers["answer"]])
    rest = [[getattr(item, name) for item in answers["think"]] for name in ("answer", "rationale")]
    second = case.student.answer_nll(QUESTIONS, *rest)
    early = case.student.answer(QUESTIONS, ["answer"] * 8, max_tokens=NEW).items
    for i, values in enumerate(zip(first, second, strict=True)):
        attempts = early[i], answers["think"][i]
        a, b = (
            value if item.complete and item.answer else math.inf for value, item in zip(values, attempts, strict=True)
        )
        assert decided.modes[i] == ("think" if a > b else "answer")
        if math.isfinite(a - b):
            assert decided.scores[i] == pytest.approx(a - b, abs=1e-4)
        assert decided.answers[i] == (answers["think"][i] if a > b else early[i])
        assert decided.tokens[i] == early[i].tokens + answers["think"][i].tokens


def test_unsure_thinks_where_the_first_answer_is_not_confident(case, answers):
    early = case.student.answer(QUESTIONS, ["answer"] * 8, max_tokens=NEW).items
    nll = case.student.answer_nll(QUESTIONS, [item.answer for item in early])
    wanted = [value if item.complete and item.answer else math.inf for value, item in zip(nll, early, strict=True)]
    threshold = float(np.median(wanted)) if math.isfinite(np.median(wanted)) else min(wanted)
    decided = Unsure(case.student, threshold=threshold, max_tokens=NEW).decide(QUESTIONS)
    assert {"answer", "think"} == set(decided.modes)
    for i, score in enumerate(wanted):
        thinks = score > threshold
        assert decided.modes[i] == ("think" if thinks else "answer")
        assert decided.scores[i] == pytest.approx(score, abs=1e-4)
        assert decided.answers[i] == (answers["think"][i] if thinks else early[i])
        assert decided.tokens[i] == early[i].tokens + (answers["think"][i].tokens if thinks else 0)


def test_random_modes_have_exactly_the_share(router):
    assert sum(mode == "think" for mode in at_random(QUESTIONS, share=0.375).modes) == 3
    assert at_random(QUESTIONS, share=0.5, seed=1) != at_random(QUESTIONS, share=0.5, seed=2)
    assert always(QUESTIONS, "think").share == 1
    decided, items = ask(router, QUESTIONS, mode="random", share=0.25, max_tokens=2)
    out = io.StringIO()
    write_answers(QUESTIONS, decided, items, out)
    lines = list(map(json.loads, out.getvalue().splitlines()))
    assert [line["mode"] for line in lines] == list(decided.modes)
    assert [line["score"] for line in lines] == [None] * 8
    assert sum(line["mode"] == "think" for line in lines) == 2
    assert all(
        line["question"] == question and line["tokens"] <= 2 for line, question in zip(lines, QUESTIONS, strict=True)
    )


def test_labels_are_by_likelihood_and_margin(case, answers):
    rows = Dataset.from_dict({"question": [*QUESTIONS, "long" * 40], "answer": [*"12345678", "9"], "more": [0] * 9})
    found = label_rows(case.student, rows, max_tokens=NEW)
    assert found["question"] == QUESTIONS  # the long one cannot be judged
    assert found["rationale"] == [item.rationale for item in answers["think"]]
    assert found["finished"] == [item.complete for item in answers["think"]]
    np.testing.assert_allclose(found["nll_answer"], case.student.answer_nll(QUESTIONS, list("12345678")), atol=1e-4)
    gain = np.asarray(found["nll_answer"]) - np.asarray(found["nll_think"])
    assert found["label"] == (gain > 0).astype(int).tolist()
    margin = float(np.sort(gain)[-2:].mean())  # between the two that gain most
    assert sum(label_rows(case.student, rows, margin=margin, max_tokens=NEW)["label"]) == 1
    assert f"8 of 9 rows, {sum(found['label'])} to think about" in report(found, 9)
    with pytest.raises(UserError, match="missing answer"):
        label_rows(case.student, rows.remove_columns("answer"))


def test_parts_that_cannot_be_told_apart_are_refused(case):
    formats = {"answer_first": "{question}?{answer}{rationale}"}
    with pytest.raises(UserError, match="cannot be told apart"):
        Student(case.student.decoder, letters(), make_mesh(1, 1, 1), formats=formats, decode_slots=1, max_length=64)
