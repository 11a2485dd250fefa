"""Keeps traced programs on disk, found by what they are made of, so that a process that finds one does not trace it.

Compiled programs are kept too (`programs`), but JAX finds them by their lowered form, and to trace and lower a training step
takes Python seconds. Here the lowered form itself is kept, as StableHLO, under a text of its key (`reuse`), of the source of
this package, and of the versions of the libraries that trace. What has no such text is traced as ever. The program is the
same whether it was found or traced now, so no bit depends on the cache.

On one CPU alone: other platforms' custom calls may not be exported, and nothing was measured there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from smallr.core.cache import Cache

KIND = "traced"  # of cache entries
# Whoever changes constants of this package at run time, as tests do, has other programs than its source says.
is_kept = True
_ROOT = Path(__file__).parents[1]
_TRACE = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes", "jaxtyping")
_OURS = ("smallr", "jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes", "pathlib", "collections")
_CLASS, _MEMBER = re.compile(r"<class '([^']*)'>"), re.compile(r"<\w+\.\w+: [^<>]*>")  # of an enumeration
# A layout that the CPU is asked for; it is in XLA's own text as well, so there is nothing to become incompatible.
_CALLS = ("LayoutConstraint",)


def key_text(key: Hashable) -> str | None:
    """Returns a key as text that other processes find too; None where it has none.

    None for functions and for objects that are told by their address, for classes whose source is neither this package's nor
    that of what traces it, for a text that leaves something out, and where programs are not of one CPU.
    """
    if not is_kept or jax.default_backend() != "cpu" or jax.device_count() > 1 or jax.process_count() > 1:
        return None
    text = repr(key)
    rest = _MEMBER.sub("", _CLASS.sub("", text))
    if "<" in rest or re.search(r"\b0x[0-9a-f]{4,}|\.\.\.|…", rest):
        return None
    if any("." in name and name.partition(".")[0] not in _OURS for name in _CLASS.findall(text)):
        return None
    return f"{_source_digest()} {text}"


@functools.cache
def _source_digest() -> str:
    """Returns the hash of this package's source, and of the versions of what traces it."""
    versions = [sys.version, *(f"{name} {importlib.metadata.version(name)}" for name in _TRACE)]
    total = hashlib.sha256("\n".join(versions).encode())
    for path in sorted(_ROOT.rglob("*.py")):
        total.update(f"\n{path.relative_to(_ROOT)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def remembered(key: Hashable, make: Callable[[], str]) -> str:
    """Returns a text that is made of a program, such as its digest; it is made once for all processes."""
    text = key_text(key)
    if text is None:
        return make()
    cache = Cache(KIND)
    if (found := cache.get(f"text {text}")) is not None:
        return found.decode()
    cache.put(f"text {text}", (made := make()).encode())
    return made


class Kept:
    """Is a compiled program that was found or traced; it is called as the function that it was made of.

    Args:
      compiled: of the leaves of the arguments.
      described: how the results are built of its results (`_described`).
      structures: of the arguments.
    """

    def __init__(self, compiled: jax.stages.Compiled, described: Any, structures: Sequence[Any]):
        self._compiled, self._described, self._structures = compiled, described, structures

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program."""
        leaves = self._compiled(*jax.tree.leaves(arguments))
        return _rebuilt(self._described, iter(leaves), self._structures)

    def memory_analysis(self) -> Any:
        """Returns what JAX tells of the compiled program."""
        return self._compiled.memory_analysis()


def compiled(function: Any, key: Hashable, arguments: tuple[Any, ...]) -> Any:
    """Compiles a jitted function for some arguments, without tracing it where that was done before.

    Args:
      function: jitted; it donates its first argument, and gives trees of dicts, tuples and lists, or of the structure of an
        argument, which are then sharded as that.
      key: of all that the program is made of, the shapes of the arguments included.
      arguments: arrays, or shapes with shardings.
    """
    text = key_text(key)
    if text is None:
        return function.lower(*arguments).compile()
    cache = Cache(KIND)
    content = cache.get(text)
    if content is None:
        try:
            content = _exported(function, arguments)
        except (ValueError, NotImplementedError) as error:  # what cannot be exported
            logging.info("the program is not kept traced: %s", error)
            return function.lower(*arguments).compile()
        cache.put(text, content)
    return _loaded(content, arguments, function.__name__)


def _exported(function: Any, arguments: tuple[Any, ...]) -> bytes:
    """Traces and lowers a function of the leaves; returns a line of JSON, and behind it the StableHLO."""
    leaves, structure = jax.tree.flatten(arguments)
    described: list[Any] = []

    def flat(*leaves: Any) -> tuple[Any, ...]:
        out = function(*jax.tree.unflatten(structure, leaves))
        described.append(_described(out, [jax.tree.structure(each) for each in arguments]))
        return tuple(jax.tree.leaves(out))

    checks = [export.DisabledSafetyCheck.custom_call(name) for name in _CALLS]
    made = export.export(jax.jit(flat), disabled_checks=checks)(*leaves)
    head = {
        "described": described[0],
        "outputs": [[list(each.shape), str(each.dtype)] for each in made.out_avals],
        "read": list(made.module_kept_var_idx),
    }
    return json.dumps(head).encode() + b"\n" + made.mlir_module_serialized


def _loaded(content: bytes, arguments: tuple[Any, ...], name: str) -> Kept:
    """Compiles what `_exported` returned.

    JAX's own form of an exported program needs a package more. So a program of the same arguments and results, which does
    nothing, is exported here, and gets the stored StableHLO.
    """
    line, _, module = content.partition(b"\n")
    head = json.loads(line)
    leaves = jax.tree.leaves(arguments)
    structures = [jax.tree.structure(each) for each in arguments]
    outputs = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in head["outputs"]]
    nothing = jax.jit(lambda *_: tuple(jnp.zeros(each.shape, each.dtype) for each in outputs))
    shell = export.export(nothing)(*leaves)
    program = dataclasses.replace(shell, mlir_module_serialized=module, module_kept_var_idx=tuple(head["read"]))
    count = structures[0].num_leaves
    run = jax.jit(
        program.call, donate_argnums=tuple(range(count)), out_shardings=_shardings(head["described"], arguments)
    )
    return Kept(run.lower(*leaves).compile(), head["described"], structures)


def _described(tree: Any, structures: Sequence[Any]) -> Any:
    """Describes results in JSON: the number of an argument of their structure, dicts, lists, and None for an array."""
    structure = jax.tree.structure(tree)
    if jax.tree_util.treedef_is_leaf(structure):
        return None
    if structure in structures:
        return structures.index(structure)
    if type(tree) is dict:
        return {name: _described(tree[name], structures) for name in sorted(tree)}
    if type(tree) in (tuple, list):
        return [_described(each, structures) for each in tree]
    raise ValueError(f"results of {type(tree).__name__} are not kept")


def _rebuilt(described: Any, leaves: Iterator[Any], structures: Sequence[Any]) -> Any:
    """Builds results of their leaves; lists become tuples."""
    if described is None:
        return next(leaves)
    if isinstance(described, int):
        structure = structures[described]
        return jax.tree.unflatten(structure, [next(leaves) for _ in range(structure.num_leaves)])
    if isinstance(described, dict):
        return {name: _rebuilt(each, leaves, structures) for name, each in described.items()}
    return tuple(_rebuilt(each, leaves, structures) for each in described)


def _shardings(described: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shardings of the results' leaves: those of the argument that they are like, else whole."""
    leaves = jax.tree.leaves(arguments)
    mesh = next(each.sharding.mesh for each in leaves if isinstance(getattr(each, "sharding", None), NamedSharding))
    if described is None:
        return (NamedSharding(mesh, PartitionSpec()),)
    if isinstance(described, int):
        return tuple(each.sharding for each in jax.tree.leaves(arguments[described]))
    parts = described.values() if isinstance(described, dict) else described
    return tuple(sharding for part in parts for sharding in _shardings(part, arguments))
