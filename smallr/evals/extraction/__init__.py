"""Extracts the final answer of a text: each function gives a part of the text, or None if it has no answer.

Each takes time linear in the text. Where an answer is stated but is not of the kind that was asked for, is denied, or is
one of several, there is none: nothing is guessed from the rest of the text then.
"""

from smallr.evals.extraction.choices import option, word
from smallr.evals.extraction.numbers import number
from smallr.evals.extraction.places import after_reasoning, answer_part, boxed, last_boxes, statements
from smallr.evals.extraction.programs import code
from smallr.evals.extraction.queries import query
from smallr.evals.extraction.texts import text

__all__ = [
    "after_reasoning",
    "answer_part",
    "boxed",
    "code",
    "last_boxes",
    "number",
    "option",
    "query",
    "statements",
    "text",
    "word",
]
