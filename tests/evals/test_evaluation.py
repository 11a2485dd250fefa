"""Evaluations with models whose answers are known: figures, resuming, bad input, comparison."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.evals import evaluation
from smallr.evals.benchmarks import BENCHMARKS, find
from smallr.evals.benchmarks.base import Generation, GraderOptions
from smallr.evals.comparison import compare
from smallr.evals.config import base
from smallr.evals.evaluation import default_folder, evaluate
from smallr.evals.graders.base import Job
from smallr.evals.questions import load_items
from smallr.evals.store import read_samples
from tests.evals.fakes import FakeModel, FakeScorer
from tests.runs import ROOT, overrides


def write(path: Path, rows: list, suffix: str = "jsonl") -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if suffix == "jsonl" else json.dumps(rows))
    return str(path)


def sums(count: int) -> list[dict]:
    return [{"question": f"What is {i} + {i}?", "answer": f"It is <<{i}+{i}>>.\n#### {2 * i}"} for i in range(count)]


def gsm8k(tmp_path: Path, count: int = 6, **fields):
    config = base("gsm8k")
    config.data = write(tmp_path / "rows.jsonl", sums(count))
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config


def add(prompt: str) -> str:
    """The right answer to one of `sums`."""
    return f"The answer is {2 * int(prompt.split()[2])}."


# --- figures


def test_a_whole_evaluation(tmp_path):
    config = gsm8k(tmp_path, sampling__max_tokens=7)
    model = FakeModel(lambda prompt: add(prompt) if "What is 3" not in prompt else "5, I think", "length")
    results = evaluate(config, tmp_path / "out", model=model)
    assert results["metrics"]["pass@1"]["value"] == pytest.approx(5 / 6)
    assert results["metrics"]["pass@1"]["error"] == pytest.approx(math.sqrt(5 / 36 / 5))
    assert (results["questions"], results["samples"], results["truncated"]) == (6, 6, 1.0)
    assert results["tokens_per_answer"] == pytest.approx((5 * 4 + 3) / 6)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    wrong = read_samples(tmp_path / "out")[3]
    assert wrong["prompt"].startswith("What is 3 + 3?\nPlease reason")
    assert {key: wrong[key] for key in ("id", "output", "extracted", "correct", "gold", "finish_reason", "tokens")} == {
        "id": "3",
        "output": "5, I think",
        "extracted": "5",
        "correct": False,
        "gold": "6",
        "finish_reason": "length",
        "tokens": 3,
    }
    assert model.requests[0].params.max_tokens == 7
    assert not model.closed  # it is the caller's
    assert len({request.params.seed for request in model.requests}) == 6


def test_several_samples(tmp_path):
    config = gsm8k(tmp_path, count=2, sampling__n=4, sampling__temperature=0.8)
    answers = {"0": ["0", "1", "1", "0"], "1": ["2", "3", "3", "4"]}
    model = FakeModel(lambda prompt: answers[prompt.split()[2]])
    metrics = evaluate(config, tmp_path / "out", model=model)["metrics"]
    assert metrics["pass@1"]["value"] == pytest.approx(3 / 8)
    assert metrics["pass@2"]["value"] == pytest.approx(((1 - 1 / 6) + 1 / 2) / 2)
    assert metrics["pass@4"]["value"] == 1.0
    assert metrics["maj@4"]["value"] == 0.5  # the first by its earlier answer, the second outvoted


def test_several_samples_by_the_command(tmp_path, capsys):
    """All the way: the engine draws, the grader judges, the files hold every sample."""
    fields = {
        "data": write(tmp_path / "rows.jsonl", sums(2)),
        "chat": False,
        "cache": False,
        "sampling.n": 4,
        "sampling.temperature": 1.0,
    }
    fields |= {"model": "tiny-random", "sampling.max_tokens": 6, "compute.decode_slots": 4, "compute.dtype": "float32"}
    flags = [f"--config={ROOT}/configs/eval/gsm8k.py", f"--out={tmp_path}/out", *overrides(fields)]
    assert main(["evaluate", *flags]) == 0
    samples = read_samples(tmp_path / "out")
    assert [(sample["id"], sample["sample"]) for sample in samples] == [(id, n) for id in "01" for n in range(4)]
    assert len({sample["output"] for sample in samples}) > 4
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert list(metrics) == ["pass@1", "pass@2", "pass@4", "maj@4"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in metrics)


def test_plain_prompts_and_seeds(tmp_path):
    model = FakeModel(add)
    evaluate(gsm8k(tmp_path, chat=False), tmp_path / "a", model=model)
    assert all(isinstance(request.prompt, str) and not request.messages for request in model.requests)
    other = FakeModel(add)
    evaluate(gsm8k(tmp_path, chat=False, seed=1, limit=3), tmp_path / "b", model=other)
    seeds = [{request.prompt: request.params.seed for request in each.requests} for each in (model, other)]
    assert all(seeds[0][prompt] != seed for prompt, seed in seeds[1].items())
    again = FakeModel(add)
    evaluate(gsm8k(tmp_path, chat=False, limit=3), tmp_path / "c", model=again)
    assert all(seeds[0][request.prompt] == request.params.seed for request in again.requests)


def test_worked_examples_stand_before_every_question(tmp_path):
    others = [{"question": "What is 70 + 70?", "answer": "It is <<70+70=140>>140.\n#### 140"}, *sums(9)[6:]]
    config = gsm8k(tmp_path, limit=2, shots__count=2, shots__data=write(tmp_path / "train.jsonl", [*sums(1), *others]))
    model, plain = FakeModel(lambda _: "0"), FakeModel(lambda _: "0")
    assert evaluate(config, tmp_path / "chat", model=model)["metrics"]["pass@1"]["value"] == 0.5
    asked = [(message["role"], message["content"]) for message in model.requests[0].messages]
    assert asked[1] == ("assistant", "It is 140.\n#### 140")  # not the row that is asked itself
    assert [role for role, _ in asked] == ["user", "assistant"] * 2 + ["user"]
    assert [text.split("?")[0] for role, text in asked if role == "user"] == [
        "What is 70 + 70",
        "What is 6 + 6",
        "What is 1 + 1",
    ]
    config.chat = False
    evaluate(config, tmp_path / "plain", model=plain)
    assert [text.strip() for text in plain.requests[0].prompt.split("\n\n")][:2] == [
        f"Question: {question}\nAnswer: {answer}" for (_, question), (_, answer) in (asked[:2], asked[2:4])
    ]
    assert plain.requests[0].prompt.endswith(f"\n\nQuestion: {asked[4][1]}\nAnswer:")
    assert plain.requests[0].params.stop == ("\nQuestion:",)  # else a base model goes on with its own
    assert model.requests[0].params.stop == ()
    config.shots.count = 9
    with pytest.raises(UserError, match=r"shots.count=9: .*train.jsonl has only 4 rows"):
        evaluate(config, tmp_path / "many", model=model)


def test_examples_of_likelihoods_show_the_right_option(tmp_path):
    rows = [{"question": f"Q{i}", "choices": ["no", "yes"], "gold": i % 2} for i in range(3)]
    config = base("arc_easy")
    config.data, config.limit = write(tmp_path / "rows.jsonl", rows), 1
    config.shots.count, config.shots.data = 2, config.data
    scorer = FakeScorer(lambda context, option: -len(option))
    evaluate(config, tmp_path / "out", model=scorer)
    before = "Question: Q1\nAnswer: yes\n\nQuestion: Q2\nAnswer: no\n\n"
    assert scorer.asked == [(f"{before}Question: Q0\nAnswer:", f" {option}") for option in ("no", "yes")]


def test_likelihoods(tmp_path):
    rows = [
        {"question": "Q0", "choices": ["yes", "a much longer option"], "gold": 1},
        {"question": "Q1", "choices": ["no", "yes"], "gold": 0},
        {"question": "Q2", "choices": ["no", "yes"], "gold": 0},
    ]
    config = base("arc_challenge")
    config.data = write(tmp_path / "rows.jsonl", rows)
    values = {" yes": -3.0, " a much longer option": -9.0, " no": -2.0}
    scorer = FakeScorer(lambda context, option: math.nan if "Q2" in context else values[option])
    results = evaluate(config, tmp_path / "out", model=scorer)
    assert scorer.asked[0] == ("Question: Q0\nAnswer:", " yes")
    assert results["metric"] == "acc_norm"
    assert results["metrics"]["acc"]["value"] == pytest.approx(1 / 3)
    assert results["metrics"]["acc_norm"]["value"] == pytest.approx(2 / 3)  # -1 a character against -0.45
    assert results["too_long"] == 1
    again = FakeScorer(lambda *_: 0.0)
    assert evaluate(config, tmp_path / "out", model=again)["metrics"] == results["metrics"]
    assert again.asked == []


# --- resuming


@pytest.mark.process
def test_a_killed_evaluation_pays_for_no_answer_twice(tmp_path):
    config = gsm8k(tmp_path, count=8)
    log = tmp_path / "asked.txt"
    code = f"""
import os, signal
from pathlib import Path
from smallr.evals.config import base
from smallr.evals.evaluation import evaluate
from tests.evals.fakes import FakeModel
from tests.evals.test_evaluation import add
config = base("gsm8k")
config.data = {config.data!r}
log = Path({str(log)!r})
def answer(prompt):
    asked = log.read_text().splitlines() if log.exists() else []
    if len(asked) == 5:
        log.write_text("\\n".join([*asked, "killed"]))
        os.kill(os.getpid(), signal.SIGKILL)
    log.write_text("\\n".join([*asked, prompt.split()[2]]))
    return add(prompt)
evaluate(config, Path({str(tmp_path / "out")!r}), model=FakeModel(answer))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert log.read_text().split() == ["7", "6", "5", "4", "3", "killed"]
    with (tmp_path / "out" / "answers.jsonl").open("a") as file:
        file.write('{"key": "2:')  # a line that the kill has cut off
    model = FakeModel(add)
    results = evaluate(config, tmp_path / "out", model=model)
    assert sorted(request.messages[0]["content"].split()[2] for request in model.requests) == ["0", "1", "2"]
    assert results["metrics"]["pass@1"]["value"] == 1.0
    evaluate(config, tmp_path / "out", model=FakeModel(lambda prompt: pytest.fail("asked again")))


def test_a_larger_limit_goes_on_and_changed_questions_are_asked_anew(tmp_path):
    config = gsm8k(tmp_path, count=4, limit=2)
    evaluate(config, tmp_path / "out", model=FakeModel(add))
    config.limit = 0
    model = FakeModel(add)
    evaluate(config, tmp_path / "out", model=model)
    assert len(model.requests) == 2
    rows = sums(4)
    rows[1]["question"] = "What is 1 + 1 really?"
    write(tmp_path / "rows.jsonl", rows)
    model = FakeModel(add)
    evaluate(config, tmp_path / "out", model=model)
    assert [request.messages[0]["content"].splitlines()[0] for request in model.requests] == ["What is 1 + 1 really?"]


def test_a_folder_of_another_evaluation_is_refused(tmp_path):
    evaluate(gsm8k(tmp_path), tmp_path / "out", model=FakeModel(add))
    with pytest.raises(UserError, match=r"another evaluation \(seed: 0 before, 1 now\).*--out"):
        evaluate(gsm8k(tmp_path, seed=1), tmp_path / "out", model=FakeModel(add))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        evaluate(gsm8k(tmp_path), tmp_path / "mine", model=FakeModel(add))
    assert default_folder(gsm8k(tmp_path)) == default_folder(gsm8k(tmp_path, limit=3))
    assert default_folder(gsm8k(tmp_path)) != default_folder(gsm8k(tmp_path, seed=1))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    before = default_folder(gsm8k(tmp_path, model=str(folder)))
    (folder / "model.safetensors").write_bytes(b"22")  # other weights under the same name
    assert default_folder(gsm8k(tmp_path, model=str(folder))) != before


def test_a_damaged_line_is_named(tmp_path):
    config = gsm8k(tmp_path)
    evaluate(config, tmp_path / "out", model=FakeModel(add))
    path = tmp_path / "out" / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "no json\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"answers.jsonl, line 2: damaged"):
        evaluate(config, tmp_path / "out", model=FakeModel(add))


# --- bad input


def test_prompts_that_do_not_fit_are_wrong_and_counted_and_failures_are_left_out_and_asked_again(tmp_path, capsys):
    def answer(prompt: str) -> str:
        if "What is 1" in prompt:
            raise ValueError(
                "the prompt has 9000 tokens, which with one of a completion is over the 8192 of max_length"
            )
        if "What is 2" in prompt:
            raise ValueError("connection refused after 6 attempts")
        return add(prompt)

    config = gsm8k(tmp_path, count=4)
    results = evaluate(config, tmp_path / "out", model=FakeModel(answer))
    assert (results["too_long"], results["missing"], results["questions"]) == (1, 1, 3)
    assert results["metrics"]["pass@1"]["value"] == pytest.approx(2 / 3)
    from smallr.evals.summary import show

    show(results, "fake")
    printed = " ".join(capsys.readouterr().out.split())
    assert "longer than the context, counted as wrong: 1" in printed
    assert "LEFT OUT: 1" in printed
    model = FakeModel(add)
    assert evaluate(config, tmp_path / "out", model=model)["missing"] == 0
    assert len(model.requests) == 2


def test_malformed_rows_are_counted(tmp_path):
    rows = [
        *sums(2),
        {"question": "No answer"},
        "not json",
        {"question": "q", "answer": "7"},
        {"question": None, "answer": "#### 1"},
    ]
    rows += ["[1, 2]", {"question": "q", "answer": "#### seven"}]
    items, report = load_items(find("gsm8k"), write(tmp_path / "bad.jsonl", rows))
    assert [item.id for item in items] == ["0", "1"]
    assert (report.total, report.kept) == (8, 2)
    assert sum(tally.count for tally in report.dropped.values()) == 6
    assert {row for tally in report.dropped.values() for row in tally.rows} == {2, 3, 4, 5, 6, 7}
    results = evaluate(gsm8k(tmp_path, data=str(tmp_path / "bad.jsonl")), tmp_path / "out", model=FakeModel(add))
    assert "malformed: KeyError: 'answer'" in results["dropped_rows"]
    with pytest.raises(UserError, match="no usable row"):
        load_items(find("gsm8k"), write(tmp_path / "none.jsonl", ["x"]))


def test_ids_are_unique(tmp_path):
    rows = [{**row, "id": "same"} for row in sums(3)]
    items, _ = load_items(find("gsm8k"), write(tmp_path / "rows.json", rows, "json"))
    assert [item.id for item in items] == ["same", "same#2", "same#3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere.jsonl"}, r"gsm8k: nowhere.jsonl: no such file.*--config.data=FILE"),
        ({"model": "tiny-randon"}, r"unknown model 'tiny-randon'"),
        ({"sampling__temperature": -1.0}, r"config.sampling.temperature must be a number from 0 to 100, not -1.0"),
        ({"model": "http://127.0.0.1:9/v1#m", "server__max_retries": 0, "server__timeout": 5.0}, r"127\.0\.0\.1:9"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        evaluate(gsm8k(tmp_path, **change), tmp_path / "out")


def test_runs_without_checkpoints_are_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="the run has no checkpoint yet"):
        evaluate(gsm8k(tmp_path, model=str(tmp_path / "run")), tmp_path / "out")
    config = base("arc_easy")
    config.data = write(tmp_path / "arc.jsonl", [{"question": "q", "choices": ["a", "b"], "gold": 0}])
    config.model = str(tmp_path / "run")
    with pytest.raises(UserError, match="the run has no checkpoint yet"):
        evaluate(config, tmp_path / "out2")
    config.model = "http://localhost:8000/v1"
    with pytest.raises(UserError, match="need the weights"):
        evaluate(config, tmp_path / "out3")


def test_unknown_benchmarks_list_all():
    with pytest.raises(UserError, match=r"'gsm8' is not known; did you mean 'gsm8k'.*aime24.*winogrande"):
        base("gsm8")
    with pytest.raises(UserError, match=r"coin_flip has no source on the hub.*--config.data=FILE"):
        load_items(find("coin_flip"))
    with pytest.raises(AttributeError, match="temperatur"):
        base("gsm8k").sampling.temperatur = 1.0


def test_every_field_reaches_the_model_or_the_grader(tmp_path, monkeypatch):
    opened = {}

    def open_model(name, **options):
        opened.update(options, name=name)
        return FakeModel(add)

    monkeypatch.setattr("smallr.language.opening.open_language_model", open_model)
    changes = {
        "model": "m",
        "compute__dtype": "float32",
        "compute__max_length": 77,
        "compute__decode_slots": 3,
        "cache": False,
        "server__concurrency": 5,
        "server__max_retries": 4,
        "server__timeout": 3.0,
        "server__api_key_env": "KEY",
    }
    config = gsm8k(tmp_path, **changes)
    config.sampling.update(
        {"n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "max_tokens": 9, "stop": ("x",)}
    )
    evaluate(config, tmp_path / "out")
    assert opened == {
        "name": "m",
        "dtype": "float32",
        "max_length": 77,
        "decode_slots": 3,
        "cache": False,
        "concurrency": 5,
        "max_retries": 4,
        "timeout": 3.0,
        "api_key_env": "KEY",
    }
    params = evaluation._params(config)
    assert {name: getattr(params, name) for name in config.sampling} == config.sampling.to_dict()
    seen = []
    monkeypatch.setitem(
        BENCHMARKS,
        "gsm8k",
        Generation(
            name="gsm8k",
            source=BENCHMARKS["gsm8k"].source,
            read=BENCHMARKS["gsm8k"].read,
            grader=lambda options: seen.append(options) or BENCHMARKS["svamp"].grader(options),
        ),
    )
    config.grader.update({"workers": 3, "seconds": 1.5})
    evaluate(config, tmp_path / "out", unsafe_code_execution=True)
    assert seen == [GraderOptions(3, 1.5, True)]


def test_code_is_refused_without_isolation_before_the_model_is_asked(tmp_path, monkeypatch):
    from smallr.evals.isolation import sandbox

    monkeypatch.setattr(sandbox, "why_not_isolated", lambda: "no namespaces")
    row = {
        "task_id": "T/0",
        "prompt": "def f():\n    '''One.'''\n",
        "entry_point": "f",
        "test": "def check(c):\n    assert c() == 1\n",
    }
    config = base("humaneval")
    config.data = write(tmp_path / "rows.jsonl", [row])
    model = FakeModel(lambda prompt: "```python\ndef f():\n    return 1\n```")
    with pytest.raises(UserError, match=r"no namespaces.*--unsafe_code_execution"):
        evaluate(config, tmp_path / "out", model=model)
    assert model.requests == []
    results = evaluate(config, tmp_path / "out", model=model, unsafe_code_execution=True)
    assert results["metrics"]["pass@1"]["value"] == 1.0


# --- comparison


def test_two_runs_are_compared_question_by_question(tmp_path, capsys):
    rights = {"a": range(4), "b": range(2, 10)}
    for name, right in rights.items():
        config = gsm8k(tmp_path, count=10, model=name)
        answer = FakeModel(lambda prompt, right=right: add(prompt) if int(prompt.split()[2]) in right else "-1")
        evaluate(config, tmp_path / name, model=answer)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.difference.mean_a, found.difference.mean_b) == (0.4, 0.8)
    assert (found.difference.better, found.difference.worse) == (6, 2)
    assert found.difference.p_value == pytest.approx(2 * sum(math.comb(8, k) for k in (0, 1, 2)) / 2**8)
    assert found.models == ("a", "b")
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "B - A  +0.4000, 95% interval" in printed
    assert "better on 6, worse on 2, equal on 2" in printed


def test_runs_that_cannot_be_compared(tmp_path):
    evaluate(gsm8k(tmp_path, count=4), tmp_path / "a", model=FakeModel(add))
    evaluate(gsm8k(tmp_path, count=4, limit=3), tmp_path / "b", model=FakeModel(add))
    with pytest.raises(UserError, match=r"share 3 questions; 1 are only in the first.*--shared"):
        compare(tmp_path / "a", tmp_path / "b")
    assert compare(tmp_path / "a", tmp_path / "b", shared_only=True).shared == 3
    with pytest.raises(UserError, match="give folders of finished evaluations"):
        compare(tmp_path / "a", tmp_path)
    config = base("svamp")
    config.data = write(tmp_path / "svamp.jsonl", [{"Body": "b", "Question": "What is 1 + 1?", "Answer": 2}])
    evaluate(config, tmp_path / "c", model=FakeModel(lambda prompt: "2"))
    with pytest.raises(UserError, match=r"of gsm8k, .* of svamp"):
        compare(tmp_path / "a", tmp_path / "c")
    rows = sums(4)
    rows[2]["answer"] = "#### 99"
    config = gsm8k(tmp_path, count=4)
    write(tmp_path / "rows.jsonl", rows)
    evaluate(config, tmp_path / "d", model=FakeModel(add))
    with pytest.raises(UserError, match="question '2' has another right answer"):
        compare(tmp_path / "a", tmp_path / "d")


def test_graders_of_all_benchmarks_are_made_and_end():
    for benchmark in BENCHMARKS.values():
        if isinstance(benchmark, Generation):
            grader = benchmark.grader(GraderOptions(workers=1, unsafe_code_execution=True))
            assert grader.grade([]) == []
            if not benchmark.runs_code:
                assert not grader.grade([Job("", "7")])[0].correct
            grader.close()
