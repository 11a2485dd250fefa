"""The final answer of a model's text: each function gives a part of the text, or None if it has no answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Extract = Callable[[str], str | None]

_NUMBER = r"[-−+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_LAST_NUMBER = re.compile(_NUMBER)
_STATED = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
_REASONING = re.compile(r"^.*</think>", re.DOTALL)
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}` or `\fbox{…}`, however its braces are nested."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 1
        for index in range(match.end(), len(text)):
            escaped = text[index - 1] == "\\"
            depth += (text[index] == "{" and not escaped) - (text[index] == "}" and not escaped)
            if depth == 0:
                return text[match.end() : index].strip()
    return None


def after_reasoning(text: str) -> str:
    """What follows a `</think>`; all of a text without one."""
    return _REASONING.sub("", text, count=1)


def number(text: str) -> str | None:
    """A number: behind `####`, in the last box, behind the last "answer is", else the last of the text."""
    text = after_reasoning(text)
    places = [text.rpartition("####")[2] if "####" in text else None, boxed(text), _stated(text)]
    for place in places:
        if place is not None and (found := _LAST_NUMBER.search(place)):
            return found.group()
    numbers = _LAST_NUMBER.findall(text)
    return numbers[-1] if numbers else None


def option(letters: str = "ABCDE") -> Extract:
    """Extracts the letter of an option: boxed, stated ("the answer is (B)", "Answer: B"), or alone on the last line."""
    letter = rf"[\[(*$\s]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{{)?\s*\(?([{letters}])(?![A-Za-z'’])"
    stated = re.compile(rf"\b(?i:answer|choice|option)\b[^.\n]{{0,40}}?(?:is|:|=)[:\s]*{letter}")
    chosen = re.compile(rf"\b(?:option|choice)\s+\(?([{letters}])\b", re.IGNORECASE)
    alone = re.compile(rf"^{letter}[)\].:*}}$\s]*(?:\s.*)?$")
    bracketed = re.compile(rf"\(([{letters}])\)")

    def extract(text: str) -> str | None:
        text = after_reasoning(text)
        box = boxed(text)
        if box is not None and (found := re.match(letter, box)):
            return found.group(1)
        for pattern in (stated, chosen):
            if found := pattern.findall(text):
                return found[-1].upper()
        lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
        for line in lines[-1:] + lines[:1]:
            if (found := alone.match(line)) and not re.match(r"A\s+[a-z]", line):  # "A car …" is a sentence
                return found.group(1)
        found = bracketed.findall(text)
        return found[-1] if found else None

    return extract


def word(words: Sequence[str]) -> Extract:
    """Extracts one of some words, in lower case: the first behind the last "answer is", else the last of the text."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)

    def extract(text: str) -> str | None:
        text = after_reasoning(text)
        stated = boxed(text) or _stated(text)
        if stated is not None and (found := pattern.search(stated)):
            return found.group(1).lower()
        found = pattern.findall(text)
        return found[-1].lower() if found else None

    return extract


def text(text: str) -> str | None:
    """A short text: boxed, behind the last "answer is" up to the line's end, else the last line."""
    text = after_reasoning(text).strip()
    stated = boxed(text) or _stated(text)
    if stated is not None:
        return stated.splitlines()[0].strip() if stated.strip() else None
    return text.splitlines()[-1].strip() if text else None


def code(text: str) -> str | None:
    """Python code: the last fenced block in Python or in no language; all of a text without a fence."""
    text = after_reasoning(text)
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in ("", "python", "python3", "py")]
    if blocks:
        return blocks[-1]
    return None if "```" in text or not text.strip() else text


def _stated(text: str) -> str | None:
    """What follows the last "answer is"."""
    matches = list(_STATED.finditer(text))
    return text[matches[-1].end() :] if matches else None
