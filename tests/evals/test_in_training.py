"""A benchmark asked during training: its figures are those of the finished checkpoint, and training does not notice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smallr.core.errors import UserError
from smallr.evals.config import base
from smallr.evals.evaluation import evaluate
from smallr.training.trainer import Trainer
from tests.runs import metrics, smoke, train

SUMS = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
COLOURS = [
    {
        "id": str(i),
        "question": f"Which colour has number {i}?",
        "choices": {"label": list("ABCDE"), "text": ["red", "light green", "blue", "a shade of grey", "white"]},
        "answerKey": "ABCDE"[i % 5],
    }
    for i in range(10)
]


def rows(path, content) -> str:
    path.write_text("\n".join(json.dumps(row) for row in content))
    return str(path)


def run(workdir, **benchmark):
    changes = {"data.eval": "", "optimizer.learning_rate": 0.02, "checkpoint.every": 4}
    config = smoke("cogpo", **changes, **{f"benchmark.{name}": value for name, value in benchmark.items()})
    train(config, workdir)
    return metrics(workdir, "benchmark")


@pytest.mark.slow
def test_answers_and_likelihoods_are_those_of_the_checkpoint_and_training_is_as_without(tmp_path):
    run(tmp_path / "plain")
    plain = [line["loss"] for line in metrics(tmp_path / "plain")]
    for name, content, field in (("gsm8k", SUMS, "sampling"), ("commonsense_qa", COLOURS, "")):
        data, workdir = rows(tmp_path / f"{name}.jsonl", content), tmp_path / name
        lines = run(workdir, name=name, data=data, every=2, **({"max_tokens": 12, "decode_slots": 4} if field else {}))
        assert [line["step"] for line in lines] == [0, 2, 4]
        assert [line["loss"] for line in metrics(workdir)] == plain
        config = base(name)
        config.model, config.data, config.compute.dtype = str(workdir), data, "float32"
        if field:
            config.sampling.max_tokens, config.compute.decode_slots, config.cache = 12, 4, False
        results = evaluate(config, tmp_path / f"{name}-out")
        assert results["questions"] == len(content)
        for metric, estimate in results["metrics"].items():
            assert lines[-1][metric] == pytest.approx(estimate["value"]), metric
        if field:
            assert lines[-1]["tokens_per_answer"] == results["tokens_per_answer"]
            assert lines[-1]["truncated"] == results["truncated"]
        else:
            assert lines[-1]["acc/stderr"] == pytest.approx(results["metrics"]["acc"]["error"])
    assert not np.isnan(plain).any()


def test_bad_input_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(UserError, match="gsm8k"):  # the list of those that exist
        run(tmp_path / "a", name="gsm9k")
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        run(tmp_path / "b", name="gsm8k", data=str(tmp_path / "nowhere.jsonl"))
    code = [{"task_id": "0", "prompt": "def f():\n", "canonical_solution": " return 1", "test": "", "entry_point": "f"}]
    with pytest.raises(UserError, match="runs code"):
        run(tmp_path / "c", name="humaneval", data=rows(tmp_path / "code.jsonl", code))
    trainer = Trainer(smoke("cogpo", **{"benchmark.name": "gsm8k"}), tmp_path / "d")
    with trainer, pytest.raises(UserError, match="open_benchmark"):
        trainer.fit()
    assert not any((tmp_path / name / "config.json").exists() for name in "abcd")
