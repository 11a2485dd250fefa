"""Finds where an answer stands in a text: boxes, statements, the part before a model runs on. Every search is one pass."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterator

MAX_CHARACTERS = 200_000  # of the end of a text that are read
MAX_SENTENCE = 400
MAX_STATEMENTS = 20

_BRACES = re.compile(
    r"(?P<box>(?:\\f?boxed|\x08oxed|(?<![A-Za-z\\])boxed)\s*+\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL
)
_BOX = re.compile(r"boxed\{")
_BARE_BOX = re.compile(r"\\boxed\s*+(?![{\s])([^\s${}]{1,40}+)")
_VERBS = r"is|are|was|would\s++be|will\s++be|should\s++be|must\s++be|has\s++to\s++be|comes\s++to|equals"  # also "isn't"
STATED = re.compile(
    rf"\banswers?\b[*_\"')\]]*+(?:\s*+(?:{_VERBS})(?:\b|(?=n['’]t))(?!\s++(?:as\s++follows|given)\b)"
    r"|\s*+(?:[:=→]|[-–—]\s))[*_\s:=]*+"
    r"|^[#*_ \t]*+(?:the\s++)?(?:final\s++)?answer[*_#: \t]*+$\s*+|\bans(?:wer)?\s*+[.:=]\s*+|<answer>\s*+",
    re.IGNORECASE | re.MULTILINE,
)
# What a model that was not stopped writes behind its answer: another question, another speaker.
_RUN_ON = re.compile(
    r"^[#* \t]*+(?:(?:next|new|another)\s++)?(?:question|problem|exercise|q|human|user|instruction)\s*+\d*+[*]*+\s*+:",
    re.I | re.M,
)
MARK = re.compile(r"####[ \t]*+([^\n]*)")
_SENTENCE_END = re.compile(r"</answer>|[.!?;](?=[\s\"')*]|\Z)|\n")


def boxed(text: str) -> str | None:
    r"""Returns the content of the last complete `\boxed{…}` or `\fbox{…}`, however its braces are nested."""
    boxes = list(_boxes(text))
    if boxes:
        start, end = max(boxes)
        return text[start:end].strip()
    bare = _BARE_BOX.findall(text)
    return bare[-1].rstrip(".,;") if bare else None


def last_box(text: str) -> tuple[int, int] | None:
    """Returns where the content that `boxed` gives begins and ends."""
    if boxes := list(_boxes(text)):
        return max(boxes)
    bare = list(_BARE_BOX.finditer(text))
    return bare[-1].span(1) if bare else None


def last_boxes(text: str) -> list[str]:
    """Returns the contents of the last complete box and of those that stand right before it, joined by a comma or "and"."""
    outer = [(start, end) for start, end in sorted(_boxes(text))]
    found = outer[-1:]
    for start, end in reversed(outer[:-1]):
        between = re.sub(r"\\f?boxed\s*\{\Z", "", text[end + 1 : found[0][0]])
        if (
            end > found[0][0]
            or len(between) > 40
            or not re.fullmatch(r"(?:[\s$,]|\\[()]|\\text\s*\{|\}|and|or)*", between)
        ):
            break
        found.insert(0, (start, end))
    return [text[start:end].strip() for start, end in found]


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Finds beginning and end of the content of each complete box."""
    opened: list[int | None] = []
    for match in _BRACES.finditer(text, max(0, len(text) - MAX_CHARACTERS)):
        if match["box"]:
            opened.append(match.end())
        elif match["open"]:
            opened.append(None)
        elif match["close"] and opened and (start := opened.pop()) is not None:
            yield start, match.start()


def after_reasoning(text: str) -> str:
    """Returns what follows a `</think>`; all of a text without one."""
    return text.rpartition("</think>")[2]


def answer_part(text: str) -> str:
    """Returns the text behind the reasoning, up to the question that a model asks itself after its answer."""
    text = after_reasoning(text)[-MAX_CHARACTERS:]
    answered = [match.start() for match in (MARK.search(text), STATED.search(text), _BOX.search(text)) if match]
    # A question before any answer is the one that was asked.
    match = _RUN_ON.search(text, min(answered)) if answered else None
    return text[: match.start()] if match else text


def statements(text: str) -> list[str]:
    """Returns what follows each of the last "the answer is", "Answer:" and the like: the rest of its sentence."""
    last = collections.deque(STATED.finditer(text), maxlen=MAX_STATEMENTS)
    return [sentence_at(text, match.end()) for match in last]


def affirmed(statement: str, kind: str) -> str:
    """Returns what is affirmed in "not 5 but 6" and "not 5, it is 6"; all of any other statement.

    `kind` is the pattern with which both answers begin, so that a plain denial stays one.
    """
    match = _corrections(kind).match(statement)
    return statement[match.end() :] if match else statement


@functools.lru_cache(64)
def _corrections(kind: str) -> re.Pattern[str]:
    is_ = r"(?:it|that|this|the (?:correct |right )?answer)(?:\s+(?:is|must be|should be)|['’]s)"
    return re.compile(
        rf"\W{{0,6}}(?:(?:it is|it's|is)\s+)?(?:not|n['’]t)\s+(?:the\s+)?[^\w,;]{{0,6}}{kind}(?:[^,;\n]|,(?=\d)){{0,40}}?"
        rf"(?:,?\s+but(?:\s+(?:rather|instead|actually|{is_}))?|,\s+{is_}(?:\s+actually)?)\s+"
        rf"(?=[^\w,;]{{0,6}}{kind})",
        re.IGNORECASE,
    )


def sentence_at(text: str, start: int) -> str:
    """Returns a sentence from `start` on, without the line breaks and the signs of displayed mathematics before it."""
    start = re.compile(r"(?:\s|\*\*|\$\$|\\\[)*+").match(text, start).end()
    limit = start + MAX_SENTENCE
    end = _SENTENCE_END.search(text, start, limit)
    return text[start : end.start() if end else limit]
