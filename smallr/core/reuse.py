"""Keeps what was traced and compiled, so that a second run of the same shape in a process does neither.

Tracing, lowering and reading a program from the disk take seconds even where the program is on disk. Methods, sweeps and
comparisons train and ask many models of one structure in one process: they share programs by what these are made of.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")


class Kept:
    """Keeps the values that were asked for last, by keys that say all that a value is made of.

    Args:
      most: values that are kept; the one whose last use is longest ago goes first.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the value of a key, which is made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value

    def __contains__(self, key: Hashable) -> bool:
        """Returns whether the value of a key is there."""
        return key in self._values


# Of steps, evaluations and scorers. A program holds code and small constants, no parameters.
PROGRAMS = Kept(16)


def identity(value: Any) -> Hashable:
    """Returns a key under which equal descriptions of a program meet.

    A frozen dataclass is its class, its fields and what else it holds (a name may have been looked up: the function that
    it stood for counts), a dict its items, a list its elements. What is none of these and cannot be hashed, such as an array,
    is itself alone, so that programs are never shared by mistake.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__dataclass_params__.frozen:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        held = fields | getattr(value, "__dict__", {})
        return type(value), tuple((name, identity(held[name])) for name in sorted(held))
    if isinstance(value, Mapping) and type(value) is dict:
        return dict, tuple((name, identity(each)) for name, each in value.items())
    if type(value) in (list, tuple):
        return type(value), tuple(map(identity, value))
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return type(value), value  # 1, 1.0 and True are equal, but other constants in a program


def settings() -> Hashable:
    """Returns JAX's settings as they are here, on which what is lowered depends: precision of products, debugging …

    `jax.jit` looks at them by itself; what is lowered and compiled by hand does not.
    """
    return tuple((name, repr(value)) for name, value in sorted(jax.config.values.items()))


def shapes(tree: Any) -> Hashable:
    """Returns the structure of a tree of arrays, and the shape, dtype and sharding of each."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (np.shape(x), str(x.dtype), getattr(x, "weak_type", False), getattr(x, "sharding", None)) for x in leaves
    )


class _Itself:
    """Represents an object that equals nothing but itself; it is held, so that no other gets its address."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
