"""Computes a content hash of a pytree of arrays, where the arrays live, but for small ones, which the host reads.

Two states have one digest exactly when names, shapes, dtypes and all bits agree, whatever the mesh,
the sharding, the number of devices or processes, and the Python classes of the containers. It proves
that a restored checkpoint is the saved one, and is the key of caches that depend on weights.

Every element is read as 32-bit words; each word is mixed with its position by two rounds of
multiply-and-shift (the finalisers of MurmurHash3 and of "lowbias32"), and the results are summed with
wrap-around in two lanes. A wrap-around sum does not depend on the order of its terms, so each device
sums its shard and only 8 bytes a leaf travel. Within a position the mixing is a bijection, so a change
of any single word always changes both lanes; other changes go unseen with probability about 2^-64.
This detects damage; it is no defence against a forger.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32

_FORMAT = "smallr-digest-1"  # part of the hash: a change of the algorithm must change this
# Elements; numpy sums a leaf of no more in a few milliseconds, where a program for its shape and sharding takes fifty to compile.
_ON_HOST = 2**17
_SUB_BYTE = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn")  # numpy gives an element of these a whole byte
Lanes = UInt32[Array, "2"] | UInt32[np.ndarray, "2"]
Words = UInt32[Array, "..."] | UInt32[np.ndarray, "..."]
_UINTS = {4: jnp.uint4, 8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint32}


def tree_digest(tree: Any) -> str:
    """Returns the sha256 (64 hex characters) of names, dtypes, shapes and contents of the tree's leaves.

    Args:
      tree: any pytree of jax arrays (typed PRNG keys included), numpy arrays or numbers. In a run of
        several processes all of them must call this; all get the same answer.

    Raises:
      TypeError: a leaf that is not a number or an array of numbers.
      ValueError: two leaves have one name.
    """
    return named_digest(named_leaves(tree))


def named_digest(leaves: Mapping[str, Any]) -> str:
    """Computes `tree_digest` of a tree whose leaves by name (`named_leaves`) are these."""
    digest = LeafwiseDigest()
    for name, leaf in sorted(leaves.items()):
        digest.add(name, leaf)
    return digest.value()


class LeafwiseDigest:
    """Computes `named_digest` of leaves that come one after the other, in any order, and need not be kept."""

    def __init__(self) -> None:
        self._lanes: list[tuple[str, tuple[str, Sequence[int]], Lanes]] = []

    def add(self, name: str, leaf: Any) -> None:
        """Takes a leaf; all processes of a run must do so in the same order."""
        self._lanes.append((name, leaf_signature(leaf), _leaf_lanes(name, leaf)))
        # All are dispatched before the first is awaited; but on simulated devices, which share a few threads, one
        # program's collectives can starve another's.
        if jax.default_backend() == "cpu" and jax.device_count() > 1:
            jax.block_until_ready(self._lanes[-1][-1])

    def value(self) -> str:
        """Returns the digest of the leaves so far."""
        return _combine(sorted(self._lanes, key=lambda lane: lane[0]))


def read_digest(signatures: Mapping[str, tuple[str, Sequence[int]]], parts: Iterable[Mapping[str, Any]]) -> str:
    """Computes `named_digest` of leaves that come some at a time, by name, so that no more of them are held."""
    lanes = [(name, signatures[name], _leaf_lanes(name, leaf)) for part in parts for name, leaf in part.items()]
    return _combine(sorted(lanes, key=lambda lane: lane[0]))


def _combine(lanes: Iterable[tuple[str, tuple[str, Sequence[int]], Lanes]]) -> str:
    total = hashlib.sha256(_FORMAT.encode())
    for name, (dtype, shape), lane in lanes:
        line = json.dumps([name, dtype, list(shape), [int(x) for x in np.asarray(lane)]])
        total.update(b"\n" + line.encode())
    return total.hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by name, in the tree's order (`jax.tree.leaves`).

    A name is the path of dict keys, attribute names and indices joined with "/" (in a key, "%" and "/"
    are written %25 and %2F). Containers leave no other trace: a dict, an `nnx.State` and a dataclass
    with the same entries have the same names, and an `nnx.Variable` is named as its value.

    Raises:
      ValueError: two leaves have one name, e.g. for the dict keys 1 and "1".
    """
    named: dict[str, Any] = {}
    entries, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    for path, node in entries:
        inner = jax.tree_util.tree_flatten_with_path(node)[0]
        for inner_path, leaf in inner:
            suffix = inner_path if len(inner) > 1 else ()
            name = "/".join(_escape(entry) for entry in (*path, *suffix)) or "."
            if name in named:
                raise ValueError(f"two leaves of the tree are both named {name!r}; names must differ as text")
            named[name] = leaf
    return named


def leaf_signature(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Returns the dtype's name and the shape of an array, a `jax.ShapeDtypeStruct` or a number."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return str(leaf.dtype), tuple(leaf.shape)


def _escape(entry: Any) -> str:
    return jax.tree_util.keystr((entry,), simple=True).replace("%", "%25").replace("/", "%2F")


def _leaf_lanes(name: str, leaf: Any) -> Lanes:
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not (leaf.is_fully_addressable and _for_host(leaf)):
            # Several processes can only read the result if each holds all of it.
            replicated = isinstance(leaf.sharding, NamedSharding)
            return _lanes_on(NamedSharding(leaf.sharding.mesh, PartitionSpec()) if replicated else None)(leaf)
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm" or array.dtype.names:
        raise TypeError(f"leaf {name!r} is not an array of numbers but {type(leaf).__name__} of dtype {array.dtype}")
    if array.dtype.itemsize == 8 and array.dtype.kind != "c":
        # jax would narrow 64-bit types: hand it the two halves, low first, as its own bitcast would.
        halves = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).view("<u4")
        array = halves.reshape((*array.shape, 2))
    if array.dtype.kind == "c":
        return _leaf_lanes(name, np.stack([array.real, array.imag], axis=-1))
    return _host_lanes(array) if _for_host(array) else _lanes_on(None)(array)


def _for_host(leaf: Any) -> bool:
    """Returns whether numpy sums it: a small one, whose elements fill whole bytes in the machine's order."""
    return leaf.size <= _ON_HOST and leaf.dtype.isnative and str(leaf.dtype) not in _SUB_BYTE


def _host_lanes(x: Shaped[np.ndarray, "..."]) -> UInt32[np.ndarray, "2"]:
    """Computes what `_lanes` does."""
    x = np.atleast_1d(x)
    words = x.astype(np.uint32) if x.dtype == np.bool_ else x.view(f"u{x.dtype.itemsize}").astype(np.uint32)
    rows, columns = (np.arange(x.size, dtype=np.uint32).reshape(x.shape, order=order) for order in "CF")
    return np.stack([mixed.sum(dtype=np.uint32) for mixed in _mix(words, rows, columns)])


@functools.cache
def _lanes_on(out_sharding: NamedSharding | None) -> Any:
    return jax.jit(_lanes, out_shardings=out_sharding)


def _lanes(x: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """Computes two wrap-around sums of the mixed words of one array."""
    words = _words(x)
    dims = tuple(range(words.ndim))
    # Row-major and column-major position, modulo 2^32. In an array of more than 2^32 elements two elements
    # may share one of them, hardly both.
    first, second = _mix(words, _position(words.shape, dims), _position(words.shape, dims[::-1]))
    # One reduction of two operands: XLA would read and mix the array twice for two sums.
    zero = np.uint32(0)
    sums = lax.reduce((first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), dims)
    return jnp.stack(sums)


def _words(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """Returns the bits of each element as uint32; 64-bit elements become two words on a new last axis."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = jnp.finfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).bits
    return lax.bitcast_convert_type(x, _UINTS[bits]).astype(jnp.uint32)


def _mix(words: Words, rows: Words, columns: Words) -> tuple[Words, Words]:
    u = np.uint32
    a = words ^ (rows * u(0x9E3779B1) + u(0x7F4A7C15))
    a = (a ^ (a >> 16)) * u(0x85EBCA6B)
    a = (a ^ (a >> 13)) * u(0xC2B2AE35)
    a = a ^ (a >> 16)
    b = a + columns * u(0x27D4EB2F)
    b = (b ^ (b >> 16)) * u(0x21F0AAAD)
    b = (b ^ (b >> 15)) * u(0xD35A2D97)
    return a, b ^ (b >> 15)


def _position(shape: tuple[int, ...], major_to_minor: tuple[int, ...]) -> UInt32[Array, "..."]:
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(major_to_minor):
        position = position + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return position
