"""Reads SQL as text: the normal form of a query, its clauses, and what can be said of it without running it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import Token, TokenType

_QUOTED = re.compile(
    r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|--[^\n]*|/\*.*?(?:\*/|\Z)|"
    r"(?P<end>;)|(?P<distinct>\bdistinct\b)",
    re.DOTALL | re.IGNORECASE,
)
_COMMENTS = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*", re.DOTALL)
_BEGINS = re.compile(r"\(*\s*(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)
_ORDER = re.compile(r"\border\s+by\b", re.IGNORECASE)
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
# A clause begins with one of these, outside brackets.
CLAUSES = ("FROM", "JOIN", "WHERE", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "UNION", "INTERSECT", "EXCEPT")
_JOINS = {"LEFT", "RIGHT", "FULL", "INNER", "OUTER", "CROSS", "NATURAL"}  # words of a join before the word itself
_NO_SPACE_BEFORE = {TokenType.COMMA, TokenType.R_PAREN, TokenType.DOT, TokenType.SEMICOLON}
_NO_SPACE_BEHIND = {TokenType.L_PAREN, TokenType.DOT}


def normalise(sql: str, names: Collection[str] = ()) -> str:
    """Returns the normal form of a query: keywords in upper case, all else but literals in lower case, `'` for quotes, one `;`.

    Args:
      sql: a query. What sqlglot cannot parse as one is returned as it is, without the space around it.
      names: tables and columns of the database in lower case. Something in double quotes that is none of these and no
        alias is a literal, as SQLite takes it.
    """
    text = sql.strip()
    try:
        parsed = [tree for tree in sqlglot.parse(text, read="sqlite") if tree is not None]
        tokens = [token for token in sqlglot.tokenize(text, read="sqlite") if token.token_type != TokenType.SEMICOLON]
    except (SqlglotError, RecursionError):
        return text
    if len(parsed) != 1 or not isinstance(parsed[0], exp.Query):
        return text
    known = {*names, *_aliases(tokens)}
    words = [_word(token, text, known) for token in tokens]
    return _joined(tokens, words) + ";"


def _aliases(tokens: Sequence[Token]) -> set[str]:
    return {name.text.lower() for before, name in itertools.pairwise(tokens) if before.token_type == TokenType.ALIAS}


def _word(token: Token, text: str, known: Collection[str]) -> str:
    raw = text[token.start : token.end + 1]
    if token.token_type == TokenType.STRING or (raw[:1] == '"' and known and token.text.lower() not in known):
        return "'" + token.text.replace("'", "''") + "'"
    if token.token_type == TokenType.IDENTIFIER:
        return '"' + token.text.lower().replace('"', '""') + '"'
    if token.token_type == TokenType.VAR or raw.lower() in known:
        return raw.lower()
    return re.sub(r"\s+", " ", raw).upper()


def _joined(tokens: Sequence[Token], words: Sequence[str]) -> str:
    parts: list[str] = []
    for index, (token, word) in enumerate(zip(tokens, words, strict=True)):
        before = tokens[index - 1].token_type if index else TokenType.L_PAREN
        is_call = token.token_type == TokenType.L_PAREN and before == TokenType.VAR
        if token.token_type not in _NO_SPACE_BEFORE and before not in _NO_SPACE_BEHIND and not is_call:
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def refusal(sql: str) -> str:
    """Says why a text is not one query; empty if it looks like one."""
    text = sql.strip()
    start = _COMMENTS.match(text).end()
    if start == len(text):
        return "there is no query"
    if not _BEGINS.match(text, start):
        return "it is no query: it must begin with SELECT, WITH or VALUES"
    for match in _QUOTED.finditer(text):
        if (
            match["end"]
            and _COMMENTS.fullmatch(text.rstrip("; \n\t"), match.end()) is None
            and _rest(text, match.end())
        ):
            return "there are several statements"
    return ""


def _rest(text: str, start: int) -> str:
    """Returns what stands behind a semicolon, but for comments and more semicolons."""
    return text[_COMMENTS.match(text, start).end() :].strip("; \n\t")


def without_distinct(sql: str) -> str:
    """Returns the query without the word DISTINCT, outside quotes."""
    return _QUOTED.sub(lambda match: "" if match["distinct"] else match[0], sql)


def is_ordered(sql: str) -> bool:
    """Whether there is an ORDER BY."""
    return bool(_ORDER.search(sql))


def next_clause(sql: str, prefix: str) -> str:
    """Returns a normal form up to the end of the clause behind `prefix`; all of it where that is the last one."""
    starts = _clause_starts(sql)
    return next((sql[:start].rstrip() for start in starts if start > len(prefix) + 1), sql)


def _clause_starts(sql: str) -> list[int]:
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except SqlglotError:
        return []
    starts, depth = [], 0
    for index, token in enumerate(tokens):
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        word = re.sub(r"\s+", " ", sql[token.start : token.end + 1].upper())
        if depth or word not in CLAUSES:
            continue
        while word == "JOIN" and index and tokens[index - 1].text.upper() in _JOINS:
            index -= 1
        starts.append(tokens[index].start)
    return starts
