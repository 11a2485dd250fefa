"""Compares queries by their parts, where sqlglot parses both: exact match without execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

PARTS = ("select", "from", "where", "group", "having", "order", "limit", "set")


def components(sql: str) -> Mapping[str, Counter[str]] | None:
    """Returns the parts of a query, each as a multiset of normal forms; None where it cannot be parsed.

    Aliases of tables are written as the tables, and all but literals in lower case. The order of selected columns and of
    conditions does not count; the values in conditions do. Parts of nested queries and of both sides of a UNION add up.
    """
    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
    except (SqlglotError, RecursionError):
        return None
    if not isinstance(tree, exp.Query):
        return None
    aliases = {table.alias.lower(): table.name.lower() for table in tree.find_all(exp.Table) if table.alias}
    for node in tree.walk():
        if isinstance(node, exp.Identifier):
            name = node.this.lower()
            is_table = node.arg_key == "table"
            node.set("this", aliases.get(name, name) if is_table else name)
            node.set("quoted", False)
    parts: dict[str, Counter[str]] = {name: Counter() for name in PARTS}
    for select in tree.find_all(exp.Select):
        _add(parts, select)
    parts["set"].update(type(each).__name__.lower() for each in tree.find_all(exp.SetOperation))
    return parts


def _add(parts: Mapping[str, Counter[str]], select: exp.Select) -> None:
    parts["select"].update(_sql(each.unalias()) for each in select.expressions)
    if select.args.get("distinct"):
        parts["select"]["distinct"] += 1
    parts["from"].update(table.name for table in select.find_all(exp.Table) if table.parent_select is select)
    for name, kind in (("where", exp.Where), ("having", exp.Having)):
        if (clause := select.find(kind)) is not None and clause.parent is select:
            parts[name].update(_sql(each) for each in _conjuncts(clause.this))
    if (group := select.args.get("group")) is not None:
        parts["group"].update(_sql(each) for each in group.expressions)
    if (order := select.args.get("order")) is not None:
        parts["order"].update(f"{place} {_sql(each)}" for place, each in enumerate(order.expressions))
    if (limit := select.args.get("limit")) is not None:
        parts["limit"][_sql(limit)] += 1
    for join in select.args.get("joins") or ():
        if (condition := join.args.get("on")) is not None:
            parts["where"].update(_sql(each) for each in _conjuncts(condition))


def _conjuncts(condition: exp.Expression) -> list[exp.Expression]:
    return list(condition.flatten()) if isinstance(condition, exp.And) else [condition]


def _sql(tree: exp.Expression) -> str:
    if isinstance(tree, exp.EQ):  # a = b is b = a
        return " = ".join(sorted((tree.left.sql("sqlite"), tree.right.sql("sqlite"))))
    return tree.sql("sqlite")


def matching_parts(found: str, gold: str) -> dict[str, bool] | None:
    """Says of each part whether two queries have the same; None where one of them cannot be parsed."""
    one, other = components(found), components(gold)
    return None if one is None or other is None else {name: one[name] == other[name] for name in PARTS}


def exact_match(found: str, gold: str) -> bool | None:
    """Whether all parts of two queries are the same; None where one of them cannot be parsed."""
    parts = matching_parts(found, gold)
    return None if parts is None else all(parts.values())


def compare_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the candidates of executed rows with their gold queries.

    Returns:
      Counts: candidates, `parsed` with their gold query, `exact`, `exact_wrong` (exact, but another result), and the same
      `parts` of the parsed ones.
    """
    counts, parts = Counter(candidates=0, parsed=0, exact=0, exact_wrong=0), Counter(dict.fromkeys(PARTS, 0))
    for row in rows:
        gold = components(row["gold"]) if row["gold"] else None
        for each in row["candidates"]:
            counts["candidates"] += 1
            found = None if gold is None else components(each["plan"])
            if found is None:
                continue
            same = {name for name in PARTS if found[name] == gold[name]}
            parts.update(same)
            counts["parsed"] += 1
            counts["exact"] += len(same) == len(PARTS)
            counts["exact_wrong"] += len(same) == len(PARTS) and each["correct"] is False
    return {**counts, "parts": dict(parts)}
