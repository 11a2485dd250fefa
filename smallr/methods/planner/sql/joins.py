"""Finds what queries join on, and joins that no foreign key connects or whose columns have no value in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, traverse_scope

Tables = Sequence[Mapping[str, Any]]
Column = tuple[str, str]  # table, column; in lower case


@dataclasses.dataclass(frozen=True, order=True)
class Join:
    """Two columns that a query sets equal, the first in the alphabet on the left."""

    left: Column
    right: Column

    def __str__(self) -> str:
        return f"{'.'.join(self.left)} = {'.'.join(self.right)}"


def joins(sql: str, tables: Tables) -> list[Join]:
    """Returns the pairs of columns that a query sets equal, in ON, USING, WHERE, or by IN and a nested query; no pair twice.

    A column of a nested query counts as the column of the table that it selects. What sqlglot cannot parse or resolve has
    no joins.

    Args:
      sql: a query.
      tables: of the database, as `QueryRunner.tables` gives them.
    """
    schema = {table["name"].lower(): {name.lower(): "text" for name in table["columns"]} for table in tables}
    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
        tree = qualify(tree, schema=schema, dialect="sqlite", validate_qualify_columns=False, quote_identifiers=False)
        scopes = traverse_scope(tree)
    except (SqlglotError, RecursionError):
        return []
    found = dict.fromkeys(_sorted(*pair) for scope in scopes for pair in _pairs(scope, scopes) if None not in pair)
    return list(found)


def _sorted(one: Column, other: Column) -> Join:
    return Join(*sorted((one, other)))


def _pairs(scope: Scope, scopes: Sequence[Scope]) -> Iterator[tuple[Column | None, Column | None]]:
    for node in scope.find_all(exp.EQ, exp.In):
        if isinstance(node, exp.EQ):
            if isinstance(node.left, exp.Column) and isinstance(node.right, exp.Column):
                yield _origin(node.left, scope), _origin(node.right, scope)
        elif isinstance(node.this, exp.Column) and (query := node.args.get("query")) is not None:
            inner = next((each for each in scopes if each.expression is query.unnest()), None)
            if inner is not None:
                yield _origin(node.this, scope), _selected(inner, 0)


def _origin(column: exp.Column, scope: Scope | None) -> Column | None:
    """Returns the column of a table that a column stands for; None where it is calculated or cannot be told."""
    while scope is not None and column.table not in scope.sources:
        scope = scope.parent  # a correlated query
    source = None if scope is None else scope.sources[column.table]
    if isinstance(source, exp.Table):
        return source.name.lower(), column.name.lower()
    if isinstance(source, Scope) and isinstance(source.expression, exp.Select):
        names = [name.lower() for name in source.expression.named_selects]
        return _selected(source, names.index(column.name.lower())) if column.name.lower() in names else None
    return None


def _selected(scope: Scope, place: int) -> Column | None:
    """Returns the column of a table that a nested query selects."""
    if not isinstance(scope.expression, exp.Select):
        return None
    selected = scope.expression.selects[place].unalias()
    return _origin(selected, scope) if isinstance(selected, exp.Column) else None


class Keys:
    """Knows which columns the foreign keys of a database connect, directly or over others; a column is connected to itself."""

    def __init__(self, tables: Tables):
        self._parent: dict[Column, Column] = {}
        primary = {table["name"].lower(): [name.lower() for name in table["primary_key"]] for table in tables}
        for table in tables:
            for column, target, name in table["foreign_keys"]:
                key = [name.lower()] if name else primary.get(target.lower(), [])
                if len(key) == 1:
                    here, there = (table["name"].lower(), column.lower()), (target.lower(), key[0])
                    self._parent[self._root(here)] = self._root(there)

    def _root(self, column: Column) -> Column:
        while (above := self._parent.get(column, column)) != column:
            column = above
        return column

    def connects(self, join: Join) -> bool:
        """Whether foreign keys connect the columns of a join."""
        return self._root(join.left) == self._root(join.right)


def count_shared(join: Join) -> str:
    """Returns the query that counts the values of the left column that the right one has too, compared as a join does."""
    (left, column), (right, other) = ((_quoted(name) for name in side) for side in (join.left, join.right))
    # With their tables, since SQLite takes a column that is not there for a text.
    return f"SELECT count(DISTINCT {left}.{column}) FROM {left} WHERE {left}.{column} IN (SELECT {right}.{other} FROM {right})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
