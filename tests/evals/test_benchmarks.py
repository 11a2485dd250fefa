"""Rows of every benchmark in the hub's columns and in those of local copies; correctness on real data where it is there."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import random
import zlib
from pathlib import Path

import pytest

from smallr.evals.benchmarks import BENCHMARKS, find
from smallr.evals.benchmarks.base import GraderOptions
from smallr.evals.benchmarks.code import _pickled_text
from smallr.evals.graders.base import Job
from smallr.evals.graders.symbolic import Symbolic
from smallr.evals.graders.symbolic import judge as judge_expression
from smallr.evals.isolation import sandbox
from smallr.evals.questions import load_items

SHARED = Path(__file__).parents[3] / "shared" / "data"
REASON = sandbox.why_not_isolated()


def shared(name: str) -> str:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not in ../shared/data")
    return str(path)


def lines(path: Path | str) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read(name: str, **row):
    return find(name).read(row)


# --- likelihood: contexts and continuations as lm-evaluation-harness has them


HUB = {
    "commonsense_qa": (
        {
            "question": "Where? ",
            "choices": {"label": list("ABCDE"), "text": list("vwxyz")},
            "answerKey": "C",
        },
        "Question: Where?\nA. v\nB. w\nC. x\nD. y\nE. z\nAnswer:",
        [" A", " B", " C", " D", " E"],
        2,
    ),
    "arc_easy": (
        {"question": "Q?", "choices": {"label": ["1", "2"], "text": ["a b", "c"]}, "answerKey": "2"},
        "Question: Q?\nAnswer:",
        [" a b", " c"],
        1,
    ),
    "openbookqa": (
        {"question_stem": "Stem", "choices": {"label": ["A", "B"], "text": ["a", "c"]}, "answerKey": "A"},
        "Stem",
        [" a", " c"],
        0,
    ),
    "piqa": ({"goal": "G", "sol1": "a", "sol2": "b", "label": 1}, "Question: G\nAnswer:", [" a", " b"], 1),
    "hellaswag": (
        {
            "activity_label": "Cook",
            "ctx_a": "A  [title] man",
            "ctx_b": "he",
            "endings": ["[x]runs", "sits"],
            "label": "1",
        },
        "Cook: A . man He",
        [" runs", " sits"],
        1,
    ),
    "siqa": (
        {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        "Q: C. Q?\nA:",
        [" a", " b", " c"],
        2,
    ),
    "boolq": ({"passage": "P.", "question": "is it", "label": 1}, "P.\nQuestion: is it?\nAnswer:", [" no", " yes"], 1),
    "strategyqa": ({"question": "Q?", "answer": False}, "Question: Q?\nAnswer:", [" no", " yes"], 0),
    "esnli": (
        {"premise": "P", "hypothesis": "H", "label": "contradiction"},
        "P\nQuestion: H True, False, or Neither?\nAnswer:",
        [" True", " Neither", " False"],
        2,
    ),
    "anli_r1": (
        {"premise": "P", "hypothesis": "H", "label": 1},
        "P\nQuestion: H True, False, or Neither?\nAnswer:",
        [" True", " Neither", " False"],
        1,
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_rows_of_the_hub(name):
    row, context, continuations, gold = HUB[name]
    task = find(name).read(row)
    assert set(task.contexts) == {context}
    assert (list(task.continuations), task.gold) == (continuations, gold)


def test_winogrande_scores_the_rest_of_the_sentence():
    task = read("winogrande", sentence="Ann saw Bea so _ ran.", option1="Ann", option2="Bea", answer="2")
    assert task.contexts == ("Ann saw Bea so Ann", "Ann saw Bea so Bea")
    assert (task.continuations, task.gold) == ((" ran.", " ran."), 1)


def test_snli_rows_without_a_label_are_malformed():
    with pytest.raises(ValueError, match="number -1"):
        read("esnli", premise="P", hypothesis="H", label=-1)


# --- answers in text


def test_questions_with_answers_in_text():
    assert read("svamp", Body="Dan had $ 3", Question="How many?", Answer=51.0).gold == "51.0"
    assert read("svamp", Body="Dan had $ 3", Question="How many?", Answer=51.0).prompt.startswith(
        "Dan had $ 3. How many?\n"
    )
    assert read("multiarith", question="Q?", final_ans="5").gold == "5"
    aqua = read("aqua", question="Q?", options=["A)1", "B)2(x)"], correct="B")
    assert (aqua.prompt.split("\n")[1:3], aqua.gold) == (["A) 1", "B) 2(x)"], "B")
    assert read("coin_flip", question="Up?", answer="yes").gold == "yes"
    assert read("strategyqa_text", question="Q?", answer=True).gold == "yes"


def test_gpqa_shuffles_by_the_question_alone():
    row = {"Question": "Why?", "Correct Answer": "right", **{f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}}
    questions = [find("gpqa_diamond").read({**row, "Question": f"Why {i}?"}) for i in range(40)]
    assert find("gpqa_diamond").read(row) == find("gpqa_diamond").read(dict(row))
    for question in questions:
        assert f"({question.gold}) right" in question.prompt
    assert {question.gold for question in questions} == set("ABCD")


# --- code


def live_row(kind: str, cases: list[dict], **fields) -> dict:
    text = json.dumps(cases)
    packed = base64.b64encode(zlib.compress(pickle.dumps(text))).decode()
    return {
        "question_content": "Do it.",
        "starter_code": "",
        "public_test_cases": json.dumps(cases[:1]),
        "private_test_cases": packed,
        "metadata": "{}",
        **fields,
    }


@pytest.mark.skipif(REASON is not None, reason=f"no isolation on this host: {REASON}")
def test_live_code_bench_by_streams_and_by_calls():
    streams = live_row(
        "stdin",
        [
            {"input": "1 2\n", "output": "3\n", "testtype": "stdin"},
            {"input": "5 5", "output": "10", "testtype": "stdin"},
        ],
    )
    calls = live_row(
        "functional",
        [{"input": "[3, 1]\n2", "output": "[1, 3, 2]", "testtype": "functional"}],
        starter_code="class Solution:\n    def order(self, items: List[int], last: int) -> List[int]:\n        ",
        metadata=json.dumps({"func_name": "order"}),
    )
    good = [
        "```python\na, b = map(int, input().split())\nprint(a + b)\n```",
        "```python\nclass Solution:\n    def order(self, items: List[int], last: int):\n        return (*sorted(items), last)\n```",
    ]
    bad = ["```python\nprint(3)\n```", good[1].replace("sorted(items)", "items")]
    benchmark = find("livecodebench")
    grader = benchmark.grader(GraderOptions())
    golds = [benchmark.read(row).gold for row in (streams, calls)]
    for answers, right in ((good, [True, True]), (bad, [False, False])):
        verdicts = grader.grade([Job(answer, gold) for answer, gold in zip(answers, golds, strict=True)])
        assert [verdict.correct for verdict in verdicts] == right, verdicts
    grader.close()


def test_a_pickle_is_never_run():
    for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
        assert _pickled_text(pickle.dumps("text é", protocol)) == "text é"

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    with pytest.raises(ValueError, match="which is not read"):
        _pickled_text(pickle.dumps(Evil()))


def test_a_body_alone_completes_humanevals_prompt():
    row = {
        "prompt": "import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    '''Area.'''\n",
        "entry_point": "area",
        "test": "def check(candidate):\n    assert helper(1) == 1\n    assert abs(candidate(1) - 3.14159) < 1e-3\n",
    }
    gold = find("humaneval").read(row).gold
    namespace: dict = {}
    exec(gold.program("    return math.pi * helper(r) ** 2\n"), namespace)
    assert namespace["area"](1) == pytest.approx(3.14159, abs=1e-5)
    exec(gold.program("def area(r):\n    return helper(2)\n"), namespace)
    assert namespace["area"](1) == 2


# --- real data


FILES = {
    "gsm8k": ("math/gsm8k/test.jsonl.gz", 1319),
    "math500": ("math/math500/test.jsonl.gz", 500),
    "aime24": ("math/aime24/aime24.jsonl", 30),
    "svamp": ("math/svamp/SVAMP.json.gz", 1000),
    "aqua": ("math/aqua/test.jsonl.gz", 254),
    "addsub": ("math/reasoning_teacher_tasks/addsub.json", 395),
    "multiarith": ("math/reasoning_teacher_tasks/multiarith.json", 600),
    "single_eq": ("math/reasoning_teacher_tasks/single_eq.json", 508),
    "date_understanding": ("math/reasoning_teacher_tasks/date_understanding.json", 369),
    "shuffled_objects": ("math/reasoning_teacher_tasks/tracking_shuffled_objects.json.gz", 750),
    "coin_flip": ("math/reasoning_teacher_tasks/coin_flip.json", 500),
    "last_letters": ("math/reasoning_teacher_tasks/last_letter_concatenation.json", 500),
    "strategyqa_text": ("math/reasoning_teacher_tasks/strategy_qa.json.gz", 2290),
    "humaneval": ("code/humaneval/HumanEval.jsonl.gz", 164),
    "mbpp": ("code/mbpp/mbpp.jsonl.gz", 974),
    "commonsense_qa": ("commonsense/commonsenseqa/dev_rand_split.jsonl.gz", 1221),
    "arc_easy": ("commonsense/olmo_mc_suite/arc_easy_test.jsonl.gz", 2376),
    "arc_challenge": ("commonsense/olmo_mc_suite/arc_challenge_test.jsonl.gz", 1172),
    "openbookqa": ("commonsense/olmo_mc_suite/openbookqa_test.jsonl", 500),
    "piqa": ("commonsense/olmo_mc_suite/piqa_val.jsonl.gz", 1838),
    "winogrande": ("commonsense/olmo_mc_suite/winogrande_val.jsonl.gz", 1267),
    "hellaswag": ("commonsense/olmo_mc_suite/hellaswag_val_subset.jsonl.gz", 1000),
    "siqa": ("commonsense/olmo_mc_suite/socialiqa_val.jsonl.gz", 1930),
    "boolq": ("commonsense/olmo_mc_suite/boolq_val.jsonl.gz", 3270),
    "strategyqa": ("commonsense/strategyqa/dev.json.gz", 229),
    "esnli": ("nli/esnli/esnli_test.jsonl.gz", 9824),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_row_of_real_data_is_read(name):
    file, count = FILES[name]
    items, report = load_items(find(name), shared(file))
    assert (len(items), report.dropped) == (count, {})
    assert len({item.id for item in items}) == count


def test_files_are_known_for_all_but_what_no_copy_is_of():
    assert set(BENCHMARKS) - set(FILES) == {"gpqa_diamond", "livecodebench", "anli_r1", "anli_r2", "anli_r3"}


@pytest.mark.slow
def test_math500_gold_solutions_are_right_and_permuted_answers_wrong():
    items, _ = load_items(find("math500"), shared("math/math500/test.jsonl.gz"))
    grader = Symbolic(workers=2)
    right = grader.grade([Job(item.row["solution"], item.task.gold, item.row) for item in items])
    assert sum(verdict.correct for verdict in right) >= 495
    order = list(range(len(items)))
    random.Random(0).shuffle(order)
    sample = [(items[i], items[j]) for i, j in enumerate(order)][:150]
    permuted = grader.grade([Job(f"\\boxed{{{other.task.gold}}}", item.task.gold) for item, other in sample])
    equal = sum(item.task.gold == other.task.gold for item, other in sample)
    assert sum(verdict.correct for verdict in permuted) <= equal + 1
    grader.close()


@pytest.mark.slow
def test_gsm8k_solutions_are_judged_as_their_labels_say():
    rows, _ = load_items(find("gsm8k"), shared("math/gsm8k/test.jsonl.gz"))
    golds = {item.row["question"]: item.task.gold for item in rows}
    checked = agree = 0
    grader = find("gsm8k").grader(GraderOptions())
    for row in lines(shared("math/gsm8k/example_model_solutions.jsonl.gz")):
        for system in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            (verdict,) = grader.grade([Job(row[system]["solution"], golds[row["question"]])])
            checked += 1
            agree += verdict.correct == row[system]["is_correct"]
    assert checked == 5276
    assert agree == checked


def test_aquas_rationales_state_the_gold_letter_or_none():
    for file in ("dev", "test"):
        items, _ = load_items(find("aqua"), shared(f"math/aqua/{file}.jsonl.gz"))
        verdicts = (
            find("aqua")
            .grader(GraderOptions())
            .grade([Job(item.row["rationale"], item.task.gold, item.row) for item in items])
        )
        assert [verdict for verdict in verdicts if verdict.extracted is not None and not verdict.correct] == []
        assert sum(verdict.correct for verdict in verdicts) > 0.6 * len(items)


def test_listed_options_are_known_by_their_texts():
    for name in ("date_understanding", "shuffled_objects"):
        items, _ = load_items(find(name), shared(FILES[name][0]), limit=100)
        grader = find(name).grader(GraderOptions())
        for item in items:
            text = item.row["question"].partition(f"({item.task.gold}) ")[2].partition(", (")[0].rstrip(".")
            assert grader.grade([Job(f"So the answer is {text}.", item.task.gold, item.row)])[0].correct


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=f"no isolation on this host: {REASON}")
def test_reference_programs_pass_and_another_problems_fail():
    for name, file, field in (
        ("humaneval", FILES["humaneval"][0], "canonical_solution"),
        ("mbpp", FILES["mbpp"][0], "code"),
    ):
        items = load_items(find(name), shared(file))[0][20:28]
        grader = find(name).grader(GraderOptions())
        right = grader.grade([Job(f"```python\n{item.row[field]}\n```", item.task.gold) for item in items])
        assert [verdict.reason for verdict in right if not verdict.correct] == []
        wrong = grader.grade(
            [Job(f"```python\n{items[i - 1].row[field]}\n```", item.task.gold) for i, item in enumerate(items)]
        )
        assert not any(verdict.correct for verdict in wrong)
        grader.close()


def test_execution_labels_of_spider_are_reproduced():
    from smallr.evals.graders.sql import judge

    folder = Path(shared("text2sql/spider_dev"))
    checked = agree = 0
    for row in lines(folder / "dev_candidates.jsonl.gz")[::25]:
        for candidate in row["candidates"]:
            verdict = judge(str(folder / "database" / f"{row['db_id']}.sqlite"), candidate["sql"], row["gold"])
            checked += 1
            agree += verdict["correct"] == candidate["correct"]
    assert checked > 150
    assert agree / checked >= 0.99


@pytest.mark.slow
def test_the_shortcut_of_equal_latex_hides_nothing(monkeypatch):
    """Of gold answers as they are, math-verify alone finds nearly all equal to themselves."""
    from smallr.evals.graders import symbolic

    items, _ = load_items(find("math500"), shared("math/math500/test.jsonl.gz"), limit=60)
    count = iter(range(10**6))
    monkeypatch.setattr(symbolic, "plain_latex", lambda text: f"{text}{next(count)}")
    right = sum(judge_expression(f"\\boxed{{{item.task.gold}}}", item.task.gold)["correct"] for item in items)
    assert right >= 58
