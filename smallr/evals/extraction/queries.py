"""Extracts the SQL query of a text."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence

from smallr.evals.extraction.places import MAX_CHARACTERS, after_reasoning

_BLOCK = re.compile(r"```[ \t]*+([\w+-]*+)[ \t]*+\n?(.*?)(?:```|\Z)", re.DOTALL)
_NOT_SQL = frozenset("python py json text txt bash sh java csv output markdown md r javascript js html yaml".split())  # noqa: SIM905
_QUERY = (
    r"(?:SELECT\b|VALUES\s*\(|WITH\s+(?:RECURSIVE\s+)?[\w\"`\[\]]+\s*(?:\([^()]*\)\s*)?"
    r"AS\s*(?:NOT\s+MATERIALIZED\s*|MATERIALIZED\s*)?\()"
)
_STARTS_LINE = re.compile(
    rf"^[ \t>]*+(?:(?:final\s+|sqlite\s+)?(?:sql|query|answer|sql\s*query)\s*:\s*)?[`(]*+(?={_QUERY})", re.I | re.M
)
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_INLINE = re.compile(r"(?<![\w`])`?(?=SELECT\b)|`(?=select\b)|(?:(?<=:)|(?<=\bis))\s++(?=select\s)")
# With these a query goes on behind an empty line.
_GOES_ON = re.compile(r"\s*(?:UNION|INTERSECT|EXCEPT|FROM|WHERE|GROUP BY|ORDER BY|HAVING|LIMIT|JOIN)\b")
# Text in quotes and comments, in which a semicolon ends nothing; an open one goes to the end.
_QUOTED = re.compile(r"'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|(?P<end>;)|(?P<tick>`)", re.DOTALL)
_STATEMENT = re.compile(
    rf"\s*(?:{_QUERY}|INSERT\s+(?:INTO|OR)\b|UPDATE\s+\S+\s+SET\b|DELETE\s+FROM\b|DROP\s+(?:TABLE|VIEW|INDEX|TRIGGER)\b|"
    r"CREATE\s+(?:TEMP|TEMPORARY|TABLE|VIEW|INDEX|UNIQUE|TRIGGER|VIRTUAL)\b|ALTER\s+TABLE\b|PRAGMA\s+\w|(?:ATTACH|DETACH)\s|"
    r"REPLACE\s+INTO\b|(?:VACUUM|ANALYZE|REINDEX|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\s*(?:\w+\s*)?(?:;|\Z)|"
    r"EXPLAIN\s+(?:QUERY|SELECT|WITH)\b)",
    re.IGNORECASE,
)


def query(text: str) -> str | None:
    """Extracts a query: of the last fenced block that holds one, else of the last paragraph that does, else all of the text.

    It ends at its semicolon, unless another statement follows: two statements are no answer, and are refused as such when
    they are run.
    """
    text = after_reasoning(text)[-MAX_CHARACTERS:].strip()
    blocks = [body for language, body in _BLOCK.findall(text) if language.lower() not in _NOT_SQL]
    held = [body for body in blocks if _is_query(body)]
    found = _first_statement((held or blocks)[-1].strip()) if blocks else _in_prose(text)
    found = found.strip().rstrip(";").strip()
    return found or None


def _is_query(text: str) -> bool:
    start = _skip_comments(text)
    return bool(re.compile(rf"[\s(]*{_QUERY}", re.IGNORECASE).match(text, start))


def _skip_comments(text: str) -> int:
    """Returns where the first statement begins."""
    position = 0
    while comment := re.compile(r"\s*(?:--[^\n]*|/\*.*?(?:\*/|\Z))", re.DOTALL).match(text, position):
        position = comment.end()
    return position


def _in_prose(text: str) -> str:
    """Returns the query in a text without fences."""
    starts = [0] if _STATEMENT.match(text) else [match.end() for match in _STARTS_LINE.finditer(text)]
    if starts:
        start, end = _last_passage(text, starts)
    elif inline := list(_INLINE.finditer(text)):
        start, end = inline[-1].end(), len(text)
    else:
        return text
    return _first_statement(text[start:], end - start, within_ticks=text[start - 1 : start] == "`")


def _last_passage(text: str, starts: Sequence[int]) -> tuple[int, int]:
    """Returns the first beginning of a query in the last paragraph that has one, and where the paragraph ends."""
    edges = [0, *(match.end() for match in _EMPTY_LINE.finditer(text)), len(text)]
    passages: list[tuple[int, int]] = []
    for begin, end in itertools.pairwise(edges):
        if passages and _GOES_ON.match(text, begin):
            passages[-1] = (passages[-1][0], end)
        else:
            passages.append((begin, end))
    for begin, end in reversed(passages):
        index = bisect.bisect_left(starts, begin)
        if index < len(starts) and starts[index] <= end:
            return starts[index], end
    return starts[0], len(text)


def _first_statement(text: str, end: int | None = None, *, within_ticks: bool = False) -> str:
    """Returns the text up to `end` or its first semicolon outside quotes, or all of it if another statement follows that."""
    end = len(text) if end is None else end
    for match in _QUOTED.finditer(text):
        if match.start() >= end:
            break
        if match["tick"] and within_ticks:
            return text[: match.start()]
        if match["end"]:
            return text if _STATEMENT.match(text, match.end()) else text[: match.start()]
    return text[:end]
