"""Reads the replies of agents strictly: a value, or None and why there is none."""

from __future__ import annotations

import re

from smallr.agents.agent import Reading
from smallr.evals.extraction import after_reasoning
from smallr.methods.decomposition.answers import final_line
from smallr.methods.decomposition.sequence import Markers
from smallr.sampling.requests import Sample

_QUESTION = re.compile(r"Q(\d+)\s*[:.)]\s*(\S.*)")
_ANSWER = re.compile(r"^\W*A(\d+)\s*[:.)]\s*\S", re.MULTILINE)
_VERDICT = re.compile(r"\bQ(\d+)\s*[:.)]\s*\W*(yes|no)\b", re.IGNORECASE)
_MOST = 32  # sub-questions of a set; more are a model that does not stop


def read_sub_questions(sample: Sample, markers: Markers) -> Reading[tuple[str, ...]]:
    """Reads sub-questions, one a line, numbered from 1; nothing else may stand there."""
    text, problem = _text(sample)
    if problem:
        return None, problem
    lines = [line.strip(" \t*") for line in text.splitlines() if line.strip()]
    matches = [_QUESTION.fullmatch(line) for line in lines]
    if not all(matches):
        return None, "a line that is no sub-question"
    if [int(match[1]) for match in matches] != list(range(1, len(matches) + 1)):
        return None, "sub-questions are not numbered 1, 2, …"
    if len(matches) > _MOST:
        return None, f"more than {_MOST} sub-questions"
    if any(markers.found_in(match[2]) for match in matches):
        return None, "a marker in a sub-question"
    return tuple(" ".join(match[2].split()) for match in matches), ""


def read_answers(sample: Sample, count: int) -> Reading[str]:
    """Reads an answer to each of `count` sub-questions and the final answer behind them."""
    text, problem = _text(sample)
    if problem:
        return None, problem
    if not final_line(text):
        return None, "no final answer"
    before = re.split("final answer:", text, maxsplit=1, flags=re.IGNORECASE)[0]
    if [int(number) for number in _ANSWER.findall(before)] != list(range(1, count + 1)):
        return None, "not one answer to each sub-question"
    return text, ""


def read_final_answer(sample: Sample) -> Reading[str]:
    """Reads a solver's reply, which must have a final answer; what it answers before is its own affair."""
    text, problem = _text(sample)
    if final_line(text):  # also where it was cut off behind it
        return text, ""
    return None, problem or "no final answer"


def read_verdicts(sample: Sample, count: int) -> Reading[tuple[bool, ...]]:
    """Reads a verdict on each of `count` sub-questions: whether it is useful."""
    text, problem = _text(sample)
    if problem:
        return None, problem
    found = _VERDICT.findall(text)
    if [int(number) for number, _ in found] != list(range(1, count + 1)):
        return None, "not one verdict on each sub-question"
    return tuple(word.lower() == "yes" for _, word in found), ""


def _text(sample: Sample) -> tuple[str, str]:
    """Returns the reply without the model's thoughts, and why it cannot be used."""
    text = after_reasoning(sample.text).strip()
    if sample.finish_reason == "length":
        return text, "cut off"
    return text, "" if text else "empty reply"
