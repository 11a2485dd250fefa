"""Defines benchmarks whose answers are programs, run in the sandbox."""

from __future__ import annotations

import ast
import base64
import json
import pickletools
import zlib
from typing import Any

from smallr.evals.benchmarks.base import Generation, GraderOptions, Question, Row, Source
from smallr.evals.extraction.programs import defines
from smallr.evals.graders.base import Grader
from smallr.evals.graders.programs import Calls, Check, Programs, Streams
from smallr.evals.isolation.sandbox import Limits

UNPACKED = 1 << 30  # bytes of the test cases of a question; some have a hundred million
_FENCED = "Answer with one Python code block."


def _programs(seconds: float):
    def make(options: GraderOptions) -> Grader:
        seconds_ = options.seconds or seconds
        limits = Limits(wall_seconds=seconds_, cpu_seconds=max(1, round(seconds_)))
        return Programs(unsafe=options.unsafe_code_execution, workers=options.workers, limits=limits)

    return make


def _humaneval(row: Row) -> Question:
    """Makes a question whose prompt is a function's head; the model writes the function again, or its body alone."""
    prompt, entry = row["prompt"], row["entry_point"]
    head, definition, _ = prompt.partition(f"def {entry}(")
    if not definition:
        raise ValueError(f"the prompt does not define {entry}")

    def program(code: str) -> str:
        return f"{head}\n{code}" if defines(code, entry) else prompt + code

    # Some tests call helpers of the prompt, or the function by its own name.
    tests = Calls(f"{prompt}\n{row['test']}", {"candidate": entry, entry: entry}, ["check(candidate)"])
    return Question(
        f"Complete this function. {_FENCED}\n```python\n{prompt.rstrip()}\n```", Check(tests, program, (entry,))
    )


def _mbpp(row: Row) -> Question:
    tests = [str(test) for test in row["test_list"]]
    if not tests:
        raise ValueError("no tests")
    defined, imports = _names(row["code"])
    setup = f"{row.get('test_setup_code') or ''}\n{imports}"
    used = {node.id for test in tests for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    calls = Calls(setup, {name: name for name in sorted(defined & used)}, tests)
    listed = "\n".join(tests)
    return Question(
        f"{row['text'].strip()} {_FENCED}\nYour code should pass these tests:\n{listed}",
        Check(calls, names=tuple(calls.remote)),
        f"```python\n{row['code'].strip()}\n```",
    )


def _names(code: str) -> tuple[set[str], str]:
    """Returns what the reference solution defines at its top level, and its imports, which tests may use."""
    tree = ast.parse(code)
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return defined, "\n".join(map(ast.unparse, imports))


# What LiveCodeBench's own runner imports before a solution.
_PREAMBLE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
_SAME = """\
def _lists(value):
    if isinstance(value, (list, tuple)):
        return [_lists(item) for item in value]
    return value
"""


def _live_code_bench(row: Row) -> Question:
    cases = [*_cases(row["public_test_cases"]), *_cases(row["private_test_cases"])]
    starter = row.get("starter_code") or ""
    kinds = {case["testtype"] for case in cases}
    if kinds == {"stdin"}:
        check = Check(Streams([(case["input"], case["output"]) for case in cases]))
        how = "Read from standard input and write to standard output."
    elif kinds == {"functional"}:
        metadata = row["metadata"]
        name = (json.loads(metadata) if isinstance(metadata, str) else metadata)["func_name"]
        in_class = "class Solution" in starter
        call = f"Solution().{name}" if in_class else name
        tests = []
        for case in cases:
            arguments = [json.loads(line) for line in case["input"].split("\n") if line.strip()]
            listed = ", ".join(map(repr, arguments))
            tests.append(f"assert _lists({call}({listed})) == {json.loads(case['output'])!r}")
        remote = "Solution" if in_class else name
        check = Check(Calls(_SAME, {remote: remote}, tests), lambda code: _PREAMBLE + code, (remote,))
        how = f"Start from this code:\n```python\n{starter.rstrip()}\n```"
    else:
        raise ValueError(f"test cases of kinds {sorted(kinds)}")
    return Question(f"{row['question_content'].strip()}\n{how}\n{_FENCED}", check)


def _cases(data: str) -> list[dict[str, Any]]:
    """Reads test cases: JSON, or JSON in a pickled string, compressed, in base 64. Nothing is unpickled."""
    try:
        cases = json.loads(data)
    except ValueError:
        unpacking = zlib.decompressobj()
        packed = unpacking.decompress(base64.b64decode(data), UNPACKED)
        if unpacking.unconsumed_tail:
            raise ValueError(f"test cases that unpack to more than {UNPACKED} bytes") from None
        cases = json.loads(_pickled_text(packed))
    if not isinstance(cases, list):
        raise ValueError("test cases are no list")
    return cases


_TEXT = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_FRAME = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}


def _pickled_text(data: bytes) -> str:
    """Returns the string in a pickle that holds a string and nothing else."""
    found = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in _TEXT:
            found.append(argument)
        elif operation.name not in _FRAME:
            raise ValueError(f"a pickle with {operation.name}, which is not read")
    (text,) = found
    return text


BENCHMARKS = (
    Generation(
        name="humaneval",
        source=Source("openai/openai_humaneval"),
        read=_humaneval,
        grader=_programs(15.0),
        runs_code=True,
    ),
    Generation(
        name="mbpp",
        source=Source("google-research-datasets/mbpp:full"),
        read=_mbpp,
        grader=_programs(15.0),
        runs_code=True,
    ),
    Generation(
        name="livecodebench",
        source=Source(advice="download test.jsonl of livecodebench/code_generation_lite from the hub"),
        read=_live_code_bench,
        grader=_programs(15.0),
        max_tokens=4096,
        runs_code=True,
    ),
)
