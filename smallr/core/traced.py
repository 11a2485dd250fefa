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
import importlib
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

from smallr import IMPORTED_AT
from smallr.core.cache import Cache
from smallr.core.reuse import settings

KIND = "traced"  # of cache entries
# Whoever changes constants of this package at run time, as tests do, has other programs than its source says.
is_kept = True
_ROOT = Path(__file__).resolve().parents[1]
_TRACE = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes", "jaxtyping")
_OURS = ("smallr", "jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes", "pathlib", "collections")
_CLASS, _MEMBER = re.compile(r"<class '([^']*)'>"), re.compile(r"<\w+\.\w+: [^<>]*>")  # of an enumeration
# A layout that the CPU is asked for; it is in XLA's own text as well, so there is nothing to become incompatible.
_CALLS = ("LayoutConstraint",)


def key_text(key: Hashable) -> str | None:
    """Returns a key as text that other processes find too; None where it has none.

    None for functions and for objects that are told by their address, for classes whose source is neither this package's nor
    that of what traces it, for a text that leaves something out, where source has been written since it was imported, and
    where programs are not of one CPU.
    """
    if not is_kept or jax.default_backend() != "cpu" or jax.device_count() > 1 or jax.process_count() > 1:
        return None
    text = repr(key)
    rest = _MEMBER.sub("", _CLASS.sub("", text))
    if "<" in rest or re.search(r"\b0x[0-9a-f]{4,}|\.\.\.|…", rest):
        return None
    if any("." in name and name.partition(".")[0] not in _OURS for name in _CLASS.findall(text)):
        return None
    source = _source_digest()
    return source and f"{source} {text}"


def _source_digest() -> str | None:
    """Returns the hash of this package's source, and of the versions of what traces it; None if it is not what runs."""
    for path in _ROOT.rglob("*.py"):
        about = path.stat()
        if max(about.st_mtime, about.st_ctime) >= IMPORTED_AT:  # a copy may keep the time of its original
            return None
    return _hash_of_source()


@functools.cache
def _hash_of_source() -> str:
    loaded = (importlib.import_module(name) for name in _TRACE)  # not what is installed by now
    total = hashlib.sha256(
        "\n".join([sys.version, *(f"{each.__name__} {each.__version__}" for each in loaded)]).encode()
    )
    for path in sorted(_ROOT.rglob("*.py")):
        total.update(f"\n{path.relative_to(_ROOT)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def imports() -> tuple[str, ...]:
    """Returns the modules that JAX imports when it lowers a program that was exported; they take half a second."""
    return ("scipy.linalg",) if is_kept and jax.default_backend() == "cpu" else ()


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


def kept(function: Callable[..., Any], key: Hashable) -> Callable[..., Any]:
    """Returns a function to be jitted in place of another, which is not traced where that was done before.

    Args:
      function: of arrays in any trees, to trees of dicts, tuples, lists, and of the structure of an argument.
      key: of all that the function is made of but its arguments.
    """

    @functools.wraps(function)
    def found(*arguments: Any) -> Any:
        if jax.config.jax_disable_jit:
            return function(*arguments)
        leaves, structure = jax.tree.flatten(arguments)
        given = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.aval.weak_type) for x in leaves]
        shapes = tuple((x.shape, str(x.dtype), x.weak_type) for x in given)
        text = key_text((function.__name__, key, str(structure), shapes, settings()))
        if text is None:
            return function(*arguments)
        structures = [jax.tree.structure(each) for each in arguments]
        content = Cache(KIND).get(text)
        try:
            if content is None:
                content = _exported(function, structure, structures, given)
                Cache(KIND).put(text, content)
            program, described = _loaded(content, given)
        except (ValueError, TypeError, NotImplementedError) as error:  # it cannot be exported, or the function is wrong
            logging.info("%s is not kept traced: %s", function.__name__, error)
            return function(*arguments)
        return _rebuilt(described, iter(program.call(*leaves)), structures)

    return found


def _exported(
    function: Callable[..., Any],
    structure: Any,
    structures: Sequence[Any],
    given: Sequence[jax.ShapeDtypeStruct],
) -> bytes:
    """Traces and lowers a function of the leaves of its arguments; returns a line of JSON, and behind it the StableHLO."""
    described: list[Any] = []

    def flat(*leaves: Any) -> tuple[Any, ...]:
        out = function(*jax.tree.unflatten(structure, leaves))
        described.append(_described(out, structures))
        return tuple(jax.tree.leaves(out))

    checks = [export.DisabledSafetyCheck.custom_call(name) for name in _CALLS]
    made = export.export(jax.jit(flat), disabled_checks=checks)(*given)
    head = {
        "described": described[0],
        "results": [[list(each.shape), str(each.dtype)] for each in made.out_avals],
        "read": list(made.module_kept_var_idx),
    }
    return json.dumps(head).encode() + b"\n" + made.mlir_module_serialized


def _loaded(content: bytes, given: Sequence[jax.ShapeDtypeStruct]) -> tuple[export.Exported, Any]:
    """Returns the program that `_exported` stored, and what it said of the results.

    JAX's own form of an exported program needs a package more. So a program of the same arguments and results, which does
    nothing, is exported here, and gets the stored StableHLO.
    """
    line, _, module = content.partition(b"\n")
    head = json.loads(line)
    results = [(shape, jnp.dtype(dtype)) for shape, dtype in head["results"]]
    shell = export.export(jax.jit(lambda *_: tuple(jnp.zeros(*each) for each in results)))(*given)
    read = tuple(head["read"])
    return dataclasses.replace(shell, mlir_module_serialized=module, module_kept_var_idx=read), head["described"]


def _described(tree: Any, structures: Sequence[Any]) -> Any:
    """Describes results in JSON: None for an array, or a list of what they are and of what.

    They are the argument of a number, a "dict" or a "tuple".
    """
    structure = jax.tree.structure(tree)
    if tree is not None and jax.tree_util.treedef_is_leaf(structure):
        return None
    if structure in structures:
        return ["argument", structures.index(structure)]
    if type(tree) is dict:
        return ["dict", {name: _described(tree[name], structures) for name in sorted(tree)}]
    if type(tree) in (tuple, list):
        return ["tuple", [_described(each, structures) for each in tree]]
    raise ValueError(f"results of {type(tree).__name__} are not kept")


def _rebuilt(described: Any, leaves: Iterator[Any], structures: Sequence[Any]) -> Any:
    """Builds results of their leaves; lists become tuples."""
    if described is None:
        return next(leaves)
    kind, of = described
    if kind == "argument":
        return jax.tree.unflatten(structures[of], [next(leaves) for _ in range(structures[of].num_leaves)])
    if kind == "dict":
        return {name: _rebuilt(each, leaves, structures) for name, each in of.items()}
    return tuple(_rebuilt(each, leaves, structures) for each in of)
