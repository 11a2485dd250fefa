"""A loaded model: its log-probs against transformers and one by one, its texts against the engine's, its export."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import smallr
from smallr.api import configs, model
from smallr.core.errors import UserError

PROMPTS = ("What is 2 + 3?", "Name a colour that you like, and say why it is that one.")
COMPLETIONS = (("5", "The answer is six, I think.", "5"), ("Blue.",))


@pytest.fixture(scope="module")
def loaded() -> smallr.Model:
    return smallr.load("tiny-random")


@pytest.fixture(scope="module")
def exported(loaded, tmp_path_factory):
    return loaded.save_hf(tmp_path_factory.mktemp("hf") / "model", dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("module", [model, configs], ids=lambda module: module.__name__)
def test_examples_of_docstrings(module):
    outcome = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert outcome.attempted > 3
    assert outcome.failed == 0


@pytest.mark.slow
def test_packed_log_probs_are_those_of_one_by_one(loaded, monkeypatch):
    together = loaded.logps(PROMPTS, COMPLETIONS)
    assert [sums.shape for sums in together] == [(3,), (1,)]
    for prompt, texts, sums in zip(PROMPTS, COMPLETIONS, together, strict=True):
        alone = [loaded.logps(prompt, [text])[0] for text in texts]
        np.testing.assert_allclose(sums, alone, atol=1e-4)
        tokens = loaded.logps(prompt, texts, per_token=True)
        np.testing.assert_allclose([each.sum() for each in tokens], sums, atol=1e-4)
    assert together[0][0] == pytest.approx(together[0][2], abs=1e-5)
    # A prompt whose completions do not fit into one row is read once for each row.
    monkeypatch.setattr(model, "TOKENS_PER_ROW", 45)
    np.testing.assert_allclose(loaded.logps(PROMPTS[0], COMPLETIONS[0]), together[0], atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("chat", [True, False])
def test_log_probs_are_those_of_transformers(loaded, exported, chat):
    """transformers reads prompt, completion and end token as one text, its own template's in a chat."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    reference = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()

    def expected(prompt: str, text: str) -> list[float]:
        if chat:
            asked = [{"role": "user", "content": prompt}]
            start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            whole = start + text + tokenizer.eos_token
        else:
            start, whole = prompt, prompt + text + tokenizer.eos_token
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
        first = len(tokenizer(start, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logps = torch.log_softmax(reference(ids).logits[0, :-1].double(), -1)
        return logps.gather(1, ids[0, 1:, None])[first - 1 :, 0].tolist()

    for prompt, texts in zip(PROMPTS, COMPLETIONS, strict=True):
        ours = loaded.logps(prompt, texts, chat=chat, per_token=True)
        for text, logps in zip(texts, ours, strict=True):
            np.testing.assert_allclose(logps, expected(prompt, text), atol=1e-4)
    assert np.std(np.concatenate(ours)) > 0


def test_texts_are_those_of_the_engine(loaded):
    from smallr.sampling.requests import Request, SamplingParams

    params = SamplingParams(max_tokens=5)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    results = loaded.engine.generate([Request(messages=tuple(chat), params=params) for chat in chats])
    texts = [result.samples[0].text for result in results]
    assert loaded.generate(PROMPTS, max_tokens=5) == loaded.generate(chats, max_tokens=5) == texts
    assert loaded.generate(PROMPTS[0], max_tokens=5) == texts[0]
    assert loaded.generate(PROMPTS[0], max_tokens=5, chat=False) != texts[0]
    several = loaded.generate(PROMPTS[0], n=3, temperature=1.0, seed=0, max_tokens=5)
    assert len(several) == 3
    assert loaded.generate(PROMPTS[0], stop="e", max_tokens=20) == loaded.generate(
        PROMPTS[0], stop=["e"], max_tokens=20
    )


def test_an_export_is_loaded_with_the_same_log_probs(loaded, exported):
    again = smallr.load(exported)
    np.testing.assert_array_equal(again.logps(PROMPTS[0], COMPLETIONS[0]), loaded.logps(PROMPTS[0], COMPLETIONS[0]))
    assert "tiny-random" in repr(loaded)


def test_many_prompts_in_one_call(loaded):
    prompts = [f"What is {i} + {i}?" for i in range(30)]
    many = loaded.logps(prompts, [[str(2 * i), "0"] for i in range(30)])
    np.testing.assert_allclose(many[17], loaded.logps(prompts[17], ["34", "0"]), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate("Hi", max_token=3), "no parameter 'max_token'; did you mean 'max_tokens'"),
        (lambda model: model.generate("Hi", temperature=-1), "temperature must be a number"),
        (lambda model: model.generate("word " * 5000), "prompt 0: the prompt has .* tokens"),
        (lambda model: model.logps("Hi", "there"), "give a list of completions for each prompt"),
        (lambda model: model.logps(["Hi", "Ho"], [["a"]]), r"2 prompt\(s\) and 1 completions"),
        (lambda model: model.logps("Hi", [""]), "empty"),
        (lambda model: model.logps("Hi", ["word " * 9000]), "of the model's context"),
        (lambda model: model.logps(["Hi", [{"role": "user", "content": "Ho"}]], [["a"], ["b"]]), "all be chats"),
        (lambda model: smallr.load("tiny-randm"), "unknown model"),
    ],
)
def test_errors_say_what_to_do(loaded, call, message):
    with pytest.raises(UserError, match=message):
        call(loaded)
