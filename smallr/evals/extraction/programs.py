"""Extracts the Python program of a text: the block that does what was asked, without the prose around it."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smallr.evals.extraction.places import MAX_CHARACTERS, after_reasoning

_FENCE = re.compile(r"(?P<before>.*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+.#-]*)[^\n`~]*")
_PYTHON = ("", "python", "python3", "py", "py3")
_STARTS = re.compile(r"(?:async def|def|class)\s+\w+|@\w|import\s+\w|from\s+[\w.]+\s+import\b")
_KEYWORDS = "async def|def|class|import|from|if|for|while|try|except|finally|else|elif|with|return"
# A line of code: indented, a comment, a decorator, a closing bracket, a keyword, an assignment, a call.
_GOES_ON = re.compile(rf"[\s#@)\]}}]|(?:{_KEYWORDS})\b|[A-Za-z_][\w.]*(?:\s*[-+*/|&]?=|\(|\[|,\s*\w+\s*=)")
_PROMPTED = re.compile(r"^[ \t]*+>>> (?:async def|def|class|import|from|@)", re.MULTILINE)  # in an interpreter
_INLINE = re.compile(r"`((?:async def|def|class)\s[^`\n]++)`")
_HARD_SPACES = re.compile("^ *+\u00a0[ \u00a0]*+", re.MULTILINE)  # of web pages, before a line of code
_MAX_HELPERS = 20  # blocks before the solution, and behind it, that are searched for what it uses
_READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0")


@dataclass(frozen=True)
class _Block:
    """Represents a fenced block; `language` is in small letters."""

    language: str
    code: str


def code(text: str, names: Sequence[str] = ()) -> str | None:
    """Extracts a program.

    Args:
      text: of a model.
      names: functions or classes that the program must define; none for a program that reads its input.

    Returns:
      The last block that defines most of the names (without names: that reads input), else the last block in Python, else
      the last in no language, behind the other blocks that define what it uses; of a text without fences the part that
      is code. None where there is none.
    """
    text = _HARD_SPACES.sub(lambda match: " " * len(match[0]), _unquoted(after_reasoning(text)[-MAX_CHARACTERS:]))
    if not text.strip():
        return None
    blocks = _blocks(text)
    if not blocks:
        return None if "```" in text else _without_prose(_without_prompts(text), names)
    blocks = [_Block(block.language, _without_prompts(block.code)) for block in blocks]
    blocks = [_dedented(block, names) for block in blocks if block.language in _PYTHON and block.code.strip()]
    if not blocks:
        return None
    scores = [_score(block, names) for block in blocks]
    best = max(range(len(blocks)), key=lambda index: (scores[index], index))
    helpers = [*reversed(blocks[best + 1 :][:_MAX_HELPERS]), *blocks[max(best - _MAX_HELPERS, 0) : best]]
    return _with_helpers(blocks[best].code, [block.code for block in helpers], names)


def _with_helpers(code: str, earlier: Sequence[str], names: Sequence[str]) -> str:
    """Returns code behind those other blocks that do nothing but define or import what it uses."""
    tree = _parsed(code) if earlier else None
    if tree is None:
        return code
    needed = _loaded(tree) - set(_bound(tree))
    for block in reversed(earlier):
        helper = _parsed(block)
        if helper is None or not all(isinstance(node, _DEFINITIONS) for node in helper.body):
            continue
        bound = set(_bound(helper))
        if bound & needed and not bound & set(names):
            code = f"{block}\n\n{code}"
            needed = (needed - bound) | _loaded(helper)
    return code


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _loaded(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _bound(tree: ast.Module) -> Iterator[str]:
    """Gives the names that are defined or imported at the top level."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, _DEFINITIONS):
            yield node.name


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
    return _Block(block.language, _as_body(block.code) if keep else code)


def _as_body(code: str) -> str:
    """Returns the body of a function, which may be indented by fewer than four spaces, as it fits below a docstring."""
    lines = code.split("\n")
    depths = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    if not depths or not 0 < depths[0] < 4 or min(depths) < depths[0]:
        return code
    opens = next(filter(str.strip, lines)).rstrip().endswith(":")
    if len(depths) > 1 and min(depths[1:]) >= 4 and depths[1] == (8 if opens else 4):
        first = next(index for index, line in enumerate(lines) if line.strip())
        lines[first] = "    " + lines[first].lstrip(" ")  # the prompt's end took some of its spaces
        return "\n".join(lines)
    return textwrap.indent(textwrap.dedent(code), "    ")


def _unquoted(text: str) -> str:
    """Returns a text without Markdown's quotation signs, if its code stands behind them."""
    lines = text.splitlines()
    quoted = [re.match(r">(?!>) ?", line) for line in lines]
    bare = [line[match.end() :] if match else line for line, match in zip(lines, quoted, strict=True)]
    starts = {match is not None for line, match in zip(bare, quoted, strict=True) if _begins_code(line)}
    return "\n".join(bare) if starts == {True} else text


def _begins_code(line: str) -> bool:
    return bool(_STARTS.match(line)) or line.lstrip().startswith(("```", "~~~", ">>> "))


def _without_prompts(code: str) -> str:
    """Returns what was typed in an interpreter's session that defines something; other code as it is."""
    if not _PROMPTED.search(code) or any(map(_STARTS.match, code.splitlines())):
        return code
    typed = [re.match(r"[ \t]*+(?:>>>|\.\.\.)(?: (.*)|\Z)", line) for line in code.splitlines()]
    return "\n".join(match[1] or "" for match in typed if match)


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
            if block := _on_one_line(line):
                blocks.append(block)
                continue
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


def _on_one_line(line: str) -> _Block | None:
    """Returns the code between two fences on a line."""
    start, end = line.find("```"), line.rfind("```")
    body = line[start:end].strip("` \t")
    language = re.match(r"(?i:python3?|py3?)\s+(?=\S)", body)
    code = body[language.end() :] if language else body
    return (
        _Block("python" if language else "", code) if start >= 0 and "`" not in body and _STARTS.match(code) else None
    )


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
        return _as_body("\n".join(lines[:end]))
    inline = _INLINE.findall(text) if start is None else []
    if inline:
        return next((code for code in reversed(inline) if any(defines(code, name) for name in names)), inline[-1])
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
