"""Discriminators: packed scoring against one plan at a time and against transformers; verdicts of a scripted model."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from smallr.core.sharding import make_mesh
from smallr.core.stages import Stopped
from smallr.language.loading import load_trained
from smallr.methods.planner.discriminators.base import Case
from smallr.methods.planner.discriminators.reasoning import THINK, Reasoning
from smallr.methods.planner.discriminators.yes_no import YesNo
from smallr.methods.planner.prompts import JudgePrompt, load_examples
from smallr.methods.planner.task import Outcome, Problem
from smallr.models.loading import open_model
from smallr.sampling.requests import Result, Sample, TokenLogprob, Usage
from tests.evals.fakes import FakeModel

PLANS = ("SELECT count(*) FROM item;", "SELECT count(*) FROM shop WHERE city = 'Ulm';", "SELECT 1;", "I do not know")
OTHER = Problem("r", "Which cities are there?", "shop: id, city", "x", "")


def case_of(problem: Problem, plans=PLANS) -> Case:
    return Case(problem, tuple(plans), tuple(Outcome(preview=f"n\n{i}\n(1 row)") for i in range(len(plans))))


def open_yes_no(name: str, prompt: JudgePrompt, **options) -> YesNo:
    mesh = make_mesh(-1, 1, 1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(name, mesh, dtype="float32")
    tokenizer = source.tokenizer()
    return YesNo(decoder, tokenizer, mesh, prompt, identity=name, chat=bool(tokenizer.chat_template), **options)


def probabilities(judge: YesNo, cases) -> dict[int, list[float]]:
    return {index: [each.probability for each in found] for index, found in judge.judge(cases)}


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_packed_plans_score_as_one_by_one(small_model, prompts, task, problem, chat):
    judge = open_yes_no(small_model, JudgePrompt(prompts, "yes_no", task, shows_result=True), row_length=512)
    if chat:
        judge._chat = True
        judge._tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    cases = [case_of(problem), case_of(OTHER, PLANS[:2]), case_of(problem, ())]
    packed = probabilities(judge, cases)
    assert packed[2] == []
    assert all(0 < value < 1 for value in packed[0])
    assert len(set(packed[0])) == len(PLANS)  # they depend on the plan
    places = [(index, place) for index, case in enumerate(cases) for place in range(len(case.plans))]
    singles = [Case(cases[i].problem, cases[i].plans[p : p + 1], cases[i].outcomes[p : p + 1]) for i, p in places]
    judge._rows = len(singles)  # a row of its own for each
    alone = probabilities(judge, singles)
    for number, (index, place) in enumerate(places):
        assert alone[number][0] == pytest.approx(packed[index][place], rel=1e-5)


@pytest.mark.slow
def test_packed_plans_of_smollm2_score_as_one_by_one(prompts, task, problem):
    """The model of the measurements, in nats."""
    judge = open_yes_no("smollm2-135m-instruct", JudgePrompt(prompts, "yes_no", task), row_length=192)
    packed = probabilities(judge, [case_of(problem, PLANS[:3])])[0]
    alone = probabilities(judge, [Case(problem, (plan,), (Outcome(),)) for plan in PLANS[:3]])
    assert np.log(packed) == pytest.approx([math.log(alone[place][0]) for place in range(3)], abs=1e-4)


@pytest.mark.slow
def test_what_a_row_cannot_hold(small_model, prompts, task, problem):
    judge = open_yes_no(small_model, JudgePrompt(prompts, "yes_no", task), row_length=512)
    wide = probabilities(judge, [case_of(problem)])
    lengths = [len(ids) for ids in judge.encode(case_of(problem))]
    judge._row_length = max(lengths)  # no room for two plans beside each other
    assert probabilities(judge, [case_of(problem)])[0] == pytest.approx(wide[0], rel=1e-5)
    judge._row_length = max(lengths) - 1
    ((_, found),) = judge.judge([case_of(problem)])
    longest = lengths.index(max(lengths))
    assert [each.correct is None for each in found] == [place == longest for place in range(len(PLANS))]
    assert f"{max(lengths)} tokens are more than a row" in found[longest].error
    judge._row_length = 8
    ((_, found),) = judge.judge([case_of(problem)])
    assert [each.correct for each in found] == [None] * len(PLANS)


def test_a_plan_that_begins_another_one(small_model, prompts, task, problem):
    judge = open_yes_no(small_model, JudgePrompt(prompts, "yes_no", task), row_length=512)
    plans = ("SELECT 1", "SELECT 1", "SELECT 1, 2")
    found = probabilities(judge, [case_of(problem, plans)])[0]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] != pytest.approx(found[2], rel=1e-6)


@pytest.mark.parity
def test_the_probability_is_that_of_transformers(tmp_path, prompts, task, problem):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    source = open_model("tiny-random")
    fields = {key: value for key, value in source.hf.items() if key != "model_type"}
    config = transformers.LlamaConfig(**fields, bos_token_id=1, eos_token_id=2, initializer_range=0.3)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    source.tokenizer().save_pretrained(tmp_path)
    judge = open_yes_no(str(tmp_path), JudgePrompt(prompts, "yes_no", task), row_length=512)
    case = case_of(problem, PLANS[:3])
    found = probabilities(judge, [case])[0]
    for ids, value in zip(judge.encode(case), found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]])).logits[0, -1].double()
        assert judge._tokenizer.decode([ids[-1]]).strip() == "Yes"
        assert math.log(value) == pytest.approx(float(torch.log_softmax(logits, -1)[ids[-1]]), abs=1e-4)


def reply(text: str, probability: float = 0.9) -> Result:
    """A reply whose tokens are its characters, all of one probability."""
    logprobs = tuple(TokenLogprob(0, letter, math.log(probability)) for letter in text)
    return Result((Sample(text, "stop", (0,) * len(text), logprobs),), Usage(7, len(text)))


class Reasoner(FakeModel):
    """Replies as a function of the prompt says."""

    def __init__(self, replies):
        super().__init__(lambda prompt: prompt)
        self._replies = replies

    def _one(self, request):
        return self._replies(request.messages[0]["content"])


def judged(prompts, task, problem, replies, **options):
    model = Reasoner(replies)
    judge = Reasoning(model, JudgePrompt(prompts, "reason", task, **options), identity="fake", budget=64)
    return dict(judge.judge([case_of(problem), case_of(OTHER, PLANS[:1]), case_of(OTHER, ())])), model


def test_reasoning_gives_verdicts_and_their_probabilities(prompts, task, problem):
    def replies(prompt):
        if "I do not know" in prompt:
            return reply("No idea")
        return reply('so {"correct": true}') if "count(*)" in prompt else reply('so {"correct": false}', 0.75)

    found, model = judged(prompts, task, problem, replies)
    assert [each.correct for each in found[0]] == [True, True, False, None]
    assert [each.probability for each in found[0]] == [pytest.approx(0.9)] * 2 + [pytest.approx(0.25), None]
    assert found[0][0].text == 'so {"correct": true}'
    assert found[0][0].tokens == 20
    assert found[2] == []
    request = model.requests[0]
    assert request.messages[-1] == {"role": "assistant", "content": THINK}
    assert (request.params.temperature, request.params.max_tokens, request.params.logprobs) == (0.0, 64, 0)


def test_replies_that_fail(prompts, task, problem):
    found, _ = judged(prompts, task, problem, lambda _: Result(error="400 the prompt is too long"))
    assert found[0][0].correct is None
    assert "too long" in found[0][0].error
    with pytest.raises(Stopped, match=r"got no verdict .*503"):
        judged(prompts, task, problem, lambda _: Result(error="503 overloaded"))


def test_what_prompts_hold(prompts, task, problem):
    def render(**options):
        prompt = JudgePrompt(prompts, "reason", task, **options)
        return prompt.render(problem, "SELECT 1;", Outcome(preview="1\n1\n(1 row)"))

    assert "Database schema:\nitem: id" in render()
    assert "It returns" not in render()
    assert "item: id" not in render(shows_context=False)
    assert "It returns:\n1\n1\n(1 row)" in render(shows_result=True)
    assert render(examples=load_examples("sql", "reason")).startswith("Database schema:\nbook:")
    failed = JudgePrompt(prompts, "yes_no", task, shows_result=True).render(
        problem, "x", Outcome(error="no such table")
    )
    assert "It fails: no such table" in failed
    digests = {JudgePrompt(prompts, "reason", task, shows_context=value).digest for value in (True, False)}
    assert len(digests) == 2


def test_examples_hold_what_discriminators_shall_write():
    for task in ("sql", "arithmetic"):
        assert (
            load_examples(task, "yes_no").count("Answer: Yes") == load_examples(task, "yes_no").count("Answer: No") == 1
        )
        assert load_examples(task, "reason").count('{"correct": true}') == 1


def test_judgements_are_json(prompts, task, problem):
    found, _ = judged(prompts, task, problem, lambda _: reply('{"correct": true}'))
    assert isinstance(dataclasses.asdict(found[0][0])["probability"], float)
    assert np.isfinite(found[0][0].probability)
