"""Reads the names of oracles: stand-ins for agents that know the built-in problems, with errors at chosen rates."""

from __future__ import annotations

from typing import TypeVar, get_type_hints
from urllib.parse import parse_qsl

from smallr.core.errors import UserError
from smallr.data.errors import nearest

PREFIX = "oracle:"
Options = TypeVar("Options")


def read_oracle(spec: str, options: type[Options], name: str = "arithmetic") -> Options:
    """Reads `oracle:NAME?rate=0.2&seed=1` as a dataclass of rates from 0 to 1 and a `seed`.

    Args:
      spec: what the user wrote.
      options: the dataclass.
      name: of the one oracle that there is.

    Raises:
      UserError: another oracle, an unknown option, a rate outside of 0 to 1.
    """
    named, _, query = spec.removeprefix(PREFIX).partition("?")
    if named != name:
        raise UserError(f"model {spec!r}: there is one oracle, {PREFIX}{name}")
    types, found = get_type_hints(options), {}
    for field, value in parse_qsl(query, keep_blank_values=True):
        if field not in types:
            raise UserError(f"model {spec!r}: no option {field!r}; there are {', '.join(types)}{nearest(field, types)}")
        try:
            found[field] = types[field](value)
        except ValueError:
            raise UserError(f"model {spec!r}: {field}={value!r} is no number") from None
        if field != "seed" and not 0 <= found[field] <= 1:
            raise UserError(f"model {spec!r}: {field}={value} must be from 0 to 1")
    return options(**found)
