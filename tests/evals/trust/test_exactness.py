"""Confidence from evaluate, generate and serve is that of transformers on the same tokens."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from smallr.cli import trust as cli_trust  # noqa: E402
from smallr.evals.config import base  # noqa: E402
from smallr.evals.evaluation import evaluate  # noqa: E402
from smallr.evals.store import read_samples  # noqa: E402
from smallr.evals.trust.answers import extractor  # noqa: E402
from smallr.language.local import LocalModel  # noqa: E402
from smallr.language.serving.trust import ServedTrust  # noqa: E402
from smallr.language.trust import Rater  # noqa: E402
from smallr.sampling.requests import Request, SamplingParams  # noqa: E402
from tests.evals.test_evaluation import write  # noqa: E402
from tests.language.test_serving import serve  # noqa: E402
from tests.sampling.models import engine, model  # noqa: E402

pytestmark = pytest.mark.parity
NEW = 14


def tokenizer():
    """Words, every third of which is a number; the space between them is in no token."""
    size = model("llama").config.vocab_size
    vocab = {"<end>": 0} | {f"{number}" if number % 3 else f"word{number}": number for number in range(1, size)}
    plain = Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")


@pytest.fixture(scope="module")
def shared():
    return engine("llama", tokenizer=tokenizer())


def questions() -> list[dict]:
    return [{"question": f"{3 * i + 1} word{3 * i + 3} {5 * i + 7}", "answer": "#### 1"} for i in range(6)]


def by_transformers(prompt: str, text: str, span: tuple[int, int]) -> tuple[float, float]:
    """Joint and length-normalised probability of the words of a text that touch a span."""
    words = tokenizer()
    given, written = words(prompt)["input_ids"], words(text)["input_ids"]
    with torch.no_grad():
        logits = model("llama")(torch.tensor([given + written])).logits[0].double()
    logps = torch.log_softmax(logits, -1)
    values, start = [], 0
    for place, word in enumerate(text.split(" ")):
        if start < span[1] and start + len(word) > span[0]:
            values.append(float(logps[len(given) + place - 1, written[place]]))
        start += len(word) + 1
    return float(np.exp(np.sum(values))), float(np.exp(np.mean(values)))


@pytest.mark.slow
def test_evaluate_generate_and_serve_have_the_confidence_of_transformers(shared, tmp_path):
    config = base("gsm8k")
    config.data = write(tmp_path / "rows.jsonl", questions())
    config.chat, config.sampling.max_tokens, config.confidence.measure = False, NEW, "answer_joint"
    with LocalModel("tiny", shared) as local:
        evaluate(config, tmp_path / "out", model=local)
    records = [record for record in read_samples(tmp_path / "out") if record["extracted"] is not None]
    assert len(records) > 3
    partial = [
        record for record in records if record["answer_span"][1] - record["answer_span"][0] < len(record["output"])
    ]
    assert len(partial) == len(records)  # the rationale does not count
    extract, _ = extractor("gsm8k")
    requests = [Request(prompt=record["prompt"], params=SamplingParams(max_tokens=NEW)) for record in records]
    for measure, place in (("answer_joint", 0), ("answer", 1)):
        rater = Rater(measure, extract)
        asked = [rater.asking(request) for request in requests]
        results = shared.generate(asked, progress=False)
        generated = [each[0]["confidence"] for each in cli_trust.rated(rater, asked, results, shared.generate, None)]
        with serve(engine=shared, trust=ServedTrust(rater)) as served:
            replies = [
                served.client.completions.create(model="fake", prompt=r["prompt"], max_tokens=NEW, temperature=0)
                for r in records
            ]
        for record, here, reply in zip(records, generated, replies, strict=True):
            wanted = by_transformers(record["prompt"], record["output"], record["answer_span"])[place]
            assert record["measures"][measure] == pytest.approx(wanted, abs=1e-4)
            assert here == pytest.approx(wanted, abs=1e-4)
            assert reply.choices[0].text == record["output"]
            assert reply.choices[0].confidence == pytest.approx(wanted, abs=1e-4)
