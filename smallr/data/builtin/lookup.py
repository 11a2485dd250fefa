"""Finds the problem of a question, whatever seed it was drawn with.

A template is run again with its draws steered by the text: a word that is drawn must stand in it, and so must a number.
What comes out is the problem whose question is that text.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

from smallr.data.builtin.problems import Problem, solve
from smallr.data.builtin.templates import TEMPLATES, Template

_MOST_RUNS = 5000  # of a template; the generator's own questions take a few dozen


class _Undecided(Exception):
    """Says that no decision has been given for a draw; `options` are what the text allows."""

    def __init__(self, options: Iterator[Any]):
        self.options = options


class _Steered(random.Random):
    """Draws what was decided; stops at the first draw beyond that."""

    def __init__(self, text: str, decided: Sequence[Any]):
        super().__init__(0)
        self._text, self._decided = text, iter(decided)

    def _next(self, options: Iterator[Any]) -> Any:
        for value in self._decided:
            return value
        raise _Undecided(options)

    def choice(self, options: Sequence[Any]) -> Any:
        """Returns one of the options, in the order in which they stand in the text; numbers may stand there as words."""
        return self._next(iter(self._present(options)))

    def sample(self, options: Sequence[Any], k: int) -> list[Any]:
        """Returns `k` of the options."""
        return self._next(map(list, permutations(self._present(options), k)))

    def randrange(self, start: int, stop: int, step: int = 1) -> int:
        """Returns a number of the text."""
        numbers = dict.fromkeys(map(int, re.findall(r"\d+", self._text)))
        return self._next(number for number in numbers if number in range(start, stop, step))

    def randint(self, low: int, high: int) -> int:
        """Returns a number of the text."""
        return self.randrange(low, high + 1)

    def _present(self, options: Sequence[Any]) -> list[Any]:
        words = [option[0] if isinstance(option, tuple) else option for option in options]
        found = [
            (self._text.find(word) if isinstance(word, str) else 0, index)
            for index, word in enumerate(words)
            if not isinstance(word, str) or re.search(rf"\b{re.escape(word)}\b", self._text)
        ]
        return [options[index] for _, index in sorted(found)]


@functools.lru_cache(maxsize=1 << 16)
def find_problem(question: str) -> Problem | None:
    """Returns the problem that a question was written from; None if the generator did not write it."""
    text = " ".join(question.split())
    for template in sorted(TEMPLATES, key=lambda template: -_likeness(template, text))[:2]:
        problem = _search(template, text, [], iter(range(_MOST_RUNS)))
        if problem is not None and solve(problem):
            return problem
    return None


def _search(template: Template, text: str, decided: list[Any], runs: Iterator[int]) -> Problem | None:
    if next(runs, None) is None:
        return None
    try:
        problem = template(_Steered(text, decided))
    except _Undecided as open_draw:
        options = (option for option in open_draw.options if option not in decided)
        found = (_search(template, text, [*decided, option], runs) for option in options)
        return next((problem for problem in found if problem), None)
    return problem if problem.question == text else None


def _likeness(template: Template, text: str) -> float:
    """Returns the share of a template's words that the text has."""
    words = _words(template)
    return len(words & set(text.split())) / len(words)


@functools.cache
def _words(template: Template) -> frozenset[str]:
    """Returns the words that all questions of a template have."""
    questions = (template(random.Random(seed)).question.split() for seed in range(20))
    return frozenset.intersection(*map(frozenset, questions))
