"""Extracts the Python program of a text: the block that does what was asked, without the prose around it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from smallr.evals.extraction.places import MAX_CHARACTERS, after_reasoning

_FENCE = re.compile(r"(?P<before>.*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+.#-]*)[^\n`~]*")
_PYTHON = ("", "python", "python3", "py", "py3")
_STARTS = re.compile(r"(?:async def|def|class)\s+\w+|@\w|import\s+\w|from\s+[\w.]+\s+import\b")
_KEYWORDS = "async def|def|class|import|from|if|for|while|try|except|finally|else|elif|with|return"
# A line of code: indented, a comment, a decorator, a closing bracket, a keyword, an assignment, a call.
_GOES_ON = re.compile(rf"[\s#@)\]}}]|(?:{_KEYWORDS})\b|[A-Za-z_][\w.]*(?:\s*[-+*/|&]?=|\(|\[|,\s*\w+\s*=)")
_READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0")


@dataclass(frozen=True)
class _Block:
    """A fenced block; `language` is in small letters."""

    language: str
    code: str


def code(text: str, names: Sequence[str] = ()) -> str | None:
    """Extracts a program.

    Args:
      text: of a model.
      names: functions or classes that the program must define; none for a program that reads its input.

    Returns:
      The last block that defines most of the names (without names: that reads input), else the last block in Python, else
      the last in no language; of a text without fences the part that is code. None where there is none.
    """
    text = after_reasoning(text)[-MAX_CHARACTERS:]
    if not text.strip():
        return None
    blocks = _blocks(text)
    if not blocks:
        return None if "```" in text else _without_prose(text, names)
    blocks = [_dedented(block, names) for block in blocks if block.language in _PYTHON and block.code.strip()]
    if not blocks:
        return None
    scores = [_score(block, names) for block in blocks]
    return blocks[max(range(len(blocks)), key=lambda index: (scores[index], index))].code


def defines(code: str, name: str) -> bool:
    """Returns whether code binds a name at its top level by def, class or an assignment."""
    return bool(
        re.search(
            rf"^(?:(?:async\s+)?def\s+|class\s+){re.escape(name)}\b|^{re.escape(name)}\s*(?::[^=\n]+)?=(?!=)",
            code,
            re.MULTILINE,
        )
    )


def _dedented(block: _Block, names: Sequence[str]) -> _Block:
    """Returns the block without a common indentation, unless it is the body of the function that was asked for."""
    code = textwrap.dedent(block.code)
    keep = bool(names) and not any(defines(code, name) for name in names)
    return block if keep else _Block(block.language, code)


def _score(block: _Block, names: Sequence[str]) -> tuple[int, bool, bool]:
    """Scores how well a block does what was asked; the body of a function comes before other code."""
    done = sum(defines(block.code, name) for name in names) if names else int(bool(_READS.search(block.code)))
    indented = block.code.lstrip("\n")[:1] in (" ", "\t")
    return done, bool(names) and indented, block.language != ""


def _blocks(text: str) -> list[_Block]:
    """Returns all fenced blocks, in a list's indentation or not; the last may be without an end."""
    blocks: list[_Block] = []
    lines: list[str] | None = None
    fence, language, indent = "", "", 0
    for line in text.splitlines():
        if lines is None:
            match = _FENCE.fullmatch(line) if "```" in line or "~~~" in line else None
            if match and (not match["before"].strip() or line.rstrip().endswith(match["fence"] + match["language"])):
                lines, fence, language = [], match["fence"], match["language"].lower()
                indent = len(match["before"]) if not match["before"].strip() else 0
            continue
        stripped = line.strip()
        closing = stripped.startswith(fence) and not stripped.strip(fence[0])
        inline = (
            not closing
            and fence[0] == "`"
            and line.rstrip().endswith(fence)
            and "`" not in line.rstrip()[: -len(fence)]
        )
        if inline:
            lines.append(_unindented(line.rstrip()[: -len(fence)], indent))
        if closing or inline:
            blocks.append(_Block(language, "\n".join(lines)))
            lines = None
        else:
            lines.append(_unindented(line, indent))
    if lines is not None:
        blocks.append(_Block(language, "\n".join(lines)))
    return blocks


def _unindented(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip())) :]


def _without_prose(text: str, names: Sequence[str]) -> str:
    """Returns the code in a text without fences: from its first line on, up to prose."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if _STARTS.match(line)), None)
    first = next(line for line in lines if line.strip())
    if names and first[:1] in (" ", "\t") and not any(defines(text, name) for name in names):
        start = lines.index(first)  # the body of the function in the prompt
        end = next(
            (index for index in range(start, len(lines)) if lines[index].strip() and lines[index][0] not in " \t#"),
            len(lines),
        )
        return "\n".join(lines[:end])
    if start is None or (not names and not _is_prose(first)):
        return text
    end = next(
        (index for index in range(start, len(lines)) if lines[index] and not _GOES_ON.match(lines[index])), len(lines)
    )
    quotes = "\n".join(lines[start:end])
    if quotes.count('"""') % 2 or quotes.count("'''") % 2:  # a text over several lines goes on
        end = len(lines)
    return "\n".join(lines[start:end])


def _is_prose(line: str) -> bool:
    return not _GOES_ON.match(line)
