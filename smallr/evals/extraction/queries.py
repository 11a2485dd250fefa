"""Extracts the SQL query of a text."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Sequence

from smallr.evals.extraction.places import MAX_CHARACTERS, after_reasoning, boxed

_BLOCK = re.compile(
    r"```[ \t]*+((?:(?!(?:select|with|values)\b)[\w+-]++)?+)[ \t]*+\n?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)
# What stands for a fence of backticks.
_TILDES = re.compile(r"^[ \t]*+~~~[ \t]*+(\w*+)[ \t]*+\n(.*?)(?:^[ \t]*+~~~|\Z)", re.DOTALL | re.MULTILINE)
_APOSTROPHES = re.compile(r"^[ \t]*+'''[ \t]*+(sql)[ \t]*+\n(.*?)(?:^[ \t]*+'''|\Z)", re.DOTALL | re.MULTILINE)
_TAG = re.compile(r"<(sql)>(.*?)(?:</sql>|\Z)", re.DOTALL | re.IGNORECASE)
_NOT_SQL = frozenset("python py json text txt bash sh java csv output markdown md r javascript js html yaml".split())  # noqa: SIM905
# "Select the count with this query:" - words that no comma, bracket or keyword divides.
_SQL_WORD = (
    r"(?:from|as|is|not|in|like|glob|between|and|or|over|case|when|then|else|end|null|isnull|notnull|collate|cast|exists|"
    r"distinct|all|union|intersect|except|where|order|group|having|limit|escape|regexp|match)\b"
)
_WORD = rf"\s++(?!{_SQL_WORD})[A-Za-z]++"
_PROSE = rf"(?:{_WORD}){{1,2}}\s*+[:.?!](?=\s|\Z)|(?:{_WORD}){{3}}"
_QUERY = (
    rf"(?:SELECT\b(?!(?i:{_PROSE}))|"
    r"VALUES\s*\(|WITH\s+(?:RECURSIVE\s+)?[\w\"`\[\]]+\s*(?:\([^()]*\)\s*)?"
    r"AS\s*(?:NOT\s+MATERIALIZED\s*|MATERIALIZED\s*)?\()"
)
_STARTS_LINE = re.compile(
    rf"^[ \t>]*+(?:sqlite>[ \t]*+)?(?:(?:final\s+|sqlite\s+)?(?:sql|query|answer|sql\s*query)\s*:\s*)?(?:\*\*)?[`(]*+(?={_QUERY})",
    re.I | re.M,
)
_TEXT = re.compile(r"\\(?:text|texttt|mathrm)\s*\{(.*)\}", re.DOTALL)
_IN_QUOTES = re.compile(r"[\"“]([^\"“”]*+)[\"”]")
# A sentence in the line behind a query that has no semicolon.
_SENTENCE = re.compile(rf"\n(?=(?:This|The|It|Here|In|Note|Explanation|We|You|Which)\b:?(?:{_WORD}){{2}})")
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")
_INLINE = re.compile(r"(?<![\w`])`?(?=SELECT\b)|`(?=select\b)|(?:(?<=:)|(?<=\bis))\s++(?=select\s)")
# With these a query goes on behind an empty line.
_GOES_ON = re.compile(r"\s*(?:UNION|INTERSECT|EXCEPT|FROM|WHERE|GROUP BY|ORDER BY|HAVING|LIMIT|JOIN)\b")
# Text in quotes and comments, in which a semicolon ends nothing; an open one goes to the end.
_QUOTED = re.compile(
    r"'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|(?P<end>;)|(?P<tick>`|\*\*)", re.DOTALL
)
_BRACKETS = re.compile(r"'[^']*(?:'|\Z)|\"[^\"]*(?:\"|\Z)|(?P<open>\()|(?P<close>\))")
_HARD_SPACE = re.compile(r"('[^']*'|\"[^\"]*\")|\u00a0")
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
    if whole := _IN_QUOTES.fullmatch(text):
        text = whole[1]
    text = _fenced(_in_json(text))
    found = [(language.lower(), body) for language, body in _BLOCK.findall(text)]
    found = [("", _in_json(body.strip())) if language == "json" else (language, body) for language, body in found]
    blocks = [body for language, body in found if language not in _NOT_SQL and not body.startswith("{")]
    held = [body for body in blocks if _is_query(body)]
    before = text.partition("```")[0]
    if held:
        found = _first_statement(held[-1].strip())
    elif (box := _bare(boxed(text) or "")) and _is_query(box):
        found = box
    elif text.count("```") == 1 and (_STATEMENT.match(before) or _STARTS_LINE.search(before)):
        found = _in_prose(before)  # a fence that was opened by the prompt
    else:
        found = _first_statement(blocks[-1].strip()) if blocks else _in_prose(text)
    found = _balanced(found.strip()).rstrip(";").strip()
    return _HARD_SPACE.sub(lambda match: match[1] or " ", found) or None


def _bare(box: str) -> str:
    r"""Returns what a box holds without `\text{…}` around it."""
    match = _TEXT.fullmatch(box.strip())
    return match[1] if match else box


def _in_json(text: str) -> str:
    """Returns the query of an object that is all of the text; another text as it is."""
    if not (text.startswith("{") and text.endswith("}")):
        return text
    try:
        fields = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    found = next((fields[name] for name in ("sql", "query") if name in fields), None)
    return found.strip() if isinstance(found, str) else text


def _fenced(text: str) -> str:
    """Returns a text with backticks for other fences, if it has none of its own."""
    for pattern in (_TILDES, _APOSTROPHES, _TAG):
        if "```" not in text:
            text = pattern.sub(r"```\1\n\2```", text)
    return text


def _balanced(text: str) -> str:
    """Returns the query without the end of a bracket that was opened before it."""
    text, depth = text.removeprefix("(") if text.endswith(")") else text, 0
    for match in _BRACKETS.finditer(text):
        depth += bool(match["open"]) - bool(match["close"])
        if depth < 0:
            return text[: match.start()] if not text[match.end() :].strip(" ;.)\n") else text
    return text


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
    if sentence := _SENTENCE.search(text, start, end):
        end = sentence.start()
    return _first_statement(text[start:], end - start, within=_mark_before(text, start))


def _mark_before(text: str, start: int) -> str:
    """Returns the Markdown that stands right before a query and ends it too."""
    return next((mark for mark in ("`", "**") if start and text.endswith(mark, 0, start)), "")


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


def _first_statement(text: str, end: int | None = None, *, within: str = "") -> str:
    """Returns the text up to `end` or its first semicolon outside quotes, or all of it if another statement follows that."""
    end = len(text) if end is None else end
    for match in _QUOTED.finditer(text):
        if match.start() >= end:
            break
        if match["tick"] and match["tick"] == within:
            return text[: match.start()]
        if match["end"]:
            return text if _STATEMENT.match(text, match.end()) else text[: match.start()]
    return text[:end]
